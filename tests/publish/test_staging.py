"""What is published: all that the model needs, and nothing else that lay beside it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from tests.documented import ROOT
from tests.hub.test_checkpoint import adapter_model, bases, logits, save  # noqa: F401 (a fixture)
from tests.local_hub import LocalHub, Repository
from tiny_audio import cli
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.publish.staging import (
    ADAPTER_REQUIREMENTS,
    REQUIREMENTS,
    check_bases,
    check_nothing_private,
    read_architecture,
    stage_code,
    stage_weights,
)
from tiny_audio.publish.verify import verify, write_clip


def stage(source: Path, folder: Path, merged: bool = False) -> tuple[Any, list[str]]:
    folder.mkdir()
    architecture, left_out = stage_weights(source, folder, merged)
    stage_code(folder, architecture.is_merged)
    return architecture, left_out


def test_what_is_no_part_of_a_model_stays_at_home(run_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(run_folder / "model", source)
    for name in ("notes.txt", ".env", "optimizer.pt", "interview.wav", "README.md"):
        (source / name).write_text("private", encoding="utf-8")
    (source / "asr_losses.py").write_text("of an older version", encoding="utf-8")
    (source / "asr_gone.py").write_text("of an older version", encoding="utf-8")
    _, left_out = stage(source, tmp_path / "staged")
    assert left_out == [".env", "README.md", "interview.wav", "notes.txt", "optimizer.pt"]
    staged = {path.name for path in (tmp_path / "staged").iterdir()}
    code = {path.name for path in (ROOT / "tiny_audio" / "hub").glob("*.py")} - {"__init__.py"}
    assert {name for name in staged if name.endswith(".py")} == code
    assert (tmp_path / "staged" / "asr_losses.py").read_text(encoding="utf-8") != "of an older version"
    assert (source / "asr_losses.py").read_text(encoding="utf-8") == "of an older version"


def test_a_merged_model_stands_alone_and_a_dry_run_shows_it(
    bases: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    source = save(model, processor, tmp_path / "m")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["push", str(source), "--repo-id", "ada/model", "--merged", "--dry-run"]) == 0
    output = capsys.readouterr().out
    staged = tmp_path / "outputs" / "push_ada_model"
    for file in staged.iterdir():
        assert f"  {file.name}\n" in output
    assert "Nothing was published" in output and "state one with --license" in output
    assert [path.name for path in staged.parent.iterdir()] == ["push_ada_model"]
    assert "peft" not in (staged / "requirements.txt").read_text(encoding="utf-8")
    card = (staged / "README.md").read_text(encoding="utf-8")
    assert "| decoder LoRA | rank 4 on q_proj, v_proj |" in card, "as trained"
    monkeypatch.delenv("TINY_AUDIO_MODELS")
    whole, processor_whole = load_model(str(staged), device="cpu")
    assert whole.config.is_merged
    assert torch.allclose(logits(model, processor), logits(whole, processor_whole), atol=1e-4)
    write_clip(tmp_path / "clip.wav")
    assert cli.main(["transcribe", str(staged), "clip.wav"]) == 0
    heard = capsys.readouterr().out.removesuffix("\n")
    assert heard and f'heard: "{heard}"' in output
    # What a dry run has left is no model to stage in its own place, and what is something else is not replaced.
    before = load_file(staged / "model.safetensors").keys()
    assert cli.main(["push", str(staged), "--repo-id", "ada/model", "--dry-run"]) == 2
    assert "would be replaced: rename" in capsys.readouterr().err
    assert load_file(staged / "model.safetensors").keys() == before
    (staged / "config.yaml").write_text("a run", encoding="utf-8")
    assert cli.main(["push", str(source), "--repo-id", "ada/model", "--merged", "--dry-run"]) == 2
    assert "holds something else, which would be lost" in capsys.readouterr().err
    assert (staged / "config.yaml").exists()


def test_a_run_that_lies_where_push_writes_is_not_replaced(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("outputs") / "push_ada_model"
    shutil.copytree(run_folder, run)
    (tmp_path / "link").symlink_to(run / "model")
    before = sorted(path.name for path in run.rglob("*"))
    for given in (run, run / "model", Path("link")):
        assert cli.main(["push", str(given), "--repo-id", "ada/model", "--dry-run"]) == 2
        assert "would be replaced: rename outputs/push_ada_model" in capsys.readouterr().err
    assert sorted(path.name for path in run.rglob("*")) == before


def test_bases_come_from_the_hub_and_are_not_fetched_twice(
    bases: Path,  # noqa: F811
    hub: LocalHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model, processor = adapter_model(bases, monkeypatch)
    stage(save(model, processor, tmp_path / "m"), tmp_path / "staged")
    monkeypatch.delenv("TINY_AUDIO_MODELS")
    ids = ["acme/whisper-pico", "acme/lm-tied"]
    for repo_id, folder in (*((base, bases / base) for base in ids), ("ada/model", tmp_path / "staged")):
        repository = hub.repositories.setdefault(repo_id, Repository(private=False))
        repository.add("all", {file.name: file.read_bytes() for file in folder.iterdir()})
    for base in ids:
        snapshot_download(base)  # training had fetched them
    hub.requests.clear()
    heard = verify("ada/model", hub.repositories["ada/model"].commits[-1].oid, ids)
    assert heard.heard
    assert "peft" in (tmp_path / "staged" / "requirements.txt").read_text(encoding="utf-8")
    fetched = [line for line in hub.requests if line.startswith("GET /cdn/")]
    assert len(fetched) == 1, "the adapter's weights, and those of no base"


def test_weights_get_the_type_that_the_config_names(run_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(run_folder / "model", source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
    before = load_file(source / "model.safetensors")
    stage(source, tmp_path / "staged")
    after = load_file(tmp_path / "staged" / "model.safetensors")
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert all(torch.equal(after[name], weight.bfloat16()) for name, weight in before.items())
    for folder in (run_folder / "model", tmp_path / "staged"):  # who may read the config may read the weights
        modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
        assert len(modes) == 1, modes
    assert {weight.dtype for weight in load_file(source / "model.safetensors").values()} == {torch.float32}
    loaded, _ = load_model(str(source), device="cpu")
    from_staged, _ = load_model(str(tmp_path / "staged"), device="cpu")
    for weight, same in zip(loaded.parameters(), from_staged.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_paths_of_this_machine_are_taken_out(run_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(run_folder / "model", source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["audio_config"]["_name_or_path"] = "/home/ada/models/whisper"
    config["text_config"]["_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config["encoder_base"] = {"name": "/home/ada/models/whisper", "revision": None}
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stage(source, tmp_path / "staged")
    text = (tmp_path / "staged" / "config.json").read_text(encoding="utf-8")
    assert "/home" not in text and "HuggingFaceTB/SmolLM2-135M-Instruct" in text
    assert json.loads(text)["encoder_base"]["name"] == "whisper"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("token: hf_" + "a1B2" * 9, "key or token"),
        ("the-value-of-a-variable", "key or token"),
        ('{"path": "HERE/recordings"}', "names the folder"),
    ],
)
def test_nothing_private_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "the-value-of-a-variable")
    monkeypatch.chdir(tmp_path)
    here = json.dumps(str(tmp_path))[1:-1]
    (tmp_path / "config.json").write_text(f'{{"a": "{here}work"}}', encoding="utf-8")
    check_nothing_private(tmp_path)
    (tmp_path / "config.json").write_text(content.replace("HERE", here), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        check_nothing_private(tmp_path)
    assert "the-value" not in str(caught.value) and "a1B2" not in str(caught.value)


def test_an_adapter_of_a_folder_that_nobody_else_has_needs_merged(
    bases: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = adapter_model(bases, monkeypatch)
    check_bases(model.config, merged=False)
    model.config.encoder_base["name"] = str(bases / "acme" / "whisper-pico")
    check_bases(model.config, merged=True)
    with pytest.raises(UserError, match="--merged"):
        check_bases(model.config, merged=False)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}', encoding="utf-8")
    with pytest.raises(UserError, match="'whisper' model, not a Tiny Audio one"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[]", "its config.json is not the config of a model"),
        ("model.safetensors", None, "model.safetensors is damaged"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
            "git lfs pull",
        ),
    ],
)
def test_damaged_files_are_told(
    run_folder: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder / "model", tmp_path / "model")
    whole = (tmp_path / "model" / name).read_bytes()
    (tmp_path / "model" / name).write_bytes(whole[:-1000] if content is None else content)
    assert cli.main(["push", "model", "--repo-id", "ada/model", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_requirements_have_the_bounds_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {re.split(r"[<>=]", line)[0]: line for line in project["dependencies"]}
    for line in (*REQUIREMENTS, *ADAPTER_REQUIREMENTS):
        assert bounds[re.split(r"[<>=]", line)[0]].startswith(line)


def test_requirements_are_all_that_the_code_imports() -> None:
    named = {re.split(r"[<>=]", line)[0] for line in (*REQUIREMENTS, *ADAPTER_REQUIREMENTS)}
    imported: set[str] = set()
    for file in (ROOT / "tiny_audio" / "hub").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    foreign = imported - set(sys.stdlib_module_names)
    assert foreign - {"safetensors"} == named, "transformers brings safetensors along"
