"""What Tiny Audio itself does here: read audio, open the corpus, compose the recipes, train two steps."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tiny_audio.setup.findings import Finding, Level
from tiny_audio.setup.isolation import Report, one_line
from tiny_audio.setup.requirements import CHECKOUT, PROJECT_FILE, install_line, with_bounds

SAMPLING_RATE = 16_000
TONE_HERTZ, TONE_SECONDS = 440, 1.0
# Container and encoding as libsndfile calls them, and whether nothing works without.
FORMATS = {
    "WAV": ("WAV", "PCM_16", True),
    "FLAC": ("FLAC", "PCM_16", True),
    "OGG Vorbis": ("OGG", "VORBIS", False),
    "OGG Opus": ("OGG", "OPUS", True),  # the embedded corpus
    "MP3": ("MP3", "MPEG_LAYER_III", False),
}
NUM_TRIAL_CLIPS = 4


def codecs(report: Report) -> Iterator[Finding]:
    """A tone is written in each format and read as recordings are."""
    import numpy
    import soundfile

    time_axis = numpy.arange(int(TONE_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    tone = (0.5 * numpy.sin(2 * math.pi * TONE_HERTZ * time_axis)).astype(numpy.float32)
    readable = []
    for name, (container, encoding, is_needed) in FORMATS.items():
        report(name)
        encoded = io.BytesIO()
        try:
            soundfile.write(encoded, tone, SAMPLING_RATE, format=container, subtype=encoding)
            problem = _problem_of_tone(encoded.getvalue())
        except Exception as error:
            problem = one_line(error)
        if problem is None:
            readable.append(name)
            continue
        level = Level.FAILED if is_needed else Level.OPTIONAL
        remedy = install_line(with_bounds("soundfile"), again=True)
        yield Finding(f"codec {name}", level, problem, remedy, None if is_needed else f"{name} files")
    if readable:
        yield Finding("codecs", Level.OK, f"{', '.join(readable)} are read")
    report("ffmpeg")
    yield _ffmpeg(tone)


def _problem_of_tone(encoded: bytes | Path) -> str | None:
    """Whether our reader hears the tone in it."""
    import numpy

    from tiny_audio.hub.asr_audio import load_audio

    waveform = load_audio(encoded)
    seconds = len(waveform) / SAMPLING_RATE
    spectrum = numpy.abs(numpy.fft.rfft(waveform))
    loudest = float(numpy.argmax(spectrum)) / seconds
    if abs(seconds - TONE_SECONDS) < 0.2 and abs(loudest - TONE_HERTZ) < 5:
        return None
    return (
        f"a tone of {TONE_HERTZ} Hz and {TONE_SECONDS:g} s comes back as {loudest:.0f} Hz and {seconds:.2f} s"
    )


def _ffmpeg(tone: object) -> Finding:
    import soundfile

    remedy = "apt install ffmpeg, brew install ffmpeg or winget install ffmpeg"
    program = shutil.which("ffmpeg")
    if program is None:
        return Finding("ffmpeg", Level.OPTIONAL, "not there; it reads M4A, MP4, WebM", remedy, "M4A files")
    try:
        with tempfile.TemporaryDirectory() as folder:
            wav, m4a = Path(folder) / "tone.wav", Path(folder) / "tone.m4a"
            soundfile.write(wav, tone, SAMPLING_RATE)
            subprocess.run(
                [program, "-nostdin", "-v", "error", "-i", str(wav), "-c:a", "aac", str(m4a)],
                check=True,
                capture_output=True,
                timeout=20,
            )
            problem = _problem_of_tone(m4a)
    except Exception as error:
        problem = one_line(error)
    if problem is not None:
        return Finding("ffmpeg", Level.OPTIONAL, f"{program}: {problem}", remedy, "M4A files")
    return Finding("ffmpeg", Level.OK, f"{program}; M4A is read")


def corpus(report: Report) -> Iterator[Finding]:
    """The speech inside the package: every checksum of the archive, its hours, and a clip of each split."""
    import zipfile

    import numpy

    from tiny_audio.data import corpus

    remedy = install_line(again=True)
    if PROJECT_FILE.is_file():
        remedy = f'git -C "{CHECKOUT}" checkout -- tiny_audio/corpus/{corpus.PATH.name}'
    try:
        broken = zipfile.ZipFile(corpus.PATH).testzip()
    except (OSError, zipfile.BadZipFile) as error:
        yield Finding("corpus", Level.FAILED, one_line(error), remedy)
        return
    if broken is not None:
        yield Finding("corpus", Level.FAILED, f"{corpus.PATH}: {broken} is damaged", remedy)
        return
    parts = []
    for split in corpus.SPLITS:
        report(split)
        entries = corpus.read_index(split)
        hours = sum(entry.seconds for entry in entries) / 3600
        waveform = corpus.read_audio(entries[0])[0]
        if len(waveform) != entries[0].num_samples or not numpy.abs(waveform).max() > 0.01:
            yield Finding("corpus", Level.FAILED, f"{entries[0].id} is not what the index says", remedy)
            return
        parts.append(f"{split} {hours:.2f} h")
    yield Finding("corpus", Level.OK, f"{', '.join(parts)}; checksums agree")


def samples(report: Report) -> Iterator[Finding]:
    """The recordings of `download-samples`, where they are."""
    from tiny_audio.data.sources import open_source
    from tiny_audio.setup.samples import DIGITS, SAMPLES_FOLDER, SPEECH

    there = [folder for name in (DIGITS, SPEECH) if (folder := SAMPLES_FOLDER / name).is_dir()]
    if not there:
        found = f"no folder {SAMPLES_FOLDER} here; the course begins with it"
        yield Finding("samples", Level.OPTIONAL, found, "tiny-audio download-samples")
        return
    counts = []
    for folder in there:
        source = open_source(folder)
        rows = source.utterances()
        for row in rows:
            report(row.id)
            source.read(row)
        counts.append(f"{len(rows)} in {folder}")
    yield Finding("samples", Level.OK, f"recordings: {', '.join(counts)}")


def recipes(report: Report) -> Iterator[Finding]:
    """Every recipe is read and checked; the sizes of nano are counted."""
    from tiny_audio.train.config import compose_config, experiment_names
    from tiny_audio.train.parameters import in_words, parameter_table

    for name in experiment_names():
        report(name)
        compose_config([f"+experiments={name}"])
    report("nano's parameters")
    total = parameter_table(compose_config([]))[-1]
    found = f"{len(experiment_names())} read and checked; nano has {in_words(total.parameters)} parameters"
    yield Finding("recipes", Level.OK, found)


def recipes_of_local_models() -> list[str]:
    """The recipes whose models lie on this machine: below TINY_AUDIO_MODELS, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    from tiny_audio.train.config import compose_config, experiment_names, resolve_model_path

    def is_here(name: str | None) -> bool:
        if name is None:  # a tower with random weights
            return True
        return Path(resolve_model_path(name)).is_dir() or isinstance(
            try_to_load_from_cache(name, "config.json"), str
        )

    models = {name: compose_config([f"+experiments={name}"]).model for name in experiment_names()}
    return [
        name
        for name, model in models.items()
        if is_here(model.encoder_model_name) and is_here(model.decoder_model_name)
    ]


def training(report: Report) -> Iterator[Finding]:
    """Two steps of the nano recipe on a few clips, with all that belongs to a run, and the saved model read back."""
    from tiny_audio.data.sources import open_source
    from tiny_audio.evaluate.providers import TinyAudioProvider
    from tiny_audio.setup.samples import write_corpus_samples
    from tiny_audio.train.config import compose_config
    from tiny_audio.train.records import read_metrics
    from tiny_audio.train.run import run

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows may still hold a file
        speech = Path(folder) / "speech"
        write_corpus_samples(speech, NUM_TRIAL_CLIPS)
        # Both losses in both steps. Paths are set afterwards: on the command line a comma would have to be quoted.
        settings = [
            "ctc.alone_share=0",
            "training.max_steps=2",
            "training.warmup_steps=1",
            "training.logging_steps=1",
        ]
        config = compose_config([*settings, "training.num_workers=0", "training.tracker=none"])
        config.output_dir = str(Path(folder) / "run")
        config.data.train = config.data.eval = config.data.test = str(speech)
        report("two steps")
        result = run(config)
        assert result is not None
        losses = [line["loss"] for line in read_metrics(result.folder / "metrics.jsonl")]
        report("reading the model back")
        source = open_source(speech)
        TinyAudioProvider.load(str(result.model_folder), "auto").transcribe(
            [source.read(source.utterances()[0])]
        )
    seconds = time.perf_counter() - start
    if len(losses) == 2 and all(map(math.isfinite, losses)):
        shown = f"loss {losses[0]:.1f}, {losses[1]:.1f}"
        found = f"2 steps of nano, evaluated, saved, read back in {seconds:.0f} s; {shown}"
        yield Finding("trial training", Level.OK, found)
    else:
        yield Finding("trial training", Level.FAILED, f"losses {losses}, wanted two finite ones")
