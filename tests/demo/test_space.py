"""`tiny-audio deploy-space`: what is published installs what it imports, and works without Tiny Audio."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.hub.recordings import trained_model
from tests.local_hub import LocalHub, Repository, read_metadata
from tiny_audio import cli
from tiny_audio.demo.space import stage
from tiny_audio.train.run import save_model

MODEL, SPACE = "ada/digits", "ada/digits-demo"


@pytest.fixture
def published(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A hub with a model, and a user who stands in an empty folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    save_model(*trained_model(), tmp_path / "model")
    hub.repositories[MODEL] = Repository(private=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir() if path.is_file()}
    hub.repositories[MODEL].add("a model", files)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return hub


def deploy(*arguments: str) -> int:
    return cli.main(["deploy-space", MODEL, "--space-id", SPACE, *arguments])


def imported(source: str) -> Iterator[str]:
    """Packages that a file imports when it runs: not for types alone, nor where it can do without."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif (
            not isinstance(node, ast.Try)
            and "TYPE_CHECKING" not in ast.unparse(getattr(node, "test", node))[:20]
        ):
            waiting += ast.iter_child_nodes(node)


def requirements(text: str) -> set[str]:
    return set(re.findall(r"^[\w-]+", text, flags=re.MULTILINE))


def test_a_space_is_tried_out_published_in_one_commit_and_installs_what_it_imports(
    published: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy("--private") == 0, capsys.readouterr().err
    output = capsys.readouterr().out
    assert "works without Tiny Audio" in output and f"{published.url}/spaces/{SPACE} (private)" in output
    assert "add a secret HF_TOKEN" in output, "the model is private too"
    repository = published.repositories[f"spaces/{SPACE}"]
    assert repository.private and len(repository.commits) == 2
    files = {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    card = read_metadata(files["README.md"].decode())
    assert card["sdk"] == "gradio" and card["sdk_version"] == metadata.version("gradio")
    assert card["models"] == [MODEL] and card["app_file"] in files and card["title"] == "digits-demo"

    code = [content.decode() for name, content in files.items() if name.endswith(".py")]
    code += [
        content.decode()
        for name, content in published.repositories[MODEL].files.items()
        if name.endswith(".py")
    ]
    own = {name.removesuffix(".py") for name in files}
    needed = {name for source in code for name in imported(source)} - own - set(sys.stdlib_module_names)
    installed = {"gradio", *requirements(files["requirements.txt"].decode())}
    for package in sorted(installed):  # and what those bring along
        lines = [line for line in metadata.requires(package) or [] if "extra ==" not in line]
        installed |= requirements("\n".join(lines))
    assert {"torch", "transformers", "gradio"} <= needed
    assert needed - installed == {"peft"}, "which adapters alone need"


def test_a_space_of_an_adapter_installs_peft(published: LocalHub, tmp_path: Path) -> None:
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"decoder_in_checkpoint": False}))
    stage(str(tmp_path / "model"), SPACE, tmp_path / "space")
    assert "peft" in requirements((tmp_path / "space" / "requirements.txt").read_text())


def test_a_model_that_does_not_work_there_is_not_shown(
    published: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    files = published.repositories[MODEL].files
    published.repositories[MODEL].add("broken", {**files, "asr_longform.py": b"raise RuntimeError('old')\n"})
    assert deploy() == 2
    error = capsys.readouterr().err
    assert "does not work where Tiny Audio is not installed: RuntimeError: old" in error
    assert f"spaces/{SPACE}" not in published.repositories


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["../model", "--space-id", SPACE], "Publish it first: tiny-audio push ../model --repo-id you/name"),
        ([MODEL, "--space-id", "demo"], '"demo" is not a repository: write USER/NAME'),
        (["ada/none", "--space-id", SPACE, "--dry-run"], "ada/none cannot be shown"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(
    published: LocalHub, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["deploy-space", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("outputs").exists() and f"spaces/{SPACE}" not in published.repositories
