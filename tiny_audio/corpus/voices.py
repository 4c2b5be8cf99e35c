"""The table of voices and the split each belongs to. Generator only.

A voice is a speaker: the recordings or parameters a synthesiser speaks with, or a blend of Kokoro's speakers.
Shifted pitch, size or tempo do not make a new one. Every voice lies in one split with all that is made from it:
the two synthesisers that carry the speaker "kal" share a split, and so do those with "slt", and no voice of dev
or test is part of a blend.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tiny_audio.corpus.kokoro import ACCENTS_BY_LANGUAGE

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Voice:
    """`mixture` holds the Kokoro styles that make the voice, with weights; `accents` the ways it may pronounce."""

    id: str
    speaker: str
    engine: str
    name: str
    split: str
    weight: float  # share of the split's utterances
    accents: tuple[str, ...] = ()
    mixture: tuple[tuple[str, float], ...] = ()


# Styles of Kokoro-82M v1.0; the first letter is the language, the second f(emale) or m(ale). The three called
# santa, the two called dora and the two called alex may be one person each, so each group keeps to one split.
KOKORO_TEST = (
    "am_puck",
    "bm_lewis",
    "af_nova",
    "bf_lily",
    "em_alex",
    "pm_alex",
    "zm_yunjian",
    "if_sara",
    "hm_omega",
)
KOKORO_DEV = ("am_liam", "bm_daniel", "af_jessica", "bf_emma", "im_nicola", "zf_xiaoxiao")
KOKORO_TRAIN = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_kore", "af_nicole", "af_river", "af_sarah", "af_sky",
    "am_adam", "am_echo", "am_eric", "am_fenrir", "am_michael", "am_onyx", "am_santa", "bf_alice", "bf_isabella",
    "bm_fable", "bm_george", "ef_dora", "em_santa", "hf_alpha", "hm_psi", "jf_alpha",
    "jm_kumo", "pf_dora", "pm_santa", "zm_yunxi", "zm_yunxia", "zm_yunyang",
)  # fmt: skip
# af_nicole whispers throughout: kept, but rarer.
KOKORO_WEIGHTS = {"af_nicole": 0.4}

FLITE = (("kal16", "kal", "train"), ("slt", "slt", "train"), ("awb", "awb", "train"), ("rms", "rms", "test"))
FESTIVAL = (
    ("kal_diphone", "kal", "train"),
    ("cmu_us_slt_arctic_hts", "slt", "train"),
    ("ked_diphone", "ked", "dev"),
)

# espeak-ng: a variant is a set of formants, pitch and breath, so a voice; each is given one accent.
ESPEAK_TEST = (
    "en-us+m3",
    "en+f2",
    "en-us+klatt2",
    "en-gb-x-rp+Andy",
    "en-gb-scotland+Mario",
    "es+pedro",
    "de+Lee",
)
ESPEAK_DEV = ("en-us+f4", "en+m6", "en-029+Denis", "en-us-nyc+klatt3", "fr+benjamin")
ESPEAK_TRAIN = (
    "en-us+m1", "en-us+m2", "en+m4", "en-us+m5", "en-gb-scotland+m7", "en-us-nyc+m8", "en-us+f1", "en+f3",
    "en-us+f5", "en-gb-x-rp+klatt", "en-us+klatt4", "en-us+adam", "en-gb-x-gbclan+Alex", "en-029+Alicia",
    "en-us+Andrea", "en+Annie", "es+antonio", "en-gb-x-gbcwmd+boris", "en-us+caleb", "en-us+david",
    "it+Diogo", "de+ed", "en+edward", "fr+gustave", "el+Henrique", "en-us+Iven", "pl+Jacky", "en-us+john",
    "pt+marcelo", "nl+Marco", "el+max", "en-us+Mike", "hi+Nguyen", "en-gb-x-rp+paul", "sv+rob", "en-us+steph",
    "en-us+travis", "en-029+victor",
)  # fmt: skip


def table(blends: int) -> list[Voice]:
    """All voices, with `blends` mixtures of Kokoro's training styles added to the training split."""
    voices = []
    styles: dict[str, tuple[str, ...]] = {"train": KOKORO_TRAIN, "dev": KOKORO_DEV, "test": KOKORO_TEST}
    for split, names in styles.items():
        for name in names:
            weight = KOKORO_WEIGHTS.get(name, 1.0)
            accents = ACCENTS_BY_LANGUAGE[name[0]]
            voices.append(
                Voice(f"kokoro-{name}", name, "kokoro", name, split, weight, accents, ((name, 1.0),))
            )
    voices += _blends(blends)
    for engine, rows in (("flite", FLITE), ("festival", FESTIVAL)):
        voices += [
            Voice(f"{engine}-{name}", speaker, engine, name, split, 0.7) for name, speaker, split in rows
        ]
    voices.append(Voice("piper-joe", "joe", "piper", "joe", "train", 1.2))
    espeak: dict[str, tuple[str, ...]] = {"train": ESPEAK_TRAIN, "dev": ESPEAK_DEV, "test": ESPEAK_TEST}
    for split, names in espeak.items():
        weight = 0.45 if split == "train" else 1.0
        voices += [Voice(f"espeak-{name}", f"espeak-{name}", "espeak", name, split, weight) for name in names]
    return voices


def _blends(count: int) -> list[Voice]:
    """Two or three styles of one sex; now and then of any, which gives a voice between the sexes."""
    rng = random.Random("blends")
    groups = {sex: [name for name in KOKORO_TRAIN if name[1] == sex] for sex in "mf"}
    voices = []
    for index in range(count):
        pool = groups["m" if rng.random() < 0.65 else "f"] if rng.random() < 0.85 else list(KOKORO_TRAIN)
        names = rng.sample([name for name in pool if name != "af_nicole"], rng.choice((2, 2, 3)))
        mixture = tuple((name, round(rng.uniform(0.3, 0.7), 2)) for name in names)
        accents = tuple(dict.fromkeys(accent for name in names for accent in ACCENTS_BY_LANGUAGE[name[0]]))
        voices.append(
            Voice(
                f"kokoro-blend{index:02d}",
                f"blend{index:02d}",
                "kokoro",
                "blend",
                "train",
                1.0,
                accents,
                mixture,
            )
        )
    return voices
