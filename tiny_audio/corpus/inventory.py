"""What each voice is asked to say, and a cache of it on disk, so that the corpus can be mixed anew in minutes."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from tiny_audio.corpus import engines, kokoro
from tiny_audio.corpus.speech import DIGITS, Recording, Word, resample
from tiny_audio.corpus.voices import Voice

SAMPLING_RATE = 16_000


@dataclass(frozen=True)
class Item:
    """A recording of a voice and the words in it. `connected` is False where every word stands alone."""

    words: tuple[str, ...]
    connected: bool
    recording: Recording


def requests(voice: Voice) -> list[kokoro.Request | tuple[tuple[str, ...], str, dict[str, float]]]:
    if voice.engine == "kokoro":
        return list(kokoro.plan(voice.id.removeprefix("kokoro-"), voice.accents, DIGITS))
    rng = random.Random(f"inventory {voice.id}")
    settings: list = []
    for _ in range(3 if voice.engine in ("espeak", "piper") else 2):
        settings += [((digit,), " ", _settings(voice, rng)) for digit in DIGITS]
    for _ in range(5):
        settings.append((tuple(rng.sample(DIGITS, 5)), ". ", _settings(voice, rng)))
    for _ in range(30):
        words = [rng.choice(DIGITS) for _ in range(rng.choice((2, 3, 4, 4, 5, 5, 6, 7, 8, 10)))]
        if rng.random() < 0.25:
            words[1] = words[0]
        settings.append((tuple(words), rng.choice((" ", " ", " ", ", ")), _settings(voice, rng)))
    return settings


def _settings(voice: Voice, rng: random.Random) -> dict[str, float]:
    """How fast, how high and how lively: within what each engine can do without breaking."""
    if voice.engine == "espeak":
        return {
            "rate": rng.randint(105, 190),
            "pitch": rng.randint(25, 75),
            "range": rng.randint(15, 80),
            "gap": rng.choice((0, 0, 1, 3, 8)),
        }
    if voice.engine == "piper":
        return {"stretch": round(rng.uniform(0.85, 1.5), 2), "noise": round(rng.uniform(0.5, 0.9), 2)}
    pitch = {"kal": (85, 130), "ked": (85, 130), "awb": (105, 150), "rms": (80, 115), "slt": (150, 200)}[
        voice.speaker
    ]
    return {"stretch": round(rng.uniform(0.9, 1.5), 2), "pitch": rng.randint(*pitch)}


@functools.cache
def _kokoro(styles: Path) -> kokoro.Kokoro:
    return kokoro.Kokoro(styles)


def inventory(voice: Voice, cache: Path, styles: Path | None) -> list[Item]:
    """Everything the voice says, at 16 kHz; what the cache lacks is synthesised and added to it."""
    items = []
    for index, request in enumerate(requests(voice)):
        key = hashlib.blake2b(repr((request, voice.mixture)).encode(), digest_size=4).hexdigest()
        sound, times = (cache / f"{voice.id}-{index:03d}-{key}.{suffix}" for suffix in ("wav", "json"))
        words = request.words if isinstance(request, kokoro.Request) else request[0]
        separator = request.separator if isinstance(request, kokoro.Request) else request[1]
        if not times.exists():
            if isinstance(request, kokoro.Request):
                assert styles is not None
                recording = _kokoro(styles).speak(request, dict(voice.mixture))
            else:
                recording = engines.speaker(voice.engine)(voice.name, list(words), separator, request[2])
            soundfile.write(sound, recording.audio, recording.sampling_rate, subtype="PCM_16")
            rows = (
                None
                if recording.words is None
                else [(word.text, word.start, word.end) for word in recording.words]
            )
            times.write_text(json.dumps(rows))
        audio, rate = soundfile.read(sound, dtype="float32")
        rows = json.loads(times.read_text())
        spans = None if rows is None else [Word(*row) for row in rows]
        recording = resample(Recording(audio, rate, spans), SAMPLING_RATE)
        if np.abs(recording.audio).max(initial=0.0) < 0.01:
            continue  # an engine that fell silent
        alone = len(words) == 1 or ((". " in separator or ", " in separator) and spans is not None)
        items.append(Item(words, len(words) > 1, recording))
        if alone and len(words) > 1:
            items.append(Item(words, False, recording))
    return items
