import json
from pathlib import Path

import pytest

from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import describe_failure, find_model, load_provider


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}), encoding="utf-8")


def test_unknown_provider_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r'no provider "tinyaudio"\. Did you mean "tiny-audio"'):
        load_provider("tinyaudio", "x")


def test_dtype_is_refused_by_providers_that_choose_their_own() -> None:
    with pytest.raises(UserError, match="--dtype is for tiny-audio and transformers: the provider cmd"):
        load_provider("cmd: echo", None, dtype="bfloat16")


def test_our_provider_needs_a_model() -> None:
    with pytest.raises(UserError, match="Which model"):
        load_provider("tiny-audio", None)


def test_a_run_folder_stands_for_its_model() -> None:
    make_model(Path("outputs/nano/model"))
    expected = str(Path("outputs/nano/model"))
    assert find_model("outputs/nano") == expected
    assert find_model("outputs/nano/model") == expected


@pytest.mark.parametrize("hub_id", ["mazesmazes/tiny-audio", "whisper-tiny"])
def test_hub_ids_pass_unchanged(hub_id: str) -> None:
    assert find_model(hub_id) == hub_id


@pytest.mark.parametrize(
    "path", ["outputs/nan", "./nan", "../nan", "outputs/nan/model", "/nowhere/model", "C:\\runs\\model"]
)
def test_a_path_that_does_not_exist(path: str) -> None:
    with pytest.raises(UserError, match="no model at"):
        find_model(path)


def test_models_nearby_are_named() -> None:
    make_model(Path("outputs/nano/model"))
    with pytest.raises(UserError, match=r"Nearby: outputs.nano.model"):
        find_model("outputs/nanoo")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        find_model("empty")


def test_a_file_is_not_a_model() -> None:
    Path("model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        find_model("model.safetensors")


def test_failures_are_one_line_and_say_what_they_are() -> None:
    assert describe_failure(ValueError("too\n  long")) == "too long"
    assert describe_failure(KeyError("x")) == "KeyError: 'x'"
    assert describe_failure(ValueError()) == "ValueError"
