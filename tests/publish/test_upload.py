"""Uploads by the hub's real client to a hub on this machine: one commit or none, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.local_hub import Fault, LocalHub
from tiny_audio import cli
from tiny_audio.errors import UserError
from tiny_audio.publish import upload

OURS = ("*.md", "*.py", "model*.safetensors")
NAME = "ada/model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n", encoding="utf-8")
    (folder / "handler.py").write_text("answer = 42\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 100)
    (folder / "notes.txt").write_text("not ours", encoding="utf-8")
    return folder


def publish(folder: Path, private: bool = True, name: str = NAME) -> str:
    api, user = upload.connect()
    assert user == "ada"
    assert upload.create(api, name, private) is private
    return upload.commit_folder(api, name, folder, OURS, "publish")


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


FILES = ("README.md", "handler.py", "model.safetensors")


def test_one_commit_holds_all_of_it(hub: LocalHub, folder: Path) -> None:
    oid = publish(folder)
    repository = hub.repositories[NAME]
    assert [commit.title for commit in repository.commits] == ["initial commit", "publish"]
    assert repository.commits[-1].oid == oid
    assert repository.private
    sent = {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    assert sent == contents(folder, *FILES)
    assert "notes.txt" not in repository.files


def test_large_files_are_sent_in_parts(hub: LocalHub, folder: Path) -> None:
    hub.part_bytes = 10_000
    publish(folder)
    parts = [line for line in hub.requests if line.startswith("PUT /lfs/")]
    assert len(parts) == 3 and all(line.endswith(" 200") for line in parts)
    assert hub.repositories[NAME].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_what_an_earlier_version_had_goes_and_what_others_added_stays(hub: LocalHub, folder: Path) -> None:
    publish(folder)
    repository = hub.repositories[NAME]
    others = {"picture.png": b"x", "old_module.py": b"pass", "docs/README.md": b"more"}
    repository.add("by hand", {**repository.files, **others})
    (folder / "handler.py").write_text("answer = 43\n", encoding="utf-8")
    publish(folder)
    assert len(repository.commits) == 4
    assert repository.files["handler.py"] == b"answer = 43\n"
    assert "old_module.py" not in repository.files
    assert {"picture.png", "docs/README.md", ".gitattributes"} < set(repository.files)


def test_nothing_new_is_no_commit(hub: LocalHub, folder: Path) -> None:
    first = publish(folder)
    assert publish(folder) == first
    assert len(hub.repositories[NAME].commits) == 2


@pytest.mark.parametrize(
    "fault",
    [
        Fault(r"PUT /lfs/", times=1),
        Fault(r"POST .*/commit/", times=1),
        Fault(r"POST .*/commit/", times=2),
        Fault(r"POST .*/commit/", times=1, status=503),
        Fault(r"POST .*/commit/", times=1, status=412),
        Fault(r"GET /api/models/", times=1),
    ],
    ids=lambda fault: f"{fault.pattern}-{fault.times}-{fault.status}",
)
def test_a_cut_connection_is_tried_again(hub: LocalHub, folder: Path, fault: Fault) -> None:
    publish(folder)  # the repository is there, with something else in it
    (folder / "model.safetensors").write_bytes(b"other weights" * 1000)
    hub.faults.append(fault)
    api, _ = upload.connect()
    oid = upload.commit_folder(api, NAME, folder, OURS, "publish")
    assert fault.times == 0, "it was cut"
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 3 and repository.commits[-1].oid == oid
    assert repository.files["model.safetensors"] == b"other weights" * 1000


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: LocalHub, folder: Path) -> None:
    hub.faults.append(Fault(r"POST .*/commit/", times=1, after=True))
    oid = publish(folder)
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2 and repository.commits[-1].oid == oid


def test_a_connection_that_stays_cut_leaves_nothing_by_halves(hub: LocalHub, folder: Path) -> None:
    hub.faults.append(Fault(r"POST .*/commit/"))
    with pytest.raises(
        UserError, match=r"publishing to ada/model: the connection to the hub failed .*same command"
    ) as e:
        publish(folder)
    assert "\n" not in str(e.value)
    assert [commit.title for commit in hub.repositories[NAME].commits] == ["initial commit"]
    assert len([line for line in hub.requests if "/commit/" in line]) == upload.ATTEMPTS
    hub.faults.clear()
    publish(folder)
    sent = [line for line in hub.requests if line.startswith("PUT /lfs/")]
    assert len(sent) == 1, "the weights were there already"


def test_somebody_elses_commit_in_between_is_kept(hub: LocalHub, folder: Path) -> None:
    publish(folder)
    repository = hub.repositories[NAME]
    (folder / "handler.py").write_text("answer = 44\n", encoding="utf-8")

    hub.faults.append(
        Fault(
            r"POST .*/commit/",
            times=1,
            meanwhile=lambda: repository.add("meddling", {**repository.files, "theirs.txt": b"here"}),
        )
    )
    api, _ = upload.connect()
    upload.commit_folder(api, NAME, folder, OURS, "publish")
    assert repository.files["handler.py"] == b"answer = 44\n"
    assert repository.files["theirs.txt"] == b"here"
    assert any(line.endswith(" 412") for line in hub.requests)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"HF_TOKEN, or log in with `hf auth login`"),
        ("hf_wrong", r"does not know your token.*hf auth login"),
        ("hf_reader", r"may only read.*settings/tokens"),
    ],
)
def test_who_may_not_publish_is_told_why(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message) as caught:
        upload.connect()
    assert "\n" not in str(caught.value) and "hf_" not in str(caught.value)


def test_another_users_name_is_refused(hub: LocalHub, folder: Path) -> None:
    with pytest.raises(UserError, match=r"making eve/model: your token may not do that .*namespace 'eve'"):
        publish(folder, name="eve/model")
    assert hub.repositories == {}


def test_a_private_repository_of_somebody_else_is_not_there(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    publish(folder)
    hub.users["hf_writer"] = ("bob", "write")
    api, _ = upload.connect()
    with pytest.raises(UserError, match="no such repository, or your token may not see it"):
        upload.fetch(api, NAME, tmp_path / "copy")


def test_private_is_not_put_where_everybody_looks(hub: LocalHub, folder: Path) -> None:
    publish(folder, private=False)
    with pytest.raises(UserError, match="exists and is public"):
        publish(folder, private=True)


def test_a_card_that_the_hub_refuses_sends_nothing(hub: LocalHub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: other\n---\n", encoding="utf-8")
    with pytest.raises(UserError, match="license_name"):
        publish(folder)
    assert not hub.large_files


def test_a_hub_that_is_not_there(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the connection to the hub failed"):
        upload.connect()


def test_a_token_that_would_fail_at_the_end_of_a_remote_run_is_told_at_its_start(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["remote-train", "--host", "127.0.0.1", "--port", "1", "--folder", "x", "--config", "nano"]
    command.append("training.hub_model_id=ada/model")
    for token, message in (
        ("hf_wrong", "does not know your token"),
        ("hf_reader", "may only read"),
        ("hf_writer", "no connection to root@127.0.0.1"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert cli.main(command) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(command) == 2
    assert "no connection to root@127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "repo_id",
    [
        "model",
        "a/b/c",
        "ada/",
        "/model",
        "ada/my model",
        "ada/..",
        "ada/x--y",
        "ada/x.git",
        "../x",
        "ada/ü",
        "",
    ],
)
def test_malformed_names(repo_id: str) -> None:
    with pytest.raises(UserError, match="USER/NAME"):
        upload.check_repo_id(repo_id)


@pytest.mark.parametrize("repo_id", ["ada/model", "Ada-1/my_model.v2", "0x/y"])
def test_wellformed_names(repo_id: str) -> None:
    upload.check_repo_id(repo_id)
