"""The endpoint handler: every kind of input, every type of error, loaded as an endpoint loads it."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from tests.tiny_models import SAMPLING_RATE, noise, run_outside, tiny_model
from tiny_audio.hub import asr_audio
from tiny_audio.hub import handler as module
from tiny_audio.hub.handler import ERROR_TYPES, EndpointHandler

FEW = {"max_new_tokens": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model, processor = tiny_model()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def handler(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointHandler]:
    yield EndpointHandler(str(checkpoint), device="cpu", max_seconds=20, max_upload_bytes=1_000_000)


def encoded(seconds: float = 1.0, format: str = "WAV", rate: int = SAMPLING_RATE, **options: Any) -> bytes:
    waveform = np.random.default_rng(0).standard_normal(int(seconds * rate)) * 0.1
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=format, **options)
    return file.getvalue()


def text64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def error_type(answer: Any) -> str:
    assert set(answer) == {"error"} and set(answer["error"]) == {"type", "message"}, answer
    assert answer["error"]["type"] in ERROR_TYPES
    message = answer["error"]["message"]
    assert message and "\n" not in message and len(message) < 500
    json.dumps(answer, allow_nan=False)
    return answer["error"]["type"]


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_bytes_and_base64_give_the_pipelines_text(handler: EndpointHandler, format: str) -> None:
    data = encoded(1.5, format)
    expected = handler.pipeline(data, **FEW)
    assert expected["text"], "the untrained model writes something"
    spellings = [
        data,
        bytearray(data),
        memoryview(data),
        text64(data),
        base64.encodebytes(data).decode(),  # with line breaks
        "data:audio/x;base64," + text64(data),
        " data:audio/x;base64," + text64(data),
        base64.urlsafe_b64encode(data).decode(),
        "DATA:audio/wav;codecs=1;BASE64," + text64(data),
    ]
    for inputs in spellings:
        assert handler({"inputs": inputs, "parameters": FEW}) == expected
    assert handler({"inputs": spellings, "parameters": FEW}) == [expected] * len(spellings)


@pytest.mark.parametrize("name", ["array", "raw"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_samples_give_the_pipelines_text(handler: EndpointHandler, name: str, rate: int) -> None:
    waveform = noise(rate / SAMPLING_RATE)  # a second
    expected = handler.pipeline({"array": waveform, "sampling_rate": rate}, **FEW)
    stereo = [waveform.tolist(), waveform.tolist()]
    for samples in (waveform.tolist(), waveform, stereo):
        request = json.loads(json.dumps({"sampling_rate": rate})) | {name: samples}
        assert handler({"inputs": request, "parameters": FEW}) == expected


def test_whole_numbers_are_samples_of_full_scale_one(handler: EndpointHandler) -> None:
    square = [1, -1] * 8000
    as_floats = handler({"inputs": {"array": [float(v) for v in square], "sampling_rate": 16000}})
    assert handler({"inputs": {"array": square, "sampling_rate": 16000}}) == as_floats
    answer = handler({"inputs": {"array": [12000, -12000] * 8000, "sampling_rate": 16000}})
    assert error_type(answer) == "invalid_audio" and "32768" in answer["error"]["message"]


def test_one_bad_recording_of_a_list_costs_itself_alone(handler: EndpointHandler) -> None:
    good = encoded()
    expected = handler({"inputs": good, "parameters": FEW})
    answers = handler({"inputs": [good, b"junk" * 20, good, "no base64!"], "parameters": FEW})
    assert [answers[0], answers[2]] == [expected, expected]
    assert [error_type(answers[1]), error_type(answers[3])] == ["invalid_audio", "invalid_input"]


def test_times_and_generation_options(handler: EndpointHandler) -> None:
    data = encoded(2.0)
    for name in ("generate_kwargs", "generation_parameters"):
        nested = {"return_timestamps": "word", name: {"max_new_tokens": 4, "num_beams": 2}}
        flat = {"return_timestamps": "word", "max_new_tokens": 4, "num_beams": 2}
        assert handler({"inputs": data, "parameters": nested}) == handler(
            {"inputs": data, "parameters": flat}
        )
    (chunk,) = handler({"inputs": data, "parameters": {"return_timestamps": True, **FEW}})["chunks"]
    assert 0 <= chunk["timestamp"][0] <= chunk["timestamp"][1] <= 2.1
    # what a URL can say: the toolkit makes whole numbers and booleans of it, and leaves the rest as text
    url = {
        "return_timestamps": "word",
        "max_new_tokens": 4,
        "repetition_penalty": "1.0",
        "chunk_length_s": "20",
    }
    assert handler({"inputs": data, "parameters": url})["text"] == handler.pipeline(data, **FEW)["text"]
    windows = {"chunk_length_s": 5, "stride_length_s": [1, 0.5], "batch_size": 2, **FEW}
    assert "text" in handler({"inputs": encoded(12.0), "parameters": windows})


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_body",
    [None, b"audio", [], {}, {"inputs": None}, {"audio": "x"}, {"inputs": b"x", "parameter": {}}],
)
def test_invalid_request(handler: EndpointHandler, request_body: Any) -> None:
    assert error_type(handler(request_body)) == "invalid_request"


@pytest.mark.parametrize(
    "parameters",
    [
        [1],
        "word",
        {"num_beam": 3},
        {"stream": True},
        {"custom_generate": "somebody/code", "trust_remote_code": True},
        {"generate_kwargs": {"assistant_model": "somebody/model"}},
        {"generate_kwargs": {"return_timestamps": True}},
        {"generate_kwargs": 3},
        {"return_timestamps": "char"},
        {"return_timestamps": 1},
        {"num_beams": 0},
        {"num_beams": 10**9},
        {"num_beams": 2.5},
        {"num_beams": True},
        {"num_beams": "9" * 5000},
        {"max_new_tokens": 10**9},
        {"temperature": 0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"do_sample": "yes"},
        {"batch_size": [8]},
        {"chunk_length_s": 1000},
        {"chunk_length_s": 0.01},
        {"temperature": 1e-38},
        {"repetition_penalty": 1e-320},
        {"chunk_length_s": -1},
        {"stride_length_s": [1]},
        {"stride_length_s": -2},
        {3: 4},
    ],
)
def test_invalid_parameter(handler: EndpointHandler, parameters: Any) -> None:
    assert error_type(handler({"inputs": encoded(0.5), "parameters": parameters})) == "invalid_parameter"


def test_null_is_as_if_left_out(handler: EndpointHandler) -> None:
    nothing = {"return_timestamps": None, "generate_kwargs": None, "num_beams": None, **FEW}
    expected = handler({"inputs": encoded(), "parameters": FEW})
    assert handler({"inputs": encoded(), "parameters": nothing}) == expected
    assert "text" in handler({"inputs": encoded(0.5), "parameters": None})


def test_times_of_a_model_that_has_none(handler: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(handler.pipeline.model._modules, "ctc_head", None)
    answer = handler({"inputs": encoded(0.5), "parameters": {"return_timestamps": "word"}})
    assert error_type(answer) == "invalid_parameter" and "alignment head" in answer["error"]["message"]


@pytest.mark.parametrize(
    "inputs",
    [
        3,
        True,
        [],
        [1.0, 2.0],
        {},
        {"path": "clip.wav"},
        {"url": "http://example.com/clip.wav"},
        {"bytes": b"x"},
        {"array": [0.0], "sampling_rate": 16000, "path": "x"},
        {"array": [0.0], "raw": [0.0], "sampling_rate": 16000},
        {"array": [0.0]},
        {"array": "AAAA", "sampling_rate": 16000},
        {"array": ["a"], "sampling_rate": 16000},
        {"array": [[0.0], [0.0, 1.0]], "sampling_rate": 16000},
        {"array": [{}], "sampling_rate": 16000},
        {"array": [10**400], "sampling_rate": 16000},
        {"array": [0.0], "sampling_rate": 1},
        {"array": [0.0], "sampling_rate": 10**9},
        {"array": [0.0], "sampling_rate": "16000"},
        {"array": [0.0], "sampling_rate": float("nan")},
        "",
        "audio",
        "ümläut==",
        "data:audio/wav,raw",
        "data:;base64",
    ],
)
def test_invalid_input(handler: EndpointHandler, inputs: Any) -> None:
    answer = handler({"inputs": inputs})
    expected = "invalid_audio" if inputs == "" else "invalid_input"
    assert error_type(answer) == expected


@pytest.mark.parametrize(
    "inputs",
    [
        b"",
        b"\x00" * 1000,
        b"RIFF\xff\xff\xff\xffWAVE",
        b"fLaC" + b"\xff" * 500,
        b"OggS" + bytes(range(256)),
        b"ID3" + b"\xff\xfb" * 300,
        b"#EXTM3U\nfile:///etc/hostname\n",
        encoded(0.0),
        encoded(1.0, "FLAC")[:2000],
        encoded(1.0, "OGG")[:1000],
        encoded(0.5, "WAV", rate=1000),
        {"array": [], "sampling_rate": 16000},
        {"array": [[[0.0]]], "sampling_rate": 16000},
        {"array": [float("nan")] * 100, "sampling_rate": 16000},
        {"array": [1e30] * 100, "sampling_rate": 16000},
    ],
)
def test_invalid_audio(handler: EndpointHandler, inputs: Any) -> None:
    assert error_type(handler({"inputs": inputs})) == "invalid_audio"


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "OGG"])
def test_broken_bytes_give_text_or_a_typed_error(handler: EndpointHandler, format: str) -> None:
    data, generator = encoded(1.0, format), np.random.default_rng(1)
    for share in (0.1, 0.5, 0.9):
        cut = bytearray(data[: int(len(data) * share)])
        flipped = bytearray(data)
        for place in generator.integers(len(flipped), size=20):
            flipped[place] ^= 0xFF
        for damaged in (cut, flipped):
            answer = handler({"inputs": bytes(damaged), "parameters": {"max_new_tokens": 1}})
            assert "text" in answer or error_type(answer) in ("invalid_audio", "too_long")


def test_too_large(handler: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_type(handler({"inputs": b"\x00" * 1_000_001})) == "too_large"
    assert (
        error_type(handler({"inputs": {"array": np.zeros(250_001), "sampling_rate": 48000}})) == "too_large"
    )
    assert error_type(handler({"inputs": [b""] * 257})) == "too_large"
    together = handler({"inputs": [encoded(0.5), b"\x00" * 999_000], "parameters": FEW})
    assert "text" in together[0] and error_type(together[1]) == "too_large"

    def refuse(*_: Any, **__: Any) -> bytes:
        raise AssertionError("decoded before its size was looked at")

    monkeypatch.setattr(base64, "b64decode", refuse)
    assert error_type(handler({"inputs": "A" * 1_400_000})) == "too_large"


def test_too_long_stops_reading_where_the_limit_is_passed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = EndpointHandler(str(checkpoint), device="cpu", max_seconds=3)
    data = encoded(3.0, "FLAC")
    assert "text" in handler({"inputs": data, "parameters": FEW})
    assert error_type(handler({"inputs": [data, encoded(0.5)], "parameters": FEW})[1]) == "too_long"
    assert (
        error_type(handler({"inputs": {"array": noise(3.1).tolist(), "sampling_rate": 16000}})) == "too_long"
    )
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(SAMPLING_RATE * 600, np.int16), SAMPLING_RATE, format="FLAC")
    assert len(silence.getvalue()) < 100_000, "ten minutes of silence are a small upload"
    read = []
    preprocess = handler.pipeline.preprocess

    def counted(inputs: Any) -> Iterator[np.ndarray]:
        for block in preprocess(inputs):
            read.append(len(block))
            yield block

    monkeypatch.setattr(handler.pipeline, "preprocess", counted)
    assert error_type(handler({"inputs": silence.getvalue()})) == "too_long"
    assert sum(read) < 6 * SAMPLING_RATE


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. SECRET"), "out_of_memory"),
        (MemoryError("SECRET"), "out_of_memory"),
        (RuntimeError("SECRET"), "internal_error"),
        (ValueError("SECRET"), "internal_error"),
    ],
)
def test_faults_of_the_server_keep_their_words_to_themselves(
    handler: EndpointHandler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    expected: str,
) -> None:
    monkeypatch.setattr(handler.pipeline, "_forward", raising(error))
    with caplog.at_level(logging.INFO, logger=module.__name__):
        answer = handler({"inputs": encoded(0.5)})
    assert error_type(answer) == expected
    assert "SECRET" not in answer["error"]["message"] + caplog.text
    if expected == "internal_error":
        assert "in _recognise" in caplog.text and type(error).__name__ in caplog.text


def test_every_error_type_is_tested_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in ERROR_TYPES)


# Settings and logs ----------------------------------------------------------------------------------------------------


def test_start_is_logged_and_content_is_not(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        handler = EndpointHandler(str(checkpoint))
        assert "warmed up in" in caplog.text
        text = handler({"inputs": encoded(), "parameters": FEW})["text"]
        assert text and text not in caplog.text
        handler({"inputs": "a secret that is not base64", "parameters": {}})
        assert "secret" not in caplog.text


def test_settings_from_the_environment(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_DTYPE", "bfloat16")
    monkeypatch.setenv("TINY_AUDIO_DEVICE", "cpu")
    monkeypatch.setenv("TINY_AUDIO_MAX_SECONDS", "1.5")
    monkeypatch.setenv("TINY_AUDIO_MAX_UPLOAD_BYTES", "100000")
    handler = EndpointHandler(str(checkpoint))
    assert handler.pipeline.model.dtype == torch.bfloat16
    assert "text" in handler({"inputs": encoded(1.0), "parameters": FEW})
    assert error_type(handler({"inputs": encoded(2.0)})) == "too_long"
    assert error_type(handler({"inputs": b"\x00" * 100_001})) == "too_large"
    assert EndpointHandler(str(checkpoint), dtype="float32").pipeline.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TINY_AUDIO_DTYPE", "int8"),
        ("TINY_AUDIO_DEVICE", "toaster"),
        ("TINY_AUDIO_MAX_SECONDS", "an hour"),
        ("TINY_AUDIO_MAX_UPLOAD_BYTES", "-1"),
    ],
)
def test_settings_that_cannot_be(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable):
        EndpointHandler(str(checkpoint))


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.pick_dtype("auto", torch.device("cpu")) == torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        assert module.pick_dtype("auto", torch.device("cuda")) == expected


def test_limits_are_those_of_reading() -> None:
    assert module.SAMPLING_RATES == (asr_audio.LOWEST_SAMPLING_RATE, asr_audio.HIGHEST_SAMPLING_RATE)
    assert module.HIGHEST_AMPLITUDE == asr_audio.HIGHEST_AMPLITUDE
    assert module.SAMPLING_RATE == asr_audio.SAMPLING_RATE


# As an endpoint does --------------------------------------------------------------------------------------------------

ENDPOINT = """
import sys
sys.modules["tiny_audio"] = None  # whoever imports the package fails
import base64, importlib.util, json, os

folder, secret = sys.argv[1:]
# huggingface-inference-toolkit, utils.check_and_register_custom_pipeline_from_directory
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", os.path.join(folder, "handler.py"))
sys.path.insert(0, folder)
module = importlib.util.module_from_spec(spec)
sys.modules["handler.EndpointHandler"] = module
spec.loader.exec_module(module)
handler = module.EndpointHandler(folder)

touched = []
def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        touched.append(repr(arguments[:1]))
sys.addaudithook(watch)

data = open(os.path.join(folder, "clip.wav"), "rb").read()
few = {"max_new_tokens": 4}
answers = [handler({"inputs": data, "parameters": few})]
answers += handler({"inputs": [base64.b64encode(data).decode(), data], "parameters": few})
del touched[:]
os.chdir(os.path.dirname(secret))
name = os.path.basename(secret)  # is base64, and a file that is there, and audio
strings = [secret, name, "file://" + secret, "http://127.0.0.1:9/" + name, "https://example.com/clip.wav",
           os.path.join(folder, "clip.wav"), "../" + name, "~/" + name, "data:audio/wav," + secret,
           "data:audio/wav;base64," + secret, "|cat " + secret, "concat:" + secret]
refused = [handler({"inputs": string}) for string in strings]
refused += handler({"inputs": strings})
refused += [handler({"inputs": {"array": string, "sampling_rate": 16000}}) for string in strings]
refused += [handler({"inputs": {"path": string}}) for string in strings]
print("RESULT", json.dumps([answers, refused, touched]))
"""


def test_handler_of_a_checkpoint_loaded_as_the_toolkit_does(checkpoint: Path, tmp_path: Path) -> None:
    folder = checkpoint
    (folder / "clip.wav").write_bytes(encoded())
    secret = tmp_path / "wave"
    secret.write_bytes(encoded())
    output = run_outside(ENDPOINT, str(folder), str(secret), folder=tmp_path)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    answers, refused, touched = json.loads(line.removeprefix("RESULT "))
    expected = EndpointHandler(str(folder), device="cpu")({"inputs": encoded(), "parameters": FEW})
    assert answers == [expected] * 3
    assert {error_type(answer) for answer in refused} == {"invalid_input", "invalid_audio"}
    assert touched == [], "strings are neither opened nor looked up nor handed to a program"
