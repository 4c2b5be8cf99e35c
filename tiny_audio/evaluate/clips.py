"""Sound for a report: short MP3s inside the page, and the outline that is drawn of each."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiny_audio.data.source import Source
from tiny_audio.evaluate.providers import SAMPLING_RATE
from tiny_audio.evaluate.results import EvalResult

logger = logging.getLogger(__name__)

AudioReader = Callable[[str], "NDArray[np.float32] | None"]

MAX_CLIP_SECONDS = 20.0
MAX_TOTAL_BYTES = 6_000_000  # of MP3: about 8 MB of page, some 20 minutes
# 40 kbit/s at a constant rate: speech stays clear, and a browser knows the length without reading it all.
COMPRESSION_LEVEL = 0.8
NUM_OUTLINE_POINTS = 300
OUTLINE_HEIGHT = 40


@dataclass(frozen=True)
class Clip:
    """A sound as a page holds it. `seconds` is what can be heard, `whole_seconds` what the recording has."""

    data_uri: str
    outline: str
    seconds: float
    whole_seconds: float

    @property
    def is_cut(self) -> bool:
        """Whether the recording goes on after the clip."""
        return self.whole_seconds > self.seconds


class ClipMaker:
    """Makes clips until the page has as much sound as it may. `num_missing` and `num_refused` count the rest."""

    def __init__(self, read_audio: AudioReader, max_total_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._read_audio = read_audio
        self._bytes_left = max_total_bytes
        self.num_made = self.num_missing = self.num_refused = 0

    def make(self, utterance_id: str) -> Clip | None:
        """The clip of an utterance, or None where it has no audio or the page is full."""
        if self._bytes_left <= 0:
            self.num_refused += 1
            return None
        waveform = self._read_audio(utterance_id)
        if waveform is None or not len(waveform) or not np.isfinite(waveform).all():
            self.num_missing += 1
            return None
        heard = waveform[: int(MAX_CLIP_SECONDS * SAMPLING_RATE)]
        encoded = encode_mp3(heard)
        if len(encoded) > self._bytes_left:
            self._bytes_left = 0
            self.num_refused += 1
            return None
        self._bytes_left -= len(encoded)
        self.num_made += 1
        return Clip(
            data_uri="data:audio/mpeg;base64," + base64.b64encode(encoded).decode("ascii"),
            outline=outline_path(heard),
            seconds=len(heard) / SAMPLING_RATE,
            whole_seconds=len(waveform) / SAMPLING_RATE,
        )


def encode_mp3(waveform: NDArray[np.float32]) -> bytes:
    """A 16 kHz mono waveform (S,) as MP3, which every browser plays."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(
        file,
        np.clip(waveform, -1.0, 1.0),
        SAMPLING_RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=COMPRESSION_LEVEL,
    )
    return file.getvalue()


def outline_path(waveform: NDArray[np.float32]) -> str:
    """An SVG path around the peaks of a waveform (S,), `NUM_OUTLINE_POINTS` wide, `OUTLINE_HEIGHT` high.

    The loudest peak reaches the edge: a quiet recording is drawn as tall as a loud one.
    """
    parts = np.array_split(np.abs(waveform), NUM_OUTLINE_POINTS)
    peaks = np.array([part.max() if len(part) else 0.0 for part in parts])
    middle = OUTLINE_HEIGHT / 2
    heights = np.maximum(peaks / max(float(peaks.max()), 1e-6) * (middle - 1), 0.4)
    above = [f"{x} {middle - height:.1f}" for x, height in enumerate(heights)]
    below = [f"{x} {middle + height:.1f}" for x, height in enumerate(heights)]
    return "M" + "L".join(above + below[::-1]) + "Z"


class _SourceReader:
    """Opens its source at the first call; what goes wrong costs only the sound, and is warned of once."""

    def __init__(self, spec: str, source: Source | None) -> None:
        self._spec = spec
        self._source = source
        self._rows: dict[str, int] | None = None
        self._has_warned = False

    def __call__(self, utterance_id: str) -> NDArray[np.float32] | None:
        try:
            if self._rows is None:
                self._rows = {}  # a source that cannot be opened is not tried again for every utterance
                if self._source is None:
                    from tiny_audio.data.sources import open_source

                    self._source = open_source(self._spec)
                self._rows = {item.id: row for row, item in enumerate(self._source.utterances())}
            if self._source is None or utterance_id not in self._rows:
                return None
            utterance = self._source.utterances()[self._rows[utterance_id]]
            return np.asarray(self._source.read(utterance), dtype=np.float32)
        except Exception as error:  # a source is files, archives or a network: anything can be wrong with it
            if not self._has_warned:
                logger.warning("The report lacks the sound of some utterances: %s", error)
            self._has_warned = True
            return None


def audio_reader(result: EvalResult, source: Source | None = None) -> AudioReader:
    """Reads the audio of an evaluation by utterance id, from `source` or else the SOURCE that its `data` names.

    The reader gives a 16 kHz mono waveform (S,), or None where there is none or it cannot be read.
    """
    return _SourceReader(result.data, source)
