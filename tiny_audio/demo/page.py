"""The demo's page: record, upload or choose speech, watch the text appear, click its words.

No telemetry, and nothing from other hosts. Also part of a Space, where Tiny Audio is not installed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio

from tiny_audio.demo.listening import SAMPLING_RATE, Listener, Unusable
from tiny_audio.demo.transcript import Column, message, render

FOLDER = Path(__file__).parent
MAX_UPLOAD = "300mb"
LEAST_SECONDS_BETWEEN_UPDATES = 0.1
KEPT_SECONDS = 3600  # recordings stay on this machine's disk for so long, to be played
FONTS = ["system-ui", "sans-serif"]  # the device's own: gradio's would come from another host


def build_page(listeners: Sequence[Listener], examples: dict[str, str], title: str) -> gradio.Blocks:
    """The page of one model, or of two that are compared.

    Args:
        examples: audio files by what is said in them.
    """

    def transcribe(path: str | None) -> Iterator[str]:
        if path is None:
            yield ""
            return
        yield from updates(listeners, path)

    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(f"# {title}\nRecord or upload speech, and read what was said.")
        audio = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Speech",
            elem_id="speech",
            editable=False,
            buttons=[],  # the one to share sends the recording to another host
            waveform_options={
                "show_recording_waveform": False
            },  # the browser's own player, which page.js moves
        )
        stop = gradio.Button(visible="hidden", elem_id="stop")  # pressed by the one beside the progress bar
        transcript = gradio.HTML(apply_default_css=False, elem_id="transcript")
        run: dict[str, Any] = {
            "fn": transcribe,
            "inputs": audio,
            "outputs": transcript,
            "show_progress": "hidden",
        }
        runs: list[Any] = [audio.upload(**run), audio.stop_recording(**run)]
        if examples:
            shown = gradio.Dataset(
                components=[audio],
                samples=[[path] for path in examples.values()],
                label="Or try one of these",
                sample_labels=list(examples),
                type="values",
            )
            runs.append(shown.click(lambda row: row[0], shown, audio, show_progress="hidden").then(**run))
        audio.clear(lambda: "", outputs=transcript, cancels=runs, queue=False, show_progress="hidden")
        stop.click(None, cancels=runs)
    return page


def updates(listeners: Sequence[Listener], path: str) -> Iterator[str]:
    """HTML of one recording as it is written down by each model in turn; the last one is the whole."""
    try:
        waveform = listeners[0].read(path)
    except Unusable as error:
        yield message(str(error))
        return
    columns = [Column(listener.name) for listener in listeners]
    name, seconds = Path(path).name, len(waveform) / SAMPLING_RATE
    shown_at = 0.0
    for listener, column in zip(listeners, columns, strict=True):
        try:
            for state in listener.listen(waveform):
                column.text, column.heard_seconds = state.text, state.heard_seconds
                column.elapsed_seconds, column.recognition = state.elapsed_seconds, state.recognition
                if column.is_done or time.monotonic() - shown_at > LEAST_SECONDS_BETWEEN_UPDATES:
                    shown_at = time.monotonic()
                    yield render(columns, seconds, name)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            column.problem = f"This model could not write it down ({reason})."
            yield render(columns, seconds, name)


def launch(page: gradio.Blocks, **options: Any) -> tuple[Any, str, str | None]:
    """Serve the page; options are those of gradio's `launch`. Returns what that does: app, address, shared address."""
    return page.queue(default_concurrency_limit=1).launch(
        max_file_size=MAX_UPLOAD,
        theme=gradio.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        head="".join(  # gradio's own parameter for CSS confines it to a part of the page
            f"<{tag}>{(FOLDER / name).read_text(encoding='utf-8')}</{tag}>"
            for tag, name in (("style", "page.css"), ("script", "page.js"))
        ),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        **options,
    )
