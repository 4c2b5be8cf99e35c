"""Whisper by faster-whisper (CTranslate2), an optional package."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import Waveform, describe_failure, identify_model

LANGUAGE = "en"
BEAM_SIZE = 1
# Whisper's remedy against loops (Radford et al. 2022, section 4.5): what repeats itself or is unlikely is drawn anew.
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
DEVICES = ("auto", "cpu", "cuda")


class FasterWhisperProvider:
    """A CTranslate2 conversion of Whisper: in English and greedy, but for texts that repeat themselves.

    Those are sampled. The seed is fixed, but CTranslate2 draws on from clip to clip: the same clips in the same order
    give the same texts.

    Args:
        model: a `faster_whisper.WhisperModel`.
        source: what `identify_model` says of its files.
    """

    costs_money = False
    price_usd_per_hour: float | None = None
    max_seconds: float | None = None  # it cuts long clips by itself

    def __init__(self, model: Any, source: str) -> None:
        self.model = model
        compute_type = model.model.compute_type
        self.identity = (
            f"faster-whisper {version('faster-whisper')} {source} {model.model.device} {compute_type}"
            f" {LANGUAGE} beams {BEAM_SIZE}, loops drawn anew"
        )

    @classmethod
    def load(cls, model: str, device: str) -> FasterWhisperProvider:
        """A folder (also below $TINY_AUDIO_MODELS), a size, or a hub id. Raises UserError."""
        check_installed()
        if device not in DEVICES:
            raise UserError(f"faster-whisper runs on {', '.join(DEVICES)}, not on {device}.")
        from faster_whisper import WhisperModel
        from faster_whisper.utils import download_model

        from tiny_audio.hub.asr_config import resolve_model_path

        where = resolve_model_path(model)
        try:
            import ctranslate2

            ctranslate2.set_random_seed(0)
            folder = where if Path(where).is_dir() else download_model(where)
            return cls(WhisperModel(folder, device=device, local_files_only=True), identify_model(folder))
        except Exception as error:  # whatever its C++ library says of a folder that holds something else
            raise UserError(
                f"Cannot load the model {model} by faster-whisper: {describe_failure(error)}"
                " (it needs a CTranslate2 conversion: ct2-transformers-converter makes one)"
            ) from error

    def transcribe(self, waveforms: list[Waveform]) -> list[str | Exception]:
        return [self._transcribe_one(waveform) for waveform in waveforms]

    def _transcribe_one(self, waveform: Waveform) -> str | Exception:
        try:
            segments, _ = self.model.transcribe(
                waveform,
                language=LANGUAGE,
                task="transcribe",
                beam_size=BEAM_SIZE,
                temperature=TEMPERATURES,
                condition_on_previous_text=False,
            )
            return " ".join(segment.text.strip() for segment in segments).strip()
        except (RuntimeError, ValueError) as error:
            return error


def check_installed() -> None:
    """Raise UserError with the command that installs faster-whisper where it is missing."""
    if find_spec("faster_whisper") is None:
        raise UserError('faster-whisper is not installed: pip install "tiny-audio[faster-whisper]"')
