"""The commands with a real checkpoint: tiny, with random weights, saved and loaded like any other."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny_audio
from tests.evaluate.listener import write_clip, write_manifest
from tiny_audio.cli import main
from tiny_audio.data.sources import open_source
from tiny_audio.devices import check_device
from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import TinyAudioProvider
from tiny_audio.evaluate.runner import evaluate
from tiny_audio.hub.asr_audio import load_audio
from tiny_audio.train.build import build_model
from tiny_audio.train.config import compose_config

SMALL = [
    "model.encoder_config.hidden_size=32",
    "model.encoder_config.num_hidden_layers=1",
    "model.encoder_config.intermediate_size=64",
    "model.decoder_config.hidden_size=32",
    "model.decoder_config.intermediate_size=64",
    "model.decoder_config.num_hidden_layers=1",
    "model.projector_hidden_size=32",
]
ROWS = [("a1", 16_000, "one two"), ("a2", 24_000, "three"), ("b1", 20_000, "nine nine nine")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("outputs") / "tiny" / "model"
    built, processor = build_model(compose_config(["+experiments=nano", *SMALL]))
    built.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_checkpoint_is_evaluated_alike_in_any_batch_size(model: Path, tmp_path: Path) -> None:
    provider = TinyAudioProvider.load(str(model), "cpu", max_new_tokens=8)
    source = open_source(write_manifest(tmp_path, ROWS))
    together, alone = (evaluate(provider, source, model_name="tiny", batch_size=size) for size in (3, 1))
    texts = [utterance.hypothesis for utterance in together.utterances]
    assert texts == [utterance.hypothesis for utterance in alone.utterances]
    assert texts == [
        provider.transcribe([load_audio(utterance.audio)])[0] for utterance in together.utterances
    ]
    assert together.failed == [] and together.metrics.rtfx > 0 and together.normalizer == "digits"


def test_weights_are_in_the_numbers_asked_for(model: Path) -> None:
    exact, rounded = (TinyAudioProvider.load(str(model), "cpu", dtype) for dtype in ("auto", "bfloat16"))
    dtypes = [{weight.dtype for weight in each.model.parameters()} for each in (exact, rounded)]
    assert dtypes == [{torch.float32}, {torch.bfloat16}]
    assert exact.identity != rounded.identity  # transcripts that were kept of one are not the other's
    clips = [torch.randn(samples).numpy() for samples in (16_000, 5_000)]
    assert all(isinstance(text, str) for text in rounded.transcribe(clips))


def test_eval_and_transcribe_say_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifest(tmp_path / "digits", ROWS)
    assert main(["eval", str(model.parent), "--data", "digits", "--device", "cpu"]) == 0
    results = tmp_path / "outputs" / "eval_tiny_digits" / "results.jsonl"
    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    capsys.readouterr()
    assert main(["transcribe", str(model), "digits", "--json", "--device", "cpu", "--batch-size", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [record["hypothesis"] for record in records]
    assert [line["seconds"] for line in lines] == [1.0, 1.5, 1.25]


def test_a_clip_longer_than_one_pass(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "long.wav", 16_000 * 31)
    options = ["--max-new-tokens", "3", "--json"]
    assert main(["transcribe", str(model), str(tmp_path / "long.wav"), *options]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert record["seconds"] == 31.0 and record["problems"] == []


def test_a_pipe_carries_the_transcript_and_nothing_else(model: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", 16_000)
    audio = (tmp_path / "a.wav").read_bytes()
    expected = TinyAudioProvider.load(str(model), "cpu", max_new_tokens=5).transcribe(
        [load_audio(io.BytesIO(audio))]
    )[0]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tiny_audio",
            "transcribe",
            str(model),
            "-",
            "--json",
            "--max-new-tokens",
            "5",
        ],
        input=audio,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(tiny_audio.__file__).parents[1])},
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr.decode()
    record = json.loads(result.stdout)
    assert (record["audio"], record["seconds"], record["text"]) == ("-", 1.0, expected)
    assert result.stderr == b""


def test_damaged_weights_are_one_line(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[:5000] if path.suffix == ".safetensors" else content)
    with pytest.raises(UserError, match=r"weights of .* are damaged"):
        TinyAudioProvider.load(str(broken), "cpu")


def test_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}', encoding="utf-8")
    write_clip(tmp_path / "a.wav", 16_000)
    assert main(["transcribe", str(tmp_path), str(tmp_path / "a.wav")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "'whisper' model, not a Tiny Audio one" in captured.err


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_devices_that_are_there(device: str) -> None:
    check_device(device)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cud", 'Did you mean "cuda"'), ("cuda:99", "no device cuda:99"), ("meta", "no device meta")],
)
def test_devices_that_are_not(device: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_device(device)
