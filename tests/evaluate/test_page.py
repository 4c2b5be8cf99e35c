"""The page in a real browser: Chromium opens it from a file, as a person would."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser import open_page, requested_urls, wait_until
from tests.evaluate.listener import write_manifest
from tests.evaluate.test_findings import make_result
from tiny_audio.evaluate import clips, page
from tiny_audio.evaluate.page import audio_reader, render_page, write_page
from tiny_audio.evaluate.results import EvalResult

HOSTILE = "</script><script>window.hacked=1</script> <img src=x onerror=window.hacked=1> \"' \u202eabc \x1b[31m \ud800"
HOSTILE_ID = "../a/b</bdi><script>window.hacked=1</script>"
NUM_ROWS = 130
CLIP_SECONDS = 3.0


def read_tone(utterance_id: str) -> NDArray[np.float32] | None:
    """Three seconds of a tone; one utterance has no sound."""
    if utterance_id == "u001":
        return None
    return (0.3 * np.sin(np.arange(int(CLIP_SECONDS * 16_000)) * 0.1)).astype(np.float32)


def example(changed: bool = False) -> EvalResult:
    rows = [
        (
            f"u{index:03}",
            f"the number is {index}",
            "the number is" if index % 10 == 1 + changed else f"the number is {index}",
        )
        for index in range(NUM_ROWS)
    ]
    long_word = "a" * 300
    rows += [
        (HOSTILE_ID, f"one two {long_word}", HOSTILE),
        ("silent", "", "thank you"),
        ("rtl", "שלום עולם", "שלום"),
    ]
    return make_result(rows)


def records_of(html: str) -> Any:
    start = html.index('id="records">') + len('id="records">')
    return json.loads(html[start : html.index("</script>", start)])


def test_hostile_text_stays_text() -> None:
    html = render_page([example()], read_tone)
    assert html.count("<script") == 2 and "<img" not in html and "\u202e" not in html and "\x1b" not in html
    assert html.encode("utf-8")
    found = next(record for record in records_of(html) if record["i"] == HOSTILE_ID)
    _, reference, hypothesis, operations, _ = found["r"][0]
    assert len(reference.split(" ")) == sum(operation in "=SD" for operation in operations)
    assert len(hypothesis.split(" ")) == sum(operation in "=SI" for operation in operations)


def test_words_divided_by_rare_spaces_stay_as_many() -> None:
    result = make_result([("a", "one\x1ctwo\u2003three\ufefffour\x85five", "one two")])
    _, reference, _, operations, _ = records_of(render_page([result], read_tone))[0]["r"][0]
    assert len(reference.split(" ")) == sum(operation in "=SD" for operation in operations)


def test_sound_ends_where_the_page_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = clips.ClipMaker(read_tone, max_total_bytes=40_000)
    made = [maker.make("u002") for _ in range(5)]
    assert made[0] is not None and made[-1] is None
    assert maker.num_made + maker.num_refused == 5 and maker.num_made == 2
    assert maker.make("u002") is None
    monkeypatch.setattr(clips, "MAX_CLIP_SECONDS", 1.0)
    cut = clips.ClipMaker(read_tone).make("u002")
    assert cut is not None and cut.is_cut and (cut.seconds, cut.whole_seconds) == (1.0, CLIP_SECONDS)


def test_audio_is_found_in_the_source_by_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = write_manifest(tmp_path, [("first", 4000, "one"), ("second", 5000, "two")])
    read = audio_reader(EvalResult(example().metrics, [], "basic", "model", str(manifest)))
    waveform = read("second")
    assert waveform is not None and waveform.dtype == np.float32 and len(waveform) == 5000
    assert read("third") is None
    (tmp_path / "first.wav").unlink()
    assert read("first") is None and "lacks the sound" in caplog.text
    gone = audio_reader(EvalResult(example().metrics, [], "basic", "model", str(tmp_path / "gone")))
    assert gone("first") is None and gone("second") is None


@pytest.mark.parametrize(
    ("value", "limit"), [(0, 0.01), (0.01, 0.01), (0.175, 0.2), (0.21, 0.3), (0.9, 1.0), (1.7, 2.0)]
)
def test_axes_end_at_round_numbers(value: float, limit: float) -> None:
    assert page.axis_limit(value) == pytest.approx(limit)


def test_no_errors_no_utterances_and_three_runs(tmp_path: Path) -> None:
    assert "No utterance has an error." in render_page([make_result([("a", "one", "one")])], read_tone)
    assert "0 of 0" not in render_page([make_result([])], read_tone)
    with pytest.raises(ValueError, match="one evaluation or two, not 3"):
        write_page([example()] * 3, tmp_path / "report.html", read_tone)
    assert not list(tmp_path.iterdir())


# From here on in the browser.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.html of one run and compare.html of two."""
    folder = tmp_path_factory.mktemp("pages")
    write_page([example()], folder / "report.html", read_tone)
    write_page([example(), example(changed=True)], folder / "compare.html", read_tone)
    return folder


@pytest.mark.parametrize("name", ["report.html", "compare.html"])
@pytest.mark.parametrize("width", [1280, 360])
def test_opens_without_errors_requests_or_sideways_scrolling(
    browser: Any, folder: Path, name: str, width: int
) -> None:
    browser.get_log("performance"), browser.get_log("browser")
    open_page(browser, (folder / name).as_uri(), width)
    wait_until(browser, "document.querySelectorAll('#list > li').length === 50")
    wait_until(browser, "document.querySelector('audio').readyState >= 1")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []
    assert requested_urls(browser) == {(folder / name).as_uri()}


def test_the_list_can_be_searched_filtered_and_turned(browser: Any, folder: Path) -> None:
    open_page(browser, (folder / "report.html").as_uri())

    def status() -> str:
        return browser.execute_script("return document.getElementById('status').textContent")

    def enter(field: str, value: str) -> None:
        browser.execute_script(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', {bubbles: true}))",
            field,
            value,
        )

    assert status() == "133 of 133 utterances"
    browser.execute_script("document.getElementById('next').click()")
    assert browser.execute_script("return document.querySelector('#list .id').textContent") == "u050"
    browser.find_element("id", "query").send_keys("Number IS 7")
    assert status() == "11 of 133 utterances"  # 7 and 70 to 79
    enter("show", "errors")
    assert status() == "1 of 133 utterances"
    assert (
        browser.execute_script("return document.querySelector('#list .diff').innerText").strip()
        == "the number is −71"
    )
    enter("query", "")
    assert status() == "16 of 133 utterances"
    enter("show", "suspected")
    assert "The reference is empty, yet 2 words were written." in browser.page_source
    enter("order", "errors")
    enter("show", "failed")
    assert status() == "0 of 133 utterances"


def test_a_player_is_reached_by_keyboard_plays_and_shows_where(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, (folder / "report.html").as_uri())
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the utterances"
    for _ in range(20):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.get_attribute("class") == "play":
            break
    button = browser.switch_to.active_element
    assert button.get_attribute("aria-label") == f"Play {HOSTILE_ID}"
    audio = "document.querySelector('.player audio')"
    assert wait_until(browser, f"{audio}.duration") == pytest.approx(CLIP_SECONDS, abs=0.15)

    cursor = "Number(document.querySelector('.player .cursor').getAttribute('x1'))"
    assert browser.execute_script(f"return {cursor}") == 0
    button.send_keys(Keys.ENTER)
    first = wait_until(browser, f"{cursor} > 2 && {cursor}")
    assert wait_until(browser, f"{cursor} > {first} + 2 && {cursor}") > first
    assert button.get_attribute("aria-label").startswith("Pause")
    button.send_keys(Keys.ENTER)
    assert wait_until(browser, f"{audio}.paused")

    button.send_keys(Keys.TAB)
    slider = browser.switch_to.active_element
    assert slider.get_attribute("type") == "range"
    slider.send_keys(Keys.END)
    wait_until(browser, f"{cursor} > 290")


def test_without_javascript_the_headline_and_the_worst_are_there(browser: Any, folder: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, (folder / "report.html").as_uri())
        time.sleep(0.2)
        text = browser.find_element("tag name", "body").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "word error rate" in text and "number is −71" in text and "The list needs JavaScript" in text
    assert browser.find_element("css selector", ".player audio").get_attribute("controls")


def test_a_comparison_shows_wins_and_losses_with_both_texts(browser: Any, folder: Path) -> None:
    open_page(browser, (folder / "compare.html").as_uri())
    text = browser.find_element("id", "wins").text
    assert "13 utterances: B makes fewer errors than A. The 12 largest:" in text
    card = browser.find_element("css selector", "#wins .card:nth-child(2)").text
    assert "A\n" in card or "A 1 error" in card
    assert "the number is −11" in card and "the number is 11" in card
    assert "13 utterances" in browser.find_element("id", "losses").text
    assert "The interval holds 0" in browser.find_element("class name", "verdict").text
