"""What the benchmark asserts and what it prints, with models that take no time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import import_benchmarks


@pytest.fixture(scope="module")
def modules() -> Any:
    torch.set_num_threads(1)
    return import_benchmarks("common", "inference", "inference_trials", "sized_models")


def test_every_step_of_the_ladder_runs_and_the_exact_ones_write_the_same(modules: Any) -> None:
    _, inference, _, sized_models = modules
    result = inference.ladder(*sized_models.our_model(sized_models.TINY), batch=3, seconds=1.5, rounds=1)
    assert set(result["ratio_to_baseline"]) == set(inference.LADDER)
    assert result["new_tokens"] == 5


def test_a_changed_text_fails_the_benchmark(modules: Any) -> None:
    inference = modules[1]
    written = {"plain": torch.tensor([[1, 2]]), "trick": torch.tensor([[1, 3]])}
    with pytest.raises(AssertionError, match="different texts"):
        inference.check_equal_texts(written, [("plain", "trick")])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_stock_model_is_driven_by_its_own_processor(modules: Any, batch: int) -> None:
    _, inference, trials, sized_models = modules
    ours = sized_models.our_model(sized_models.TINY)
    result = inference.against_stock(ours, trials.quantize(ours[0]), sized_models.TINY, batch, 1.2, 1)
    assert result["ratio"] > 0 and ("ours, with a draft (simulated)" in result["ratios"]) == (batch == 1)
    processor = sized_models.stock_model(sized_models.TINY)[1]
    inputs = processor(text=[sized_models.stock_prompt(False)], audio=[sized_models.sound(1.2)])
    assert inputs["input_features"].shape[-1] == 200  # to whole seconds, not to 30
    text = inputs["input_ids"][0] != processor.audio_token_id
    assert int(text.sum()) == sized_models.TOKENS_BEFORE_AUDIO + sized_models.TOKENS_AFTER_AUDIO


def test_sizes_are_those_of_the_models_they_stand_for(modules: Any) -> None:
    sized_models = modules[3]
    with torch.device("meta"):
        model, processor = sized_models.our_model(sized_models.FULL)
        stock, _ = sized_models.stock_model(sized_models.FULL)
    assert sum(p.numel() for p in model.model.language_model.parameters()) == 134_515_008  # SmolLM2-135M
    same = model.model.language_model.state_dict().keys() == stock.model.language_model.state_dict().keys()
    assert same
    assert len(processor.prompt_ids(0)) == sized_models.TOKENS_BEFORE_AUDIO + sized_models.TOKENS_AFTER_AUDIO
    assert processor.prompt_before.startswith("<bos>")


def test_ratios_are_taken_within_a_round(modules: Any) -> None:
    timings = modules[0].Timings({"slow": [2.0, 20.0, 3.0], "fast": [1.0, 10.0, 1.0]})
    assert timings.ratio("slow", "fast") == 2.0 and timings.best("slow") == 2.0


def test_a_result_is_one_line_and_a_file_with_the_machine(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = modules[0]
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.write_result("example", {"ratio": 2.0}, quick=False)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line == json.loads((tmp_path / "example.json").read_text(encoding="utf-8"))
    assert line["benchmark"] == "example" and line["ratio"] == 2.0
    assert line["hardware"]["cores"] and line["versions"]["torch"]
