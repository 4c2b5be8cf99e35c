"""The one line: every kind of input, every parameter, every format; the text is that of the model and nothing else."""

from __future__ import annotations

import copy
import functools
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import Dataset
from transformers import GenerationConfig

from tests.hub.recordings import known_clips, trained_model
from tests.tiny_models import SAMPLING_RATE, noise, randomize, run_outside, tiny_model
from tiny_audio.hub.asr_audio import AudioError, audio_seconds, load_audio
from tiny_audio.hub.asr_ffmpeg import demuxer_for
from tiny_audio.hub.asr_pipeline import TinyAudioPipeline, audio_blocks

WAVEFORM, TEXT = known_clips()[0][1], known_clips()[1][1]
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
}
FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="there is no ffmpeg on this machine")
# codec, and the container by ffmpeg's name
FFMPEG_FORMATS = {
    "m4a": ("aac", "ipod"),
    "mp4": ("aac", "mp4"),
    "mov": ("pcm_s16le", "mov"),
    "webm": ("libopus", "webm"),
    "mkv": ("flac", "matroska"),
    "aac": ("aac", "adts"),
    "wma": ("wmav2", "asf"),
}


@functools.cache
def pipe() -> TinyAudioPipeline:
    """A pipeline whose model writes TEXT for WAVEFORM."""
    return make()


def make(**options: Any) -> TinyAudioPipeline:
    model, processor = trained_model()
    return TinyAudioPipeline(model=model, processor=processor, device="cpu", **options)


@functools.cache
def babbling_parts() -> tuple[Any, Any]:
    """A random model that writes on and on, each time something else."""
    model, processor = tiny_model()
    randomize(model.model.language_model, "weight")
    model.generation_config.eos_token_id = [processor.audio_token_id]
    model.config.ctc_decoding_weight = 0.0
    return model, processor


def babbling(**options: Any) -> TinyAudioPipeline:
    model, processor = babbling_parts()
    return TinyAudioPipeline(model=model, processor=processor, device="cpu", **options)


def encoded(waveform: np.ndarray = WAVEFORM, rate: int = SAMPLING_RATE, suffix: str = "wav") -> bytes:
    file = io.BytesIO()
    kind, subtype = FORMATS[suffix]
    soundfile.write(file, waveform, rate, format=kind, subtype=subtype)
    return file.getvalue()


# Inputs ------------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """A file object that cannot seek, such as standard input."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "höhe 1.wav"
    file.write_bytes(encoded())
    return file


def test_every_kind_of_input_gives_the_text(path: Path) -> None:
    integers = (WAVEFORM * 32767).astype(np.int16)
    inputs: list[Any] = [
        str(path),
        path,
        encoded(),
        bytearray(encoded()),
        memoryview(encoded()),
        WAVEFORM,
        WAVEFORM.astype(np.float64),
        WAVEFORM[None],
        torch.from_numpy(WAVEFORM),
        integers,
        integers.astype(np.int32) << 16,
        {"array": WAVEFORM, "sampling_rate": SAMPLING_RATE},
        {"raw": WAVEFORM, "sampling_rate": SAMPLING_RATE},
        {"array": WAVEFORM.tolist(), "sampling_rate": float(SAMPLING_RATE), "path": "nowhere.wav"},
        {"array": torch.from_numpy(WAVEFORM)[None], "sampling_rate": SAMPLING_RATE},
    ]
    for one in inputs:
        assert pipe()(one) == {"text": TEXT}, type(one)
    assert pipe()(inputs) == [{"text": TEXT}] * len(inputs)


def test_binary_file_objects_are_one_recording(path: Path) -> None:
    """They can be iterated over, line by line, and are not lists for that."""
    with path.open("rb") as opened:
        assert pipe()(opened) == {"text": TEXT}
        assert not opened.closed
    read_before = io.BytesIO(encoded())
    read_before.read(100)
    assert pipe()(read_before) == {"text": TEXT}
    assert pipe()(Pipe(encoded())) == {"text": TEXT}
    assert pipe()([io.BytesIO(encoded()), Pipe(encoded())]) == [{"text": TEXT}] * 2


@pytest.mark.parametrize("key", ["array", "raw"])
def test_dicts_and_arrays_are_left_as_they_were(key: str) -> None:
    stereo = np.stack([WAVEFORM, WAVEFORM])
    before = stereo.copy()
    for rate in (SAMPLING_RATE, 8000):
        given = {key: stereo, "sampling_rate": rate, "path": "x.wav"}
        keys = dict(given)
        pipe()(given)
        pipe()([given])
        assert given == keys and given[key] is stereo
        assert np.array_equal(stereo, before)
    locked = WAVEFORM.copy()
    locked.flags.writeable = False
    assert pipe()(locked)["text"] == TEXT


def test_lists_give_lists_and_generators_generators() -> None:
    waveforms, texts = known_clips()
    expected = [{"text": text} for text in texts]
    assert pipe()(waveforms) == expected
    assert pipe()(tuple(waveforms)) == expected
    assert pipe()([]) == []
    results = pipe()(waveform for waveform in waveforms)
    assert isinstance(results, Iterator)
    assert list(results) == expected

    class Clips(Dataset):
        """Has a length and items of any number, as a data set may."""

        def __len__(self) -> int:
            return len(waveforms)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"raw": waveforms[index % len(waveforms)], "sampling_rate": SAMPLING_RATE}

    results = pipe()(Clips())
    assert [next(results) for _ in waveforms] == expected
    assert next(results, None) is None, "no more than its length"


def test_generators_are_read_as_their_results_are_taken() -> None:
    num_read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal num_read
        while True:
            num_read += 1
            yield WAVEFORM

    results = pipe()(endless(), batch_size=2)
    assert [next(results)["text"] for _ in range(3)] == [TEXT] * 3
    assert num_read < 20


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("layout", ["mono", "channels first", "channels last"])
def test_any_rate_and_channels_become_16_khz_mono(rate: int, layout: str) -> None:
    wave = (0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)).astype(np.float32)
    silent = np.zeros_like(wave)
    array = {
        "mono": wave,
        "channels first": np.stack([wave, silent]),
        "channels last": np.stack([wave, silent], 1),
    }
    (block,) = audio_blocks({"array": array[layout], "sampling_rate": rate})
    assert block.dtype == np.float32 and block.ndim == 1 and abs(len(block) - SAMPLING_RATE) <= 1
    share = 1.0 if layout == "mono" else 0.5
    expected = share * 0.4 * np.sin(2 * np.pi * 440 * np.arange(len(block)) / SAMPLING_RATE)
    assert np.allclose(block[800:-800], expected[800:-800], atol=5e-3)


@pytest.mark.parametrize(
    ("kind", "scale", "middle"), [(np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 2**7, 2**7)]
)
def test_integers_are_scaled_to_full_scale(kind: Any, scale: int, middle: int) -> None:
    integers = (WAVEFORM.clip(-0.99, 0.99) * scale + middle).round().astype(kind)
    (block,) = audio_blocks(integers)
    assert np.abs(block - WAVEFORM.clip(-0.99, 0.99)).max() < 0.01


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"array": WAVEFORM}, "sampling_rate"),
        ({"sampling_rate": 16000}, 'needs "array"'),
        ({"array": WAVEFORM, "sampling_rate": 0}, "sampling_rate must be a number from"),
        ({"array": np.zeros((2, 3, 4)), "sampling_rate": 16000}, r"got \(2, 3, 4\)"),
        (np.zeros(0, np.float32), r"got \(0,\)"),
        (np.array([0.1, np.nan] * 400), "NaN"),
        (WAVEFORM * 32768, "full scale"),
        ("nowhere/at all.wav", "no such file"),
        (b"a shopping list, no audio", "not audio that can be read"),
        (7, "must be a path, bytes or a binary file object, not int"),
        (None, "must be a path, bytes or a binary file object, not NoneType"),
        (io.StringIO("text"), "open as text"),
    ],
)
def test_what_is_no_audio_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe()(wrong)
    with pytest.raises(ValueError, match=message):
        pipe()([WAVEFORM, wrong])


# Formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_without_extras(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    file = tmp_path / f"clip.{suffix}"
    file.write_bytes(encoded(suffix=suffix))
    found = [pipe()(one)["text"] for one in (file, file.read_bytes(), io.BytesIO(file.read_bytes()))]
    assert found[0] == found[1] == found[2]
    if FORMATS[suffix][1].startswith("PCM"):
        assert found[0] == TEXT  # what the others leave of noise is another noise


def test_48_khz_stereo_files_say_the_same(tmp_path: Path) -> None:
    import soxr

    stereo = np.repeat(soxr.resample(WAVEFORM, SAMPLING_RATE, 48000)[:, None], 2, axis=1)
    file = tmp_path / "stereo.flac"
    soundfile.write(file, stereo, 48000, subtype="PCM_24")
    assert pipe()(file)["text"] == TEXT


@functools.cache
def through_ffmpeg(suffix: str) -> bytes:
    """WAVEFORM in a container that libsndfile does not read."""
    codec, container = FFMPEG_FORMATS[suffix]
    assert FFMPEG is not None
    command = [FFMPEG, "-v", "error", "-f", "wav", "-i", "pipe:0", "-c:a", codec, "-f", container]
    target = Path(tempfile.gettempdir()) / f"tiny-audio-test-{os.getpid()}.{suffix}"
    try:
        done = subprocess.run([*command, "-y", str(target)], input=encoded(), capture_output=True, timeout=60)
        if done.returncode:
            pytest.skip(f"this ffmpeg does not write {suffix}: {done.stderr.decode()[-200:]}")
        return target.read_bytes()
    finally:
        target.unlink(missing_ok=True)


@needs_ffmpeg
@pytest.mark.parametrize("suffix", FFMPEG_FORMATS)
def test_formats_through_ffmpeg(suffix: str, tmp_path: Path) -> None:
    data = through_ffmpeg(suffix)
    file = tmp_path / f"clip, of 'a' voice.{suffix}"
    file.write_bytes(data)
    assert demuxer_for(data[:16]) is not None
    with file.open("rb") as opened:
        waveforms = [load_audio(one) for one in (file, str(file), data, opened, Pipe(data))]
    for waveform in waveforms:
        assert abs(len(waveform) - len(WAVEFORM)) < 0.15 * SAMPLING_RATE
        assert 0.5 < np.std(waveform) / np.std(WAVEFORM) < 1.5
        assert np.array_equal(waveform, waveforms[0])
    assert audio_seconds(file) == pytest.approx(len(WAVEFORM) / SAMPLING_RATE, abs=0.15)
    if suffix in ("mov", "mkv"):  # lossless
        assert pipe()(file)["text"] == TEXT
    with pytest.raises(AudioError, match=r"lasts over 0\.5 s"):
        load_audio(file, max_seconds=0.5)


@needs_ffmpeg
def test_a_reader_that_stops_early_ends_ffmpeg(tmp_path: Path) -> None:
    from tiny_audio.hub.asr_audio import read_blocks

    file = tmp_path / "clip.mov"
    file.write_bytes(through_ffmpeg("mov"))
    blocks = read_blocks(file)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert np.array_equal(load_audio(file), load_audio(file))


@needs_ffmpeg
def test_a_damaged_m4a_is_one_clear_line() -> None:
    with pytest.raises(AudioError, match="cannot be decoded") as caught:
        load_audio(through_ffmpeg("m4a")[:400])
    assert "\n" not in str(caught.value)


@needs_ffmpeg
def test_a_playlist_in_disguise_is_not_followed(tmp_path: Path) -> None:
    """ffmpeg would open what a playlist names; it is told the format that the first bytes say."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encoded())
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        with pytest.raises(AudioError):
            load_audio(text.encode())
        with pytest.raises(AudioError):
            load_audio(b"\x00\x00\x00\x18ftyp" + text.encode())


@pytest.mark.parametrize("as_bytes", [True, False])
def test_without_ffmpeg_the_error_says_so(
    as_bytes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    data = b"\x00\x00\x00\x20ftypM4A " + bytes(200)
    file = tmp_path / "voice.m4a"
    file.write_bytes(data)
    with pytest.raises(AudioError, match=r"M4A.*need the program ffmpeg.*install") as caught:
        pipe()(data if as_bytes else file)
    assert "\n" not in str(caught.value)
    assert as_bytes or "voice.m4a" in str(caught.value)


# Parameters --------------------------------------------------------------------------------------------------


def num_tokens(text: str) -> int:
    return len(babbling_parts()[1].tokenizer(text, add_special_tokens=False).input_ids)


def test_max_new_tokens_is_a_hard_cap() -> None:
    for cap in (1, 5, 40):
        by_name = babbling()(noise(1.0), max_new_tokens=cap)["text"]
        assert 0 < num_tokens(by_name) <= cap + 2  # a byte of a character may decode to three
        assert babbling()(noise(1.0), generate_kwargs={"max_new_tokens": cap})["text"] == by_name
        assert babbling(max_new_tokens=cap)(noise(1.0))["text"] == by_name
        assert babbling(generate_kwargs={"max_new_tokens": cap})(noise(1.0))["text"] == by_name
    assert babbling(max_new_tokens=40)(noise(1.0), max_new_tokens=5) == babbling()(
        noise(1.0), max_new_tokens=5
    )


def test_without_a_cap_a_longer_clip_may_say_more() -> None:
    short, long = (num_tokens(babbling()(noise(seconds))["text"]) for seconds in (0.5, 4.0))
    assert short < long


def test_max_new_tokens_is_the_cap_of_each_window() -> None:
    found = babbling()(noise(9.0), max_new_tokens=4, chunk_length_s=2, return_timestamps=True)
    assert num_tokens(found["text"]) > 8
    assert len(found["chunks"]) > 2


GENERATION: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 4, "length_penalty": 1.0, "max_new_tokens": 200},
    {"do_sample": False},
    {"temperature": 1.0},
    {"num_beams": 2, "do_sample": True, "temperature": 0.01, "max_new_tokens": 50},
    {"do_sample": True, "temperature": 0.01},
    {"generation_config": GenerationConfig(num_beams=2, max_new_tokens=60)},
]


@pytest.mark.parametrize("options", GENERATION, ids=str)
def test_a_sure_model_writes_the_same_by_every_search(options: dict[str, Any]) -> None:
    if "generation_config" in options:
        settings = copy.deepcopy(trained_model()[0].generation_config)
        settings.num_beams, settings.max_new_tokens = 2, 60
        options = {"generation_config": settings}
    assert pipe()(WAVEFORM, **options)["text"] == TEXT
    assert pipe()(WAVEFORM, return_timestamps=True, generate_kwargs=options)["text"] == TEXT
    assert make(**options)(WAVEFORM, return_timestamps="word")["text"] == TEXT


@pytest.mark.filterwarnings("ignore:Passing `")
def test_options_of_the_constructor_hold_for_every_call() -> None:
    """They change what a random model writes, in every way of giving them."""
    waveform = noise(1.5, 4)
    for options in ({"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 2}):
        by_call = babbling()(waveform, max_new_tokens=12, **options)
        assert by_call != babbling()(waveform, max_new_tokens=12), "the option changes nothing to see"
        assert babbling(max_new_tokens=12, **options)(waveform) == by_call
        assert "".join(babbling(max_new_tokens=12, **options)(waveform, stream=True)) == by_call["text"]


def test_greedy_is_the_default_and_deterministic() -> None:
    waveform = noise(2.0, 4)
    texts = {babbling()(waveform)["text"] for _ in range(3)}
    assert len(texts) == 1
    assert texts == {babbling()(waveform, do_sample=False, num_beams=1)["text"]}


def test_sampling_follows_seed_and_temperature() -> None:
    def sample(seed: int, temperature: float) -> str:
        torch.manual_seed(seed)
        return babbling()(noise(1.0), do_sample=True, temperature=temperature, max_new_tokens=12)["text"]

    assert sample(0, 1.5) == sample(0, 1.5)
    assert len({sample(seed, 1.5) for seed in range(5)}) > 1
    assert len({sample(seed, 1e-4) for seed in range(5)}) == 1


@pytest.mark.parametrize("stride", [None, (5, 5), (1, 0.5), [0.5, 0.5], 0.5, (0, 0)])
def test_chunk_and_stride_read_the_whole_recording(stride: Any) -> None:
    pause = np.zeros(8000, np.float32)
    waveforms, _ = known_clips()
    recording = np.concatenate([part for waveform in waveforms * 2 for part in (waveform, pause)])
    found = make(chunk_length_s=3, stride_length_s=stride)(recording, return_timestamps=True)
    assert found == pipe()(recording, chunk_length_s=3, stride_length_s=stride, return_timestamps=True)
    assert found["text"] == " ".join(chunk["text"] for chunk in found["chunks"])
    assert found["chunks"][-1]["timestamp"][1] > len(recording) / SAMPLING_RATE - 3


def test_longest_window_of_the_seeds_is_accepted() -> None:
    for seconds, stride in ((15, (2, 2)), (20, (3, 3)), (30, (5, 5))):
        assert pipe()(WAVEFORM, chunk_length_s=seconds, stride_length_s=stride)["text"] == TEXT


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_batch_size_changes_no_text(batch_size: int) -> None:
    waveforms, texts = known_clips()
    expected = [{"text": text} for text in texts * 2]
    assert pipe()(waveforms * 2, batch_size=batch_size) == expected
    assert make(batch_size=batch_size)(waveforms * 2) == expected


def test_times() -> None:
    plain = pipe()(WAVEFORM)
    assert plain == pipe()(WAVEFORM, return_timestamps=False) == {"text": TEXT}
    words = pipe()(WAVEFORM, return_timestamps="word")
    assert [chunk["text"] for chunk in words["chunks"]] == TEXT.split()
    edges = [edge for chunk in words["chunks"] for edge in chunk["timestamp"]]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= len(WAVEFORM) / SAMPLING_RATE + 0.05
    assert all(0 <= chunk["confidence"] <= 1 for chunk in words["chunks"])
    segments = pipe()(WAVEFORM, return_timestamps=True)
    assert [chunk["text"] for chunk in segments["chunks"]] == [TEXT]
    assert segments["chunks"][0]["timestamp"] == (edges[0], edges[-1])
    assert make(return_timestamps="word")(WAVEFORM) == words
    assert make(return_timestamps="word")(WAVEFORM, return_timestamps=False) == plain


def test_a_checkpoint_without_a_head_says_that_it_has_no_times() -> None:
    model, processor = tiny_model("ctc.weight=0", "ctc.alone_share=0")
    one = TinyAudioPipeline(model=model, processor=processor, device="cpu")
    assert "text" in one(noise(0.5), max_new_tokens=3)
    for times in (True, "word"):
        with pytest.raises(ValueError, match="no alignment head"):
            one(noise(0.5), return_timestamps=times)


def test_streamed_pieces_join_to_the_text() -> None:
    for recording in (WAVEFORM, np.concatenate([noise(9.0), np.zeros(16000, np.float32), noise(3.0)])):
        for one in (pipe(), babbling()):
            whole = one(recording, chunk_length_s=4, max_new_tokens=10)["text"]
            pieces = list(one(recording, chunk_length_s=4, max_new_tokens=10, stream=True))
            assert "".join(pieces) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_timestamps": "char"}, "must be True, False or"),
        ({"chunk_length_s": 31}, "at most 30 s"),
        ({"chunk_length_s": -5}, "at least 1"),
        ({"chunk_length_s": 0.1}, "at least 1"),
        ({"stride_length_s": (-1, 1)}, "must not be negative"),
        ({"stride_length_s": (1,)}, "or two of them"),
        ({"stride_length_s": (1, 2, 3)}, "or two of them"),
        ({"stride_length_s": float("inf")}, "or two of them"),
        ({"stride_length_s": "wide"}, "could not convert"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"num_return_sequences": 2}, "num_return_sequences must be 1"),
        ({"num_baems": 3}, "num_baems"),
        ({"chunk_lenght_s": 10}, "chunk_lenght_s"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
    ],
)
def test_wrong_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        pipe()(WAVEFORM, **options)


def test_whole_numbers_and_numpys_own_do_as_numbers() -> None:
    text = pipe()(WAVEFORM)["text"]
    assert pipe()(WAVEFORM, stride_length_s=np.float32(1))["text"] == text
    assert pipe()(WAVEFORM, repetition_penalty=1)["text"] == text
    assert isinstance(pipe()(WAVEFORM, do_sample=True, temperature=2)["text"], str)


def test_tensors_in_a_dict_are_read_as_arrays_are() -> None:
    expected = pipe()(WAVEFORM)["text"]
    tensor = torch.from_numpy(WAVEFORM.copy())
    for samples in (tensor, tensor.clone().requires_grad_()):
        assert pipe()({"raw": samples, "sampling_rate": 16_000})["text"] == expected
    assert isinstance(pipe()({"raw": tensor.bfloat16(), "sampling_rate": 16_000})["text"], str)


def test_stop_strings_end_a_text() -> None:
    text = pipe()(WAVEFORM)["text"]
    assert len(text) > 2
    stopped = pipe()(WAVEFORM, stop_strings=[text[1]])["text"]
    assert text.startswith(stopped) and len(stopped) < len(text)


# As users run it ---------------------------------------------------------------------------------------------

EXPERIMENTS = """
import sys
sys.modules["tiny_audio"] = None  # whoever imports the package fails
from transformers import pipeline
model, audio_path = sys.argv[1:]
pipe = pipeline("automatic-speech-recognition", model=model, trust_remote_code=True)
texts = []
beams = {"max_new_tokens": 200, "num_beams": 4, "length_penalty": 1.0}
for params in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 5}, beams):
    texts.append(pipe(audio_path, **params)["text"])
for seconds, stride in ((15, (2, 2)), (20, (3, 3)), (30, (5, 5))):
    texts.append(pipe(audio_path, chunk_length_s=seconds, stride_length_s=stride)["text"])
for _ in range(3):
    texts.append(pipe(audio_path, do_sample=False, max_new_tokens=50)["text"])
assert set(texts) == {texts[0]}, texts
for temperature in (0.5, 0.8, 1.0, 1.5):
    sampled = pipe(audio_path, do_sample=True, temperature=temperature, max_new_tokens=50)
    assert isinstance(sampled["text"], str)
with open(audio_path, "rb") as file:
    assert pipe(file)["text"] == texts[0]
small = pipeline("automatic-speech-recognition", model=model, trust_remote_code=True, max_new_tokens=1)
assert len(small(audio_path)["text"]) <= 1
words = pipe([audio_path], return_timestamps="word")[0]["chunks"]
print("RESULT", texts[0], "|", " ".join(chunk["text"] for chunk in words), "|", end=" ")
print("".join(pipe(audio_path, stream=True)))
"""


def test_the_seeds_experiments_run_without_our_package_and_without_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "test.wav"
    path.write_bytes(encoded(known_clips()[0][2]))
    text = known_clips()[1][2]
    model, processor = trained_model()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    output = run_outside(EXPERIMENTS, str(folder), str(path), folder=tmp_path, PATH=str(tmp_path))
    assert f"RESULT {text} | {text} | {text}" in output


def test_max_length_is_what_each_clip_may_grow_to_whatever_its_batch_mates() -> None:
    """transformers would take the prompt of the longest clip off it."""
    short, long = known_clips()[0][1], np.concatenate([known_clips()[0][1]] * 3)
    alone = pipe()(short, max_new_tokens=3)["text"]
    assert alone and alone != TEXT
    for options in ({"max_length": 3}, {"generation_config": GenerationConfig(max_length=3)}):
        assert pipe()(short, generate_kwargs=options)["text"] == alone
        assert pipe()([short, long], generate_kwargs=options, batch_size=2)[0]["text"] == alone
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        pipe()(short, max_new_tokens=0)


def test_arrays_are_held_to_the_rates_of_files_and_hold_numbers() -> None:
    for rate in (1, 10**9, None, "fast"):
        with pytest.raises(ValueError, match="sampling_rate must be a number from 4,000 to 768,000"):
            list(audio_blocks({"array": WAVEFORM, "sampling_rate": rate}))
    with pytest.raises(ValueError, match="holds numbers, not <U3"):
        list(audio_blocks({"array": np.array(["one"]), "sampling_rate": 16000}))
    (block,) = audio_blocks(torch.from_numpy(WAVEFORM).bfloat16())
    assert block.dtype == np.float32 and np.abs(block - WAVEFORM).max() < 0.02
