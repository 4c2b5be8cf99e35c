"""False words: what a model writes for silence, noise, tones and music, with the guard and without.

    python benchmarks/non_speech.py [--quick] [MODEL] [--data SOURCE] [--recordings FOLDER]

200 clips of 0.5 to 20 s of ten kinds, made here by other means than the training data's (`tiny_audio.data.non_speech`),
and, with --recordings, every audio file of a folder (music, street noise) besides. The speech of --data shows what the
guard costs: words that it keeps from being written.

`ratio` is the share of clips with words without the guard, over the share with it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import print_table, write_result

from tiny_audio.data.folder import AUDIO_SUFFIXES
from tiny_audio.data.sources import open_source
from tiny_audio.evaluate.normalize import default_normalizer
from tiny_audio.evaluate.scoring import score_texts, summarize
from tiny_audio.hub.asr_audio import load_audio
from tiny_audio.hub.asr_checkpoint import load_model
from tiny_audio.hub.asr_longform import transcribe_waveforms

RATE = 16_000
NUM_CLIPS, QUICK_CLIPS = 200, 40
LONGEST_RECORDING_SECONDS = 30.0
BATCH_SIZE = 8


def silence(length: int, draw: np.random.Generator) -> np.ndarray:
    return draw.normal(size=length) * 10 ** draw.uniform(-4.5, -3) * (draw.random() < 0.7)


def white(length: int, draw: np.random.Generator) -> np.ndarray:
    return draw.normal(size=length)


def pink(length: int, draw: np.random.Generator, power: float = 0.5) -> np.ndarray:
    frequencies = np.fft.rfftfreq(length, 1 / RATE)
    frequencies[0] = frequencies[1]
    return np.fft.irfft(np.fft.rfft(draw.normal(size=length)) / frequencies**power, length)


def brown(length: int, draw: np.random.Generator) -> np.ndarray:
    return pink(length, draw, 1.0)


def hum(length: int, draw: np.random.Generator) -> np.ndarray:
    time, mains = np.arange(length) / RATE, draw.choice([50, 60])
    waves = sum(np.sin(2 * np.pi * mains * k * time + draw.uniform(0, 6)) / k for k in range(1, 6))
    return waves + 0.05 * draw.normal(size=length)


def tone(length: int, draw: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * draw.uniform(100, 4000) * np.arange(length) / RATE)


def sweep(length: int, draw: np.random.Generator) -> np.ndarray:
    time, (first, last) = np.arange(length) / RATE, draw.uniform(80, 4000, 2)
    return np.sin(2 * np.pi * (first * time + (last - first) * time**2 * RATE / (2 * length)))


def _note(pitch: float, length: int, draw: np.random.Generator) -> np.ndarray:
    time = np.arange(length) / RATE
    waves = sum(np.sin(2 * np.pi * pitch * k * time) / k**1.5 for k in range(1, 7))
    return waves * np.minimum(1, time / 0.01) * np.exp(-time * draw.uniform(1, 6))


def chords(length: int, draw: np.random.Generator) -> np.ndarray:
    sound, place = np.zeros(length), 0
    while place < length:
        part = min(length - place, int(draw.uniform(0.3, 1.5) * RATE))
        root = 110 * 2 ** (draw.integers(0, 24) / 12)
        for step in draw.choice([[0, 4, 7], [0, 3, 7], [0, 5, 9]]):
            sound[place : place + part] += _note(root * 2 ** (step / 12), part, draw)
        place += part
    return sound


def band(length: int, draw: np.random.Generator) -> np.ndarray:
    """A melody over drums."""
    sound, place = np.zeros(length), 0
    while place < length:
        part = min(length - place, int(draw.choice([0.15, 0.3, 0.6]) * RATE))
        sound[place : place + part] += _note(
            220 * 2 ** (draw.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12), part, draw
        )
        place += part
    for beat in range(0, length - 2000, int(0.3 * RATE)):
        sound[beat : beat + 2000] += 0.5 * draw.normal(size=2000) * np.exp(-np.arange(2000) / 300)
    return sound


def clicks(length: int, draw: np.random.Generator) -> np.ndarray:
    sound = 1e-3 * draw.normal(size=length)
    for place in draw.integers(0, length - 200, max(1, 2 * length // RATE)):
        sound[place : place + 200] += draw.normal(size=200) * np.exp(-np.arange(200) / 30)
    return sound


KINDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    kind.__name__: kind for kind in (silence, white, pink, brown, hum, tone, sweep, chords, band, clicks)
}


def made_clips(count: int) -> Iterator[tuple[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    names = list(KINDS)
    for number in range(count):
        name = names[number % len(names)]
        sound = KINDS[name](int(draw.uniform(0.5, 20) * RATE), draw)
        if name != "silence":
            sound = sound / np.abs(sound).max() * 10 ** (draw.uniform(-40, -3) / 20)
        yield name, sound.astype(np.float32)


def recorded_clips(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in AUDIO_SUFFIXES:
            sound = load_audio(file)
            yield "recorded", sound[: int(LONGEST_RECORDING_SECONDS * RATE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="outputs/nano/model")
    parser.add_argument("--data", default="corpus:test")
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    model, processor = load_model(arguments.model, device="cpu")

    def texts_of(sounds: list[np.ndarray], guard: bool) -> list[str]:
        texts: list[str] = []
        for first in range(0, len(sounds), BATCH_SIZE):
            texts += transcribe_waveforms(model, processor, sounds[first : first + BATCH_SIZE], guard)
        return texts

    clips = list(made_clips(QUICK_CLIPS if arguments.quick else NUM_CLIPS))
    if arguments.recordings:
        clips += recorded_clips(arguments.recordings)
    sounds = [sound for _, sound in clips]
    written = {guard: texts_of(sounds, guard) for guard in (True, False)}
    table: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    for (kind, _), guarded, free in zip(clips, written[True], written[False], strict=True):
        for name in (kind, "all"):
            counts = [1, bool(guarded), len(guarded.split()), bool(free), len(free.split())]
            table[name] = [a + b for a, b in zip(table[name], counts, strict=True)]
    header = ("kind", "clips", "with words", "words", "with words, no guard", "words, no guard")
    print_table(f"{arguments.model} on what is not speech", header, [(k, *v) for k, v in table.items()])

    source = open_source(arguments.data)
    utterances = list(source.utterances())[:: 4 if arguments.quick else 1]
    references = [utterance.text for utterance in utterances]
    speech = [source.read(utterance) for utterance in utterances]
    normalizer = default_normalizer(references)
    heard = {guard: texts_of(speech, guard) for guard in (True, False)}
    rates = {guard: summarize(score_texts(references, heard[guard], normalizer)).wer for guard in heard}
    lost = sum(not kept and bool(free) for kept, free in zip(heard[True], heard[False], strict=True))
    rows = [(arguments.data, len(speech), f"{rates[True]:.4f}", f"{rates[False]:.4f}", lost)]
    header = ("speech", "clips", "WER", "WER, no guard", "clips silenced by the guard")
    print_table("what the guard costs", header, rows)
    with_guard, without = table["all"][1] / len(clips), table["all"][3] / len(clips)
    write_result(
        "non_speech",
        {
            "ratio": without / max(with_guard, 1 / len(clips)),
            "share_with_words": with_guard,
            "share_with_words_no_guard": without,
            "speech_wer": rates[True],
            "speech_wer_no_guard": rates[False],
            "speech_clips_silenced": lost,
            "model": arguments.model,
            "kinds": {kind: counts[:5] for kind, counts in table.items()},
        },
        arguments.quick,
    )


if __name__ == "__main__":
    main()
