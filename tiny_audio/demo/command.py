"""`tiny-audio demo`: a page to speak to a model, in the browser."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from tiny_audio.devices import DeviceOption, Dtype, DtypeOption
from tiny_audio.errors import UserError

NUM_EXAMPLES = 4
EXAMPLE_WORDS = 4  # at least


def demo_command(
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model, such as outputs/nano/model.")],
    second_model: Annotated[
        str | None, typer.Argument(metavar="[MODEL2]", help="Another one, to compare.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Also at a public address for a week, through Gradio's servers.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
) -> None:
    """Open a page where you speak to a model, or to two side by side. Ctrl-C ends it.

    Upload, microphone and examples; the text as it is written; words to click, shaded where the model is unsure; SRT,
    WebVTT and JSON. Nothing leaves this machine, unless you ask for --share.

    \b
    Examples:
      tiny-audio demo outputs/nano/model
      tiny-audio demo outputs/nano/model outputs/other/model --port 8080
    """
    check_gradio()
    from tiny_audio.evaluate.providers import find_model
    from tiny_audio.serve.command import bind

    models = [each for each in (model, second_model) if each is not None]
    for each in models:
        find_model(each)
    with bind("127.0.0.1", port) as free:  # before minutes go into loading
        port = free.getsockname()[1]
    listeners = [load(each, device, dtype) for each in models]
    from tiny_audio.demo import page

    end_as_with_ctrl_c()
    with tempfile.TemporaryDirectory(prefix="tiny-audio-demo-", ignore_cleanup_errors=True) as folder:
        # Recordings go when the demo does, or after a while; the examples are not among them.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "recordings")
        examples = write_examples(Path(folder) / "examples")
        title = " and ".join(listener.name for listener in listeners)
        blocks = page.build_page(listeners, examples, title)
        _, address, shared = page.launch(
            blocks, server_port=port, share=share, prevent_thread_lock=True, quiet=True
        )
        if share and not shared:
            typer.echo("warning: there is no public address; the page is for this machine alone", err=True)
        typer.echo(f"open {shared or address} in a browser; Ctrl-C ends it")
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)


def end_as_with_ctrl_c() -> None:
    """Leave no recordings behind when the process is told to end, or its terminal is closed (unless nohup says no)."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: sys.exit())


def check_gradio() -> None:
    """Raises UserError where the page's package is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('A demo needs the package gradio: pip install "tiny-audio[demo]"')


def load(model: str, device: str, dtype: str) -> Any:
    """A checkpoint as a `Listener`. Raises UserError where there is none."""
    from tiny_audio.demo.listening import Listener
    from tiny_audio.evaluate.providers import TinyAudioProvider
    from tiny_audio.hub import asr_pipeline
    from tiny_audio.serve.command import name_of

    provider = TinyAudioProvider.load(model, device, dtype)
    return Listener(name_of(model), provider.model, provider.processor, asr_pipeline)


def write_examples(folder: Path) -> dict[str, str]:
    """Clips of the embedded corpus, of several voices, as FLAC files; by what is said in them."""
    import soundfile

    from tiny_audio.data.corpus import read_audio, read_index

    folder.mkdir(parents=True, exist_ok=True)
    examples: dict[str, str] = {}
    speakers: set[str] = set()
    for entry in read_index("test"):
        if len(entry.text.split()) >= EXAMPLE_WORDS and entry.speaker not in speakers:
            speakers.add(entry.speaker)
            path = folder / f"example_{len(examples) + 1}.flac"
            soundfile.write(path, *read_audio(entry))
            examples[entry.text] = str(path)
            if len(examples) == NUM_EXAMPLES:
                break
    return examples
