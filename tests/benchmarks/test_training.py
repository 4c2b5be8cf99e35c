"""The candidates of the training benchmark do the same work, and what it counts is what there is, with tiny models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks import import_benchmarks
from tiny_audio.hub.asr_losses import LossWeights


@pytest.fixture(scope="module")
def modules() -> Any:
    torch.set_num_threads(1)
    return import_benchmarks("training", "training_candidates", "sized_models")


@pytest.fixture(scope="module")
def clips(modules: Any) -> Any:
    return modules[1].clip_mix(2, 4)[0]


@pytest.fixture(scope="module")
def ours(modules: Any, clips: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    _, candidates, sized_models = modules
    ours = candidates.Ours(sized_models.TINY, 4, tmp_path_factory.mktemp("ours"))
    ours.hear(clips)
    return ours


def test_few_clips_are_alike_within_a_step_as_many_would_be(modules: Any) -> None:
    candidates = modules[1]
    clips, longest = candidates.clip_mix(3, 8)
    seconds = np.array([clip.seconds for clip in clips])
    assert 5.5 < seconds.mean() < 7.5 and seconds.min() >= 1
    assert not np.array_equal(seconds, np.sort(seconds))
    for (step,) in candidates.plan_steps(clips, 8, candidates.Tricks(bounded_pass=False)):
        assert seconds[step].max() < 1.1 * seconds[step].min()
    assert all(18 < clip.seconds <= 25 for clip in longest)


def test_each_step_of_every_plan_has_as_many_clips_and_an_epoch_every_clip(modules: Any, clips: Any) -> None:
    candidates = modules[1]
    for tricks in candidates.LADDER.values():
        steps = candidates.plan_steps(clips, 4, tricks)
        assert [sum(map(len, step)) for step in steps] == [4, 4]
        assert sorted(row for step in steps for rows in step for row in rows) == list(range(8))
        for rows in (rows for step in steps for rows in step if tricks.bounded_pass):
            longest = max(clips[row].seconds for row in rows)
            assert longest * len(rows) <= candidates.PASS_SECONDS


def test_plain_ways_give_the_losses_and_gradients_of_the_tricks(modules: Any, ours: Any) -> None:
    candidates = modules[1]

    def gradients(tricks: Any) -> dict[str, torch.Tensor]:
        """Of all clips in one pass."""
        candidates.WithoutTricks.tricks = tricks
        batch = ours._batch(list(range(8)), tricks)
        inputs = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        weights = LossWeights(1.0, 0.3, 0.3, embedding_negatives=64)
        ours.model(**inputs, loss_weights=weights).loss.backward()
        found = {name: p.grad.clone() for name, p in ours.model.named_parameters() if p.grad is not None}
        ours.model.zero_grad()
        return found

    plain = candidates.Tricks(labels_only=False, prompt_once=False)
    expected = gradients(plain)
    assert any("lora_B" in name for name in expected) and any("projector" in name for name in expected)
    for tricks in (candidates.Tricks(prompt_once=False), candidates.Tricks(), candidates.Tricks(cached=True)):
        found = gradients(tricks)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)


def test_padding_to_30_seconds_is_heard(modules: Any, ours: Any) -> None:
    training, candidates, _ = modules
    off = ours.train(ours.steps(candidates.OFF), candidates.OFF)
    on = ours.train(ours.steps(candidates.Tricks()), candidates.Tricks())
    assert off.keys() == on.keys() == {"lm_sum", "ctc_sum", "embedding_sum"}
    assert off["ctc_sum"] > 1.2 * on["ctc_sum"]
    with pytest.raises(AssertionError, match="changes ctc_sum"):
        training.check_losses(
            {name: on | {"ctc_sum": 1.0 + number} for number, name in enumerate(candidates.LADDER)}
        )


def test_bytes_and_multiplications_are_counted(modules: Any) -> None:
    training = modules[0]
    left, right = torch.rand(300, 200), torch.rand(200, 100)

    def run() -> None:
        first = left @ right  # 120,000 bytes
        second = first.exp()
        del first
        second.exp()

    assert training.peak_bytes(run) == 240_000
    assert training.count_flops(run) == 2 * 300 * 200 * 100
    query = torch.rand(2, 3, 50, 16, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 3 * 50 * 50 * 16
    assert training.count_flops(lambda: attend(query, query, query).sum().backward()) == 6 * product


def test_all_of_it(modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, candidates, sized_models = modules
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    result = training.measure(sized_models.TINY, 2, 4, 1, tmp_path)
    trained = result["trained_parameters"]
    assert abs(trained["stock"] / trained["ours"] - 1) < 0.01
    rows = result["candidates"]
    assert list(rows) == [*candidates.LADDER, training.LM_ONLY, training.STOCK, training.STOCK_OWN]
    assert rows[candidates.OURS]["peak_bytes"] < rows[candidates.BASELINE]["peak_bytes"]
    assert all(row["audio_seconds_per_second"] > 0 for row in rows.values())
    assert 0 < result["utilization"] < 1 and result["ratio"] > 1
