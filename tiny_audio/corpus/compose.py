"""Mixes the inventory of a voice into utterances: digit strings, connected or word by word, each heard differently."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tiny_audio.corpus import speech
from tiny_audio.corpus.inventory import SAMPLING_RATE, Item
from tiny_audio.corpus.speech import DIGITS, Recording, Word

LENGTH_WEIGHTS = (12, 12, 14, 16, 13, 11, 8, 5, 3, 2)  # strings of 1-10 digits
NARROW_RATE = 8_000
NARROW_SHARE = 0.55  # costs three quarters of the bytes, and telephones and many recordings have no more


@dataclass(frozen=True)
class Clip:
    """A finished utterance. `narrow` ones are stored with 8,000 samples a second."""

    text: str
    recording: Recording
    narrow: bool


class Digits:
    """Draws digits from a shuffled bag, so that all are equally frequent, and now and then says one twice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bag: list[str] = []

    def string(self, length: int) -> list[str]:
        words: list[str] = []
        while len(words) < length:
            if not self.bag:
                self.bag = list(DIGITS) * 3
                self.rng.shuffle(self.bag)
            words += [self.bag.pop()] * (2 if self.rng.random() < 0.08 and len(words) + 2 <= length else 1)
        return words


def utterances(items: list[Item], count: int, seed: str, noisy: float) -> list[Clip]:
    """`count` clips of one voice; a share `noisy` of them gets audible noise."""
    rng = random.Random(seed)
    tokens: dict[str, list[tuple[Recording, int]]] = {digit: [] for digit in DIGITS}
    for item in items:
        if not item.connected and item.recording.words is not None:
            for index, word in enumerate(item.words):
                if _stands_alone(item.recording.words, index):
                    tokens[word].append((item.recording, index))
    strings = [item for item in items if item.connected]
    queue: list[Item] = []
    digits = Digits(rng)
    clips = []
    for _ in range(count):
        if rng.random() < 0.45:
            if not queue:
                queue = rng.sample(strings, len(strings))
            item = queue.pop()
            recording, words = _trim(item.recording), list(item.words)
        else:
            words = digits.string(rng.choices(range(1, 11), LENGTH_WEIGHTS)[0])
            recording = _word_by_word(words, tokens, rng)
        clips.append(_finish(" ".join(words), recording, rng, noisy))
    return clips


def _stands_alone(words: list[Word], index: int, pause: float = 0.03) -> bool:
    """Whether there is silence on both sides of a word: what runs into its neighbours cannot be cut out."""
    before = not index or words[index].start - words[index - 1].end >= pause
    return before and (index + 1 == len(words) or words[index + 1].start - words[index].end >= pause)


def _word_by_word(
    words: list[str], tokens: dict[str, list[tuple[Recording, int]]], rng: random.Random
) -> Recording:
    parts = []
    for word in words:
        part = speech.cut_word(
            *rng.choice(tokens[word]), before=rng.uniform(0.01, 0.03), after=rng.uniform(0.02, 0.06)
        )
        peak = np.abs(part.audio).max()
        gain = 0.5 * 10 ** (rng.gauss(0, 1.8) / 20) / max(float(peak), 1e-4)
        parts.append(Recording(part.audio * np.float32(gain), part.sampling_rate, part.words))
    low, high = rng.choice(((0.0, 0.06), (0.02, 0.15), (0.05, 0.25), (0.12, 0.5)))
    return speech.join(parts, [0.0, *(rng.uniform(low, high) for _ in parts[1:]), 0.0])


def _trim(recording: Recording, margin: float = 0.04) -> Recording:
    """Leaves `margin` seconds around the speech: the silence of the engine tells nothing."""
    level = speech.envelope(recording.audio, recording.sampling_rate, 0.01)
    loud = np.flatnonzero(level > 0.01 * level.max())
    start, end = max(loud[0] * 0.01 - margin, 0.0), (loud[-1] + 1) * 0.01 + margin
    if recording.words:
        start, end = min(start, recording.words[0].start), max(end, recording.words[-1].end)
    rate = recording.sampling_rate
    words = recording.words and [
        Word(word.text, word.start - start, word.end - start) for word in recording.words
    ]
    return Recording(speech.fade(recording.audio[int(start * rate) : int(end * rate)], rate), rate, words)


def _finish(text: str, recording: Recording, rng: random.Random, noisy: float) -> Clip:
    """Speaker size or voice, silence around, microphone, band, noise, level: in the order of the real world."""
    draw = rng.random()
    if draw < 0.6:
        recording = speech.change_size(recording, rng.uniform(0.86, 1.16))
    elif draw < 0.77:
        pitch, formants = np.exp(rng.uniform(-0.25, 0.25)), np.exp(rng.uniform(-0.1, 0.1))
        tempo = np.exp(rng.uniform(-0.18, 0.2))
        recording = speech.change_voice(
            recording, float(pitch), float(formants), float(tempo), rng.uniform(0.4, 1.4)
        )
    recording = speech.join([recording], [rng.uniform(0.03, 0.25), rng.uniform(0.03, 0.25)])
    rate = SAMPLING_RATE
    audio = recording.audio
    generator = np.random.default_rng(rng.getrandbits(64))
    if rng.random() < 0.6:
        audio = speech.tilt(audio, rate, rng.uniform(-7, 7))
    narrow = rng.random() < NARROW_SHARE
    telephone = narrow and rng.random() < 0.45
    power = float(np.sqrt((audio**2).mean())) + 1e-9
    if rng.random() < noisy:
        audio = audio + speech.coloured_noise(len(audio), rng.uniform(0, 2), generator) * power * 10 ** (
            -rng.uniform(14, 32) / 20
        )
    elif rng.random() < 0.5:
        audio = audio + speech.coloured_noise(len(audio), rng.uniform(0, 2), generator) * power * 10 ** (
            -rng.uniform(38, 60) / 20
        )
    if telephone:
        audio = speech.band_limit(audio, rate, rng.uniform(180, 320), rng.uniform(3200, 3600))
    elif not narrow and rng.random() < 0.2:
        audio = speech.band_limit(audio, rate, 0, rng.uniform(4200, 7000))
    if narrow:
        audio = speech.resample(Recording(audio, rate, None), NARROW_RATE).audio
        rate = NARROW_RATE
    audio = audio * (10 ** (-rng.uniform(1, 16) / 20) / max(float(np.abs(audio).max()), 1e-6))
    if telephone and rng.random() < 0.5:
        audio = speech.mu_law(audio)
    limit = len(audio) / rate
    words = recording.words and [
        Word(word.text, word.start, min(word.end, limit)) for word in recording.words
    ]
    return Clip(text, Recording(audio.astype(np.float32), rate, words), narrow)
