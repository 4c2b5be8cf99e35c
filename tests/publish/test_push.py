"""`tiny-audio push`, from a finished run to somebody else's machine, over real HTTP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.documented import ROOT
from tests.local_hub import Fault, LocalHub, Repository, read_metadata
from tests.tiny_models import run_outside
from tiny_audio import cli
from tiny_audio.errors import UserError
from tiny_audio.publish import upload
from tiny_audio.publish.command import check_published
from tiny_audio.publish.staging import OUR_FILES
from tiny_audio.publish.verify import Heard, write_clip

NAME = "ada/digits"


@dataclass
class Published:
    hub: LocalHub
    output: str
    work: Path  # where the user stood
    clip: Path
    variables: dict[str, str]


def push(work: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tiny_audio", "push", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment, timeout=300)


@pytest.fixture(scope="module")
def published(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    home = tmp_path_factory.mktemp("home")
    with LocalHub() as hub:
        variables = {**hub.environment(), "HF_HOME": str(home)}
        work = run_folder.parents[1]
        done = push(work, "outputs/run", "--repo-id", NAME, "--private", "--watts", "100", **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        clip = home / "clip.wav"
        write_clip(clip)
        yield Published(hub, done.stdout, work, clip, variables)


@pytest.fixture
def heard_locally(published: Published, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["transcribe", str(run_folder / "model"), str(published.clip)]) == 0
    text = capsys.readouterr().out.removesuffix("\n")
    assert text, "an untrained model writes something, which says more than silence"
    return text


def test_a_model_is_published_in_one_commit_and_tried_out_twice(
    published: Published, heard_locally: str
) -> None:
    repository = published.hub.repositories[NAME]
    assert repository.private
    assert [commit.title for commit in repository.commits[1:]] == ["Publish a Tiny Audio model (whole)"]
    assert f"commit {repository.commits[-1].oid}" in published.output
    assert "loads and transcribes without Tiny Audio" in published.output
    assert "Fetched from there at that commit" in published.output
    assert heard_locally.split()[0] in published.output
    assert not (published.work / "outputs" / "push_ada_digits").exists()
    wanted = {"README.md", "LICENSE", "requirements.txt", "handler.py", "asr_modeling.py", "config.json"}
    wanted |= {"generation_config.json", "processor_config.json", "tokenizer.json", "model.safetensors"}
    assert wanted <= set(repository.files)


def test_no_file_names_a_place_on_this_machine(published: Published) -> None:
    for name, content in published.hub.repositories[NAME].files.items():
        for place in (str(published.work), str(Path.home()), "hf_writer"):
            assert place.encode() not in content, f"{name} holds {place}"


def test_the_cards_own_example_runs_where_tiny_audio_is_not_installed(
    published: Published, tmp_path: Path, heard_locally: str
) -> None:
    card = published.hub.repositories[NAME].files["README.md"].decode()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    script = f"import sys\nsys.modules['tiny_audio'] = None\n{snippet}"
    (tmp_path / "speech.wav").write_bytes(published.clip.read_bytes())
    output = run_outside(script, folder=tmp_path, **published.variables, HF_HUB_CACHE=str(tmp_path / "cache"))
    assert output.removesuffix("\n") == heard_locally


def test_transcribe_and_eval_take_the_hub_id(
    published: Published,
    hub: LocalHub,
    tmp_path: Path,
    heard_locally: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repositories |= published.hub.repositories
    monkeypatch.chdir(tmp_path)
    assert cli.main(["transcribe", NAME, str(published.clip)]) == 0
    assert capsys.readouterr().out == f"{heard_locally}\n"
    arguments = ["--data", "corpus:test", "--max-samples", "3", "--output-dir", "results"]
    assert cli.main(["eval", NAME, *arguments]) == 0
    assert sum(line.startswith("GET /cdn/") for line in hub.requests) == 1, "fetched once, from the hub"
    by_id = json.loads((tmp_path / "results" / "metrics.json").read_text(encoding="utf-8"))
    assert by_id["model"] == NAME and by_id["num_samples"] == 3


def test_the_metadata_is_the_hubs(published: Published) -> None:
    from huggingface_hub import ModelCard

    text = published.hub.repositories[NAME].files["README.md"].decode()
    assert [line for line in published.hub.requests if "validate-yaml" in line] == [
        "POST /api/validate-yaml 200"
    ]
    card = ModelCard(text)
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    (result,) = card.data.eval_results
    stated = json.loads((published.work / "outputs" / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert (result.metric_type, result.metric_value) == ("wer", round(100 * stated["wer"], 2))
    interval = [round(100 * bound, 2) for bound in stated["wer_ci95"]]
    assert result.metric_args["confidence_interval_95"] == interval
    assert read_metadata(text)["language"] == ["en"]


def test_code_only_changes_code_alone(
    published: Published, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = dict(published.hub.repositories[NAME].files)
    old = {
        **files,
        "asr_old.py": b"pass\n",
        "asr_losses.py": b"old = True\n",
        "README.md": b"---\nlicense: mit\n---\nMine.\n",
    }
    repository = hub.repositories.setdefault(NAME, Repository(private=True))
    repository.add("an older version", old)
    assert cli.main(["push", "--repo-id", NAME, "--code-only"]) == 0
    assert len(repository.commits) == 2
    assert repository.files == {**files, "README.md": old["README.md"]}
    output = capsys.readouterr().out
    assert "Its weights work with the code of this version" in output and "same text" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "ada/digits.*format_version 99.*update tiny-audio"),
        ({"model_type": "whisper"}, "ada/digits.*'whisper' model, not a Tiny Audio one"),
    ],
)
def test_code_only_refuses_what_its_code_cannot_read(
    published: Published,
    hub: LocalHub,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, object],
    message: str,
) -> None:
    files = dict(published.hub.repositories[NAME].files)
    config = {**json.loads(files["config.json"]), **change}
    repository = hub.repositories.setdefault(NAME, Repository(private=True))
    repository.add("another kind", {**files, "config.json": json.dumps(config).encode()})
    assert cli.main(["push", "--repo-id", NAME, "--code-only"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert len(repository.commits) == 1


def test_a_published_model_that_does_not_work_is_reported_with_its_commit(
    hub: LocalHub, run_folder: Path
) -> None:
    """The hub loses a file after the commit."""
    api, _ = upload.connect()
    upload.create(api, NAME, private=False)
    commit = upload.commit_folder(api, NAME, run_folder / "model", OUR_FILES, "publish")
    hub.faults.append(Fault(r"(GET|HEAD) .*/resolve/.*/asr_windows\.py", status=404))
    with pytest.raises(UserError, match=f"is published as commit {commit}, but: ada/digits does not work"):
        check_published(NAME, commit, [], Heard("one two", "three"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--repo-id", NAME], "There is no folder nothing"),
        (["--repo-id", NAME], "Which model"),
        ([".", "--repo-id", NAME], "holds no model"),
        ([".", "--repo-id", "digits"], "USER/NAME"),
        (["."], "--repo-id"),
        ([".", "--repo-id", NAME, "--code-only"], "takes --repo-id and nothing else"),
        (["--repo-id", NAME, "--code-only", "--dry-run"], "takes --repo-id and nothing else"),
        (["RUN", "--repo-id", NAME, "--license", "My own!"], "apache-2.0"),
        (["RUN", "--repo-id", NAME, "--language", "english"], "ISO 639"),
        (["RUN", "--repo-id", NAME, "--co2-grams-per-kwh", "400"], "needs --watts"),
        (["RUN", "--repo-id", NAME, "--dry-run", "--evaluation", "nowhere"], "nowhere holds no evaluation"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(run_folder) if argument == "RUN" else argument for argument in arguments]
    assert cli.main(["push", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))
