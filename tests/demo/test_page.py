"""The demo in a real browser, from an upload to the text, and what it says about recordings that give none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.browser import open_page, requested_urls, wait_until
from tests.documented import ROOT
from tests.hub.recordings import known_clips, trained_model
from tests.tiny_models import SAMPLING_RATE, noise
from tiny_audio import cli
from tiny_audio.demo.listening import Listener, Unusable
from tiny_audio.hub import asr_pipeline
from tiny_audio.hub.asr_longform import Recogniser
from tiny_audio.hub.asr_merging import Recognition
from tiny_audio.subtitles import to_srt
from tiny_audio.train.run import save_model

HOSTILE = "<img src=x onerror=window.hacked=1> ${window.hacked=2} {{7*7}}"
CLIP = 1
UPLOAD = "#speech input[type=file]"


def listener(name: str = "tiny") -> Listener:
    return Listener(name, *trained_model(), asr_pipeline)


def clips_with_pauses(count: int) -> np.ndarray:
    waveforms, _ = known_clips()
    pause = np.zeros(SAMPLING_RATE, np.float32)
    return np.concatenate([part for i in range(count) for part in (waveforms[i % len(waveforms)], pause)])


def offline(waveform: np.ndarray) -> Recognition:
    (result,) = Recogniser(*trained_model(), batch_size=1, word_times=True).recognise([[waveform]])
    assert isinstance(result, Recognition)
    return result


def test_the_text_grows_to_that_of_transcribe() -> None:
    waveform = clips_with_pauses(6)
    states = list(listener().listen(waveform))
    assert [state.recognition is None for state in states] == [True] * (len(states) - 1) + [False]
    expected = offline(waveform)
    assert states[-1].recognition == expected and expected.words
    seconds = [state.heard_seconds for state in states]
    assert seconds == sorted(seconds) and seconds[-1] == pytest.approx(expected.seconds)
    assert all(expected.text.startswith(state.text.rstrip()) for state in states)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_no_recordings_are_left_when_the_terminal_is_closed(tmp_path: Path) -> None:
    save_model(*trained_model(), tmp_path / "model")
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tiny_audio", "demo", str(tmp_path / "model"), "--port", "0"]
    demo = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )
    assert demo.stdout is not None and "open http" in demo.stdout.readline()
    assert list((tmp_path / "temporary").glob("tiny-audio-demo-*"))
    demo.send_signal(signal.SIGHUP)
    demo.communicate(timeout=30)
    assert not list((tmp_path / "temporary").glob("tiny-audio-demo-*"))


def test_work_ends_when_nobody_waits_for_it() -> None:
    states = listener().listen(clips_with_pauses(400))
    next(states)
    states.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "listen"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.wav", b"hello", "a.wav: is not audio that can be read"),
        ("empty.mp3", b"", "empty.mp3: is empty (0 bytes)."),
        ("long.wav", noise(3.0, 0), "long.wav: lasts 3.0 s, longer than the limit of 2 s."),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        soundfile.write(path, content, SAMPLING_RATE)
    with pytest.raises(Unusable) as caught:
        listener().read(str(path), max_seconds=2.0)
    assert str(caught.value).startswith(message) and str(tmp_path) not in str(caught.value)


def test_without_gradio_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "outputs/nano/model"]) == 2
    assert 'pip install "tiny-audio[demo]"' in capsys.readouterr().err


# From here on in the browser.


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    waveforms, _ = known_clips()
    for name, waveform in {
        "clip": waveforms[CLIP],
        "other": waveforms[2],
        "silence": np.zeros(32000),
    }.items():
        soundfile.write(folder / f"{name}.wav", waveform, SAMPLING_RATE)
    (folder / "text.wav").write_text("this is not audio", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tiny_audio.demo import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        examples = {"the other clip": str(recordings / "other.wav")}
        blocks = page.build_page([listener(), listener(HOSTILE)], examples, "Tiny")
        _, address, _ = page.launch(blocks, prevent_thread_lock=True, quiet=True)
        yield address
        blocks.close(verbose=False)


def upload(browser: Any, address: str, file: Path, width: int = 1280) -> None:
    open_page(browser, address, width)
    wait_until(browser, f"document.querySelector('{UPLOAD}')")
    browser.find_element("css selector", UPLOAD).send_keys(str(file))


def shown(browser: Any, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", f".tiny-audio {selector}")]


@pytest.mark.parametrize("width", [1280, 360])
def test_an_upload_becomes_text_without_errors_or_other_hosts(
    browser: Any, address: str, recordings: Path, width: int
) -> None:
    requested_urls(browser), browser.get_log("browser")
    upload(browser, address, recordings / "clip.wav", width)
    wait_until(browser, "document.querySelectorAll('.tiny-audio .downloads').length === 2")
    assert shown(browser, ".transcript") == [known_clips()[1][CLIP]] * 2
    assert shown(browser, "h3") == ["tiny", HOSTILE]
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    columns = [box.location["x"] for box in browser.find_elements("css selector", ".tiny-audio section")]
    assert (columns[0] < columns[1]) == (width > 500), "side by side, and one below the other on a phone"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert {url for url in requested_urls(browser) if not url.startswith(address)} == set()


def test_a_word_plays_from_where_it_is_said_and_subtitles_can_be_saved(
    browser: Any, address: str, recordings: Path, tmp_path: Path
) -> None:
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    upload(browser, address, recordings / "clip.wav")
    wait_until(browser, "document.querySelectorAll('.tiny-audio .downloads').length === 2")
    recognition = offline(known_clips()[0][CLIP])
    word = browser.find_elements("css selector", ".tiny-audio section:first-child .word")[1]
    start = float(word.get_attribute("data-start"))
    assert start == pytest.approx(recognition.words[1].start, abs=0.02) and start > 0
    audio = "document.querySelector('#speech audio')"
    wait_until(browser, f"{audio}.readyState >= 1")
    browser.execute_script(
        f"window.started = []; {audio}.addEventListener('play', e => started.push(e.target.currentTime))"
    )
    word.click()
    assert wait_until(browser, "started.length && started[0]") == pytest.approx(start, abs=0.01)

    browser.execute_script("document.querySelector('.tiny-audio .downloads a').click()")
    saved = tmp_path / "clip.srt"
    deadline = time.monotonic() + 8
    while not saved.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
    assert saved.read_text(encoding="utf-8") == to_srt(recognition)


def test_an_example_is_written_down(browser: Any, address: str) -> None:
    open_page(browser, address)
    example = "[...document.querySelectorAll('button')].find(b => b.textContent.includes('the other clip'))"
    wait_until(browser, example).click()
    wait_until(browser, "document.querySelectorAll('.tiny-audio .downloads').length === 2")
    assert shown(browser, ".transcript")[0] == known_clips()[1][2]


@pytest.mark.parametrize(
    ("name", "message"),
    [("silence", "No speech was found"), ("text", "text.wav: is not audio that can be read")],
)
def test_what_gives_no_text_is_said_on_the_page(
    browser: Any, address: str, recordings: Path, name: str, message: str
) -> None:
    upload(browser, address, recordings / f"{name}.wav")
    wait_until(browser, "document.querySelector('.tiny-audio .problem')")
    assert shown(browser, ".problem")[0].startswith(message)
