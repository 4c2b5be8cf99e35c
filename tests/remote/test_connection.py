"""The connection to a host: what is wrong with it is one line, and ~/.ssh/config is heard."""

from __future__ import annotations

import getpass
import time
from pathlib import Path

import pytest

from tests.remote.machine import MISSING, Machine
from tiny_audio import cli
from tiny_audio.errors import UserError
from tiny_audio.remote.command import find_folder
from tiny_audio.remote.ssh import Host

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def test_a_host_whose_key_has_changed_is_refused(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    other = machine.folder / "other_hosts"
    key = (machine.folder / "key.pub").read_text(encoding="utf-8")
    other.write_text(f"[127.0.0.1]:{machine.port} {key}", encoding="utf-8")
    options = [*machine.options[:-1], f"UserKnownHostsFile={other}"]
    assert cli.main(["remote-train", *options, "--status"]) == 2
    assert f'ssh-keygen -R "[127.0.0.1]:{machine.port}"' in capfd.readouterr().err


CONNECTIONS = [
    (["--host", "-oProxyCommand=touch /tmp/x"], "expected a name or an address"),
    (["--host", "x@ssh.runpod.io"], "SSH over exposed TCP"),
    (["--host", "127.0.0.1", "--port", "1"], "Is the machine running"),
    (["--host", "127.0.0.1", "--identity", "/nowhere"], "there is no such file"),
    (["--host", "127.0.0.1", "--status", "--logs"], "one at a time"),
    (["--host", "127.0.0.1", "--fetch", "--config", "stage1"], "leave out the recipe"),
    (["--host", "127.0.0.1", "--to", "x"], "go with --fetch"),
    (["--host", "127.0.0.1", "--status", "--folder", "a b; rm"], "without spaces"),
]


@pytest.mark.parametrize(("arguments", "message"), CONNECTIONS, ids=lambda value: str(value)[-30:])
def test_a_mistake_in_the_connection_is_one_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["remote-train", *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_key_that_the_host_does_not_know_is_told(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    options = machine.options
    options[options.index("--identity") + 1] = str(machine.folder / "host_key")
    assert cli.main(["deploy-runpod", *options]) == 2
    captured = capfd.readouterr()
    assert "Is your public key on the host" in captured.err
    assert "connected" not in captured.out


def test_a_host_without_tiny_audio_is_told(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    options = machine.options
    options[options.index("--folder") + 1] = str(machine.folder / "nothing")
    for question in ("--status", "--attach", "--logs"):
        assert cli.main(["remote-train", *options, question]) == 2
        assert "deploy-runpod puts it there" in capfd.readouterr().err


def test_an_alias_of_the_ssh_configuration_keeps_its_port_and_user(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = {
        "HostName": "127.0.0.1",
        "Port": machine.port,
        "User": getpass.getuser(),
        "IdentityFile": machine.folder / "key",
        "UserKnownHostsFile": machine.folder / "known_hosts",
    }
    lines = "".join(f" {name} {value}\n" for name, value in config.items())
    (tmp_path / "config").write_text(f"Host mypod\n{lines}", encoding="utf-8")
    real = Host.ssh
    monkeypatch.setattr(Host, "ssh", lambda host: [*real(host), "-F", str(tmp_path / "config")])
    assert cli.main(["remote-train", "--host", "mypod", "--folder", str(tmp_path), "--status"]) == 2
    assert f"Tiny Audio is not in {tmp_path} on mypod" in capfd.readouterr().err
    assert Host("mypod", None, None).address == "mypod"
    assert Host("127.0.0.1", None, None).address == "root@127.0.0.1"
    assert Host("mypod", None, "me").address == "me@mypod"


def test_a_long_folder_with_a_space_is_refused_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match="without spaces"):
        find_folder(Host("127.0.0.1", 1, "me"), "/workspace/" + "experiments-2026-" * 20 + " a")
    assert time.monotonic() - began < 1
    for place in ("/workspace/a.b/c-d_e+@", "tiny-audio", "/", "a/"):
        assert find_folder(Host("127.0.0.1", 1, "me"), place) == (place.rstrip("/") or "/")
    for place in ("", "-a", "a//b", "~/a", "a;b", "$HOME"):
        with pytest.raises(UserError):
            find_folder(Host("127.0.0.1", 1, "me"), place or "-")
