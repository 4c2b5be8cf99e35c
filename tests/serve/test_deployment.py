"""The files for several servers: options that the command takes, and limits that fit each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from tests.documented import ROOT
from tiny_audio.serve.command import serve_command

DEPLOY = ROOT / "deploy"


def options() -> dict[str, object]:
    """What the servers of compose.yaml are started with, as the command's own parser reads it."""
    program, name, *arguments = compose()["services"]["server"]["command"]
    assert (program, name) == ("tiny-audio", "serve")
    app = typer.Typer(add_completion=False)
    app.command()(serve_command)
    return typer.main.get_command(app).make_context("serve", arguments).params


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_the_proxy_waits_longer_and_takes_a_little_more_than_its_servers() -> None:
    caddyfile = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
    seconds = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)s", caddyfile)}
    (megabytes,) = map(int, re.findall(r"max_size (\d+)MB", caddyfile))
    given = options()
    assert seconds["read_body"] > given["request_timeout"] < seconds["response_header_timeout"]
    assert given["max_upload_megabytes"] + 1 <= megabytes <= given["max_upload_megabytes"] + 10
    grace = compose()["services"]["server"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > given["request_timeout"]
    assert given["host"] == "0.0.0.0" and given["port"] == 8000 and "server 8000" in caddyfile


def test_no_key_is_written_down() -> None:
    environment = compose()["services"]["server"]["environment"]
    assert environment["TINY_AUDIO_API_KEY"].startswith("${TINY_AUDIO_API_KEY:?")
    assert "KEY" not in " ".join(compose()["services"]["server"]["command"])


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
@pytest.mark.parametrize("site", ["", "speech.example.org"])
def test_caddy_takes_the_file(site: str, tmp_path: Path) -> None:
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
    environment = {
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin:/usr/local/bin",
        **({"SITE": site} if site else {}),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_image_is_made_from_the_package_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "all else of a checkout stays out: runs, recordings, keys"
    assert set(rules[1:]) == {"!tiny_audio", "!pyproject.toml", "!README.md", "!LICENSE", "**/__pycache__"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"!{project['readme']}" in rules
