"""Downloads, against a real server that cuts, changes, lies and goes away."""

from __future__ import annotations

import hashlib
import random
import re
import socket
from pathlib import Path

import httpx
import pytest

from tests.setup.file_server import FileServer, cut_after, endless, serve, status, trickle
from tiny_audio.data.sources import open_source
from tiny_audio.errors import UserError
from tiny_audio.setup import download, samples
from tiny_audio.setup.download import Refused, RemoteFile, Unavailable, fetch

CONTENT = random.Random(1).randbytes(50_000)
OTHER = random.Random(2).randbytes(50_000)


def wanted(url: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile("file.wav", url, hashlib.sha256(content).hexdigest(), len(content))


class Fetching:
    """Fetches into a folder, and keeps how long it would have slept and what it told of its progress."""

    def __init__(self, folder: Path):
        self.folder, self.waits, self.sizes = folder, [], []  # type: ignore[var-annotated]

    def __call__(self, file: RemoteFile) -> bytes:
        with httpx.Client(timeout=5, trust_env=False) as client:
            return fetch(client, file, self.folder, self.sizes.append, self.waits.append).read_bytes()

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def fetching(tmp_path: Path) -> Fetching:
    return Fetching(tmp_path)


def test_a_file_is_fetched_once(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        assert fetching(wanted(server.url)) == CONTENT
        assert fetching(wanted(server.url)) == CONTENT
        assert len(server.requests) == 1
    assert fetching.names() == ["file.wav"] and fetching.sizes[-1] == len(CONTENT)


def test_a_damaged_file_is_fetched_again(fetching: Fetching) -> None:
    (fetching.folder / "file.wav").write_bytes(CONTENT[:-1] + b"?")
    with FileServer(CONTENT) as server:
        assert fetching(wanted(server.url)) == CONTENT


def test_a_cut_connection_goes_on_where_it_was(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [cut_after(20_000), cut_after(10_000)]
        assert fetching(wanted(server.url)) == CONTENT
        assert server.asked_ranges() == [None, "bytes=20000-", "bytes=30000-"]
        assert server.requests[1][1]["if-range"] == '"one"'
    assert fetching.waits == [1.0, 2.0] and fetching.names() == ["file.wav"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [cut_after(1_000)] * download.ATTEMPTS
        with pytest.raises(Unavailable, match="4,000 of 50,000 bytes"):
            fetching(wanted(server.url))
        assert fetching.names() == ["file.wav.part", "file.wav.part.etag"]
        assert fetching(wanted(server.url)) == CONTENT
        assert server.asked_ranges()[-1] == "bytes=4000-"
    assert fetching.names() == ["file.wav"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_name_for_the_version_it_begins_again(etag: str | None, fetching: Fetching) -> None:
    with FileServer(CONTENT, etag=etag) as server:
        server.behaviours = [cut_after(20_000)]
        assert fetching(wanted(server.url)) == CONTENT
        assert server.asked_ranges() == [None, None]


def test_a_server_without_ranges_begins_again(fetching: Fetching) -> None:
    with FileServer(CONTENT, ranges=False) as server:
        server.behaviours = [cut_after(20_000)]
        assert fetching(wanted(server.url)) == CONTENT
        assert server.asked_ranges() == [None, "bytes=20000-"]


def test_a_file_that_changed_meanwhile_is_not_glued(fetching: Fetching) -> None:
    with FileServer(OTHER, etag='"old"') as server:
        server.behaviours = [cut_after(20_000)] * download.ATTEMPTS
        with pytest.raises(Unavailable):
            fetching(wanted(server.url))
        server.content, server.etag = CONTENT, '"new"'
        assert fetching(wanted(server.url)) == CONTENT
        assert server.requests[-1][1]["if-range"] == '"old"'


def test_a_server_that_glues_is_found_out_by_the_checksum(fetching: Fetching) -> None:
    with FileServer(OTHER) as server:  # the same ETag for another content
        server.behaviours = [
            cut_after(20_000),
            lambda handler: (setattr(server, "content", CONTENT), serve(handler)),
        ]
        assert fetching(wanted(server.url)) == CONTENT
        assert server.asked_ranges() == [None, "bytes=20000-", None]


def test_errors_that_pass_are_waited_for(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [status(500), status(503, Retry_After="7"), status(429, Retry_After="9" * 400)]
        assert fetching(wanted(server.url)) == CONTENT
    assert fetching.waits == [1.0, 7.0, download.LONGEST_WAIT_SECONDS]


def test_a_server_that_stays_out_of_order_is_given_up(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [status(500)] * 10
        with pytest.raises(Unavailable, match="answers 500"):
            fetching(wanted(server.url))
        assert len(server.requests) == download.ATTEMPTS


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (status(404, b"gone"), "answers 404"),
        (status(403), "answers 403"),
        (status(200, b"<html>", Content_Type="text/html; charset=utf-8"), "log-in"),
        (status(200, b"short"), "announces 5 bytes"),
        (status(200, b"", Content_Length="99999999"), "announces 99999999 bytes"),
        (status(206, CONTENT, Content_Range="bytes 0-49999/50000"), "another part"),
        (status(200, CONTENT, Content_Encoding="gzip"), "compresses"),
        (status(302, Location="file:///etc/passwd"), "not http or https"),
        (status(302, Location="ftp://127.0.0.1/a"), "not http or https"),
        (status(302, Location="http://127.0.0.1:no-port/"), "no address"),
        (status(302), "redirected more than"),  # to itself, again and again
        (endless, "more than the 50,000 bytes"),
    ],
)
def test_what_is_not_the_file_is_refused_at_once(behaviour: object, words: str, fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [behaviour] * 10  # type: ignore[list-item]
        with pytest.raises(Refused, match=words):
            fetching(wanted(server.url))
        assert len(server.requests) <= download.REDIRECTS + 1
    assert fetching.waits == [] and fetching.names() == []


def test_a_wrong_checksum_leaves_nothing(fetching: Fetching) -> None:
    with FileServer(OTHER) as server, pytest.raises(Refused, match=hashlib.sha256(OTHER).hexdigest()):
        fetching(wanted(server.url))
    assert fetching.names() == []


def test_a_shorter_file_than_what_is_there_is_refused(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [cut_after(20_000), status(416)]
        with pytest.raises(Refused, match="shorter"):
            fetching(wanted(server.url))
    assert fetching.names() == []


def test_redirects_are_followed_to_where_they_may_lead(fetching: Fetching) -> None:
    with FileServer(CONTENT) as server:
        server.behaviours = [status(301, Location="/elsewhere/../../x.exe")]
        assert fetching(wanted(server.url)) == CONTENT
    assert fetching.names() == ["file.wav"]


def test_https_is_not_left_for_http(tmp_path: Path) -> None:
    def redirect(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"Location": "http://example.org/file.wav"})

    with (
        httpx.Client(transport=httpx.MockTransport(redirect)) as client,
        pytest.raises(Refused, match="not https"),
    ):
        fetch(client, wanted("https://example.org/file.wav"), tmp_path)


def test_a_trickle_is_given_up(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(download, "SLOWEST_BYTES_A_SECOND", 1_000_000)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    with FileServer(CONTENT) as server:
        server.behaviours = [trickle]
        with pytest.raises(Unavailable, match="too slow"):
            fetching(wanted(server.url))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_network_is_told_soon(fetching: Fetching) -> None:
    with pytest.raises(Unavailable) as caught:
        fetching(wanted(f"http://127.0.0.1:{closed_port()}/file.wav"))
    assert not caught.value.has_answered and len(fetching.waits) == download.ATTEMPTS_WITHOUT_ANSWER - 1


# The table and the command --------------------------------------------------------------------------------------------


def test_the_table_names_commits_and_licences() -> None:
    recordings = samples.read_table()
    assert 3 <= len(recordings) <= 8
    for each in recordings:
        assert re.match(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/", each.file.url)
        assert each.file.url.endswith(f"/{each.file.name}")
        assert each.text and each.licence and each.attribution and each.speaker


ROW = (
    "{url: 'https://a.org/a.wav', sha256: '%s', bytes: 9, text: a, speaker: a, licence: a, attribution: a}"
    % ("0" * 64)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"recordings: {{'../a.wav': {ROW}}}", "plain name"),
        (f"recordings: {{a.exe: {ROW}}}", "plain name"),
        (f"recordings: {{a.wav: {ROW.replace('https', 'file')}}}", "url"),
        (f"recordings: {{a.wav: {ROW.replace('bytes: 9', 'bytes: 900000000')}}}", "bytes"),
        (f"recordings: {{a.wav: {ROW.replace('speaker', 'singer')}}}", "needs"),
        ("other: 1", "recordings"),
        ("[", "not a table"),
    ],
)
def test_a_wrong_table_is_refused(content: str, words: str, tmp_path: Path) -> None:
    table = tmp_path / "table.yaml"
    table.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        samples.read_table(table)


def test_clips_of_the_corpus_are_a_source_of_several_voices(tmp_path: Path) -> None:
    paths = samples.write_corpus_samples(tmp_path / "digits")
    source = open_source(tmp_path / "digits")
    rows = source.utterances()
    assert len(paths) == len(rows) == samples.NUM_DIGIT_CLIPS and all(path.is_file() for path in paths)
    assert len({row.speaker for row in rows}) > 3
    assert all(abs(len(source.read(row)) / 16_000 - row.seconds) < 0.01 for row in rows)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs the command in an empty folder, with a server's files for the table: (exit code, stdout, stderr)."""
    from tiny_audio.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)

    def run(*urls: str) -> tuple[int, str, str]:
        table = [
            samples.Recording(
                RemoteFile(f"{i}.wav", url, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT)),
                "hello",
                "ada",
                "CC0",
                "Ada",
            )
            for i, url in enumerate(urls)
        ]
        monkeypatch.setattr(samples, "read_table", lambda: table)
        code = main(["download-samples"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_fetches_and_describes(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with FileServer(CONTENT) as server:
        code, out, err = run(server.url, server.url)
    assert (code, err) == (0, "")
    speech = tmp_path / "samples" / "speech"
    assert sorted(path.name for path in speech.iterdir()) == [
        "0.wav",
        "1.wav",
        "SOURCES.txt",
        "manifest.jsonl",
    ]
    assert "licence: CC0" in (speech / "SOURCES.txt").read_text(encoding="utf-8")
    assert '"text": "hello"' in (speech / "manifest.jsonl").read_text(encoding="utf-8")
    assert "8 digit strings" in out and "checksum right" in out


def test_without_network_the_embedded_recordings_do(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dead = f"http://127.0.0.1:{closed_port()}/file.wav"
    code, out, err = run(dead, dead, dead)
    assert code == 0 and err.count("not fetched: no answer (ConnectError") == 3
    assert "3 of 3 recordings of people could not be had" in out
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["digits"]
    assert len(open_source(tmp_path / "samples" / "digits").utterances()) == 8


def test_a_file_that_is_not_what_it_should_be_is_an_error(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with FileServer(CONTENT) as good, FileServer(OTHER) as bad:
        code, _, err = run(good.url, bad.url)
    assert code == 2 and "1.wav: not fetched: sha256 is" in err and "error: some addresses" in err
    assert len((tmp_path / "samples/speech/manifest.jsonl").read_text(encoding="utf-8").splitlines()) == 1
