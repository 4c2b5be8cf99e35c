"""Recognisers on this machine: tiny random models of real classes, saved and loaded as those of the hub are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tests.tiny_models import WHISPER, WHISPER_DECODER, noise
from tiny_audio.errors import UserError
from tiny_audio.evaluate.providers import TinyAudioProvider, load_provider

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
UNUSED = ["<|translate|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]


def whisper_tokenizer(folder: Path) -> Any:
    """A word-level tokenizer with Whisper's special tokens and its times, in the order that Whisper has them."""
    from tokenizers import Tokenizer, decoders, models

    times = [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
    words = [f" {first}{second}" for first in LETTERS for second in "aeiou"]
    vocabulary = {word: index for index, word in enumerate([*words, *UNUSED, *SPECIAL, *times])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], bos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )
    fast.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:], *UNUSED, *times]})
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"), max_target_positions=24)


def make_whisper(folder: Path, max_target_positions: int) -> Path:
    ids = whisper_tokenizer(folder).get_vocab()
    settings = {
        **WHISPER,
        **WHISPER_DECODER,
        "max_source_positions": 1500,
        "max_target_positions": max_target_positions,
    }
    settings.pop("model_type")
    torch.manual_seed(0)
    special = {
        "vocab_size": len(ids),
        "eos_token_id": ids[SPECIAL[0]],
        "pad_token_id": ids[SPECIAL[0]],
        "bos_token_id": ids[SPECIAL[0]],
        "decoder_start_token_id": ids[SPECIAL[1]],
    }
    model = WhisperForConditionalGeneration(WhisperConfig(**{**settings, **special}, init_std=0.4))
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


def wav2vec2(folder: Path, norm: str) -> Path:
    torch.manual_seed(0)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4}
    vocabulary.update((letter, 5 + index) for index, letter in enumerate(LETTERS))
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 8, 8),
        conv_kernel=(10, 8, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        initializer_range=1.0,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_whisper_hears_the_same_alone_and_in_a_batch(whisper: Path) -> None:
    provider = load_provider("transformers", str(whisper), "cpu")
    clips = [noise(seconds, seed) for seed, seconds in enumerate([0.5, 2.0, 1.0, 3.0])]
    together = provider.transcribe(clips)
    assert together == [provider.transcribe([clip])[0] for clip in clips]
    assert any(together)
    assert provider.max_seconds is None
    assert not provider.costs_money


def test_whisper_is_told_the_language_and_the_task(whisper: Path) -> None:
    from tiny_audio.evaluate.provider_transformers import WhisperProvider

    provider = load_provider("transformers", str(whisper), "cpu")
    assert isinstance(provider, WhisperProvider)
    features = provider.extract([noise(1.0)], padding="max_length")
    output = provider.model.generate(
        **features, **provider.options, return_dict_in_generate=True, force_unique_generate_call=True
    )
    expected = [provider.tokenizer.get_vocab()[token] for token in SPECIAL[1:]]
    assert output.sequences[0, :4].tolist() == expected


def test_a_whisper_that_loops_is_made_to_draw_anew(whisper: Path) -> None:
    from tiny_audio.evaluate.provider_transformers import WhisperProvider, repeats_itself

    provider = load_provider("transformers", str(whisper), "cpu")
    assert isinstance(provider, WhisperProvider)
    steady = provider.transcribe([noise(1.0)])
    provider.model.generation_config.suppress_tokens = list(
        range(1, len(provider.tokenizer))
    )  # one word is left
    (loop,) = provider.transcribe([noise(1.0)])
    assert repeats_itself(loop)  # nothing else can be drawn: the last try is kept
    provider.model.generation_config.suppress_tokens = None
    assert provider.transcribe([noise(1.0)]) == steady
    features = provider.extract([noise(1.0)], padding="max_length", return_attention_mask=True)
    drawn = provider.draw_anew(features)
    assert drawn == provider.draw_anew(features) and not repeats_itself(drawn)


def test_what_counts_as_a_loop() -> None:
    from tiny_audio.evaluate.provider_transformers import repeats_itself

    assert repeats_itself("3, " * 40)
    assert not repeats_itself("") and not repeats_itself("five five five five")
    assert not repeats_itself(
        "Press one to hear it again, press two to delete it, or press three to save it."
    )


def test_whisper_takes_long_clips_among_short_ones(whisper: Path) -> None:
    provider = load_provider("transformers", str(whisper), "cpu")
    long, short = provider.transcribe([noise(33.0), noise(1.0)])
    assert isinstance(long, str)
    assert short == provider.transcribe([noise(1.0)])[0]


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_ctc_hears_the_same_alone_and_in_a_batch(tmp_path: Path, norm: str) -> None:
    provider = load_provider("transformers", str(wav2vec2(tmp_path / norm, norm)), "cpu")
    clips = [noise(seconds, seed) for seed, seconds in enumerate([0.5, 2.0, 1.0])]
    together = provider.transcribe(clips)
    assert together == [provider.transcribe([clip])[0] for clip in clips]
    assert all(together)
    assert provider.max_seconds is not None


def test_ctc_joins_repeats_and_leaves_blanks_out(tmp_path: Path) -> None:
    from tiny_audio.evaluate.provider_transformers import CTCProvider

    provider = load_provider("transformers", str(wav2vec2(tmp_path / "ctc", "layer")), "cpu")
    assert isinstance(provider, CTCProvider)
    signs = {"_": "<pad>", "#": "</s>"}
    tokens = [signs.get(sign, sign) for sign in "_hheel_ll_oo||ok_#"]
    assert provider.read(provider.tokenizer.convert_tokens_to_ids(tokens)) == "hello ok"


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    folder = wav2vec2(tmp_path / "headless", "group")
    Wav2Vec2Model.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(UserError, match="lacks 2 weights of a Wav2Vec2ForCTC, such as lm_head"):
        load_provider("transformers", str(folder), "cpu")


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(UserError, match="is a bert model"):
        load_provider("transformers", str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "voxtral"}), encoding="utf-8")
    with pytest.raises(UserError, match="wants a written prompt"):
        load_provider("transformers", str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="Cannot load the model"):
        load_provider("transformers", str(tmp_path), "cpu")


def test_a_model_of_ours_is_sent_to_its_own_provider(tmp_path: Path) -> None:
    config = {"model_type": "tiny_audio", "auto_map": {"AutoConfig": "asr_config.TinyAudioConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="leave out --provider transformers"):
        load_provider("transformers", str(tmp_path), "cpu")


def test_code_of_a_model_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "ears", "auto_map": {"AutoConfig": "ears.EarsConfig"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "ears.py").write_text(
        "from transformers import PreTrainedConfig\n"
        f"open({str(mark)!r}, 'w').close()\n"
        "class EarsConfig(PreTrainedConfig):\n    model_type = 'ears'\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="--trust-remote-code"):
        load_provider("transformers", str(folder), "cpu")
    assert not mark.exists()
    with pytest.raises(UserError, match="is a ears model"):
        load_provider("transformers", str(folder), "cpu", trust_remote_code=True)
    assert mark.exists()


def test_a_name_below_the_models_folder(whisper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_AUDIO_MODELS", str(whisper.parent))
    by_name = load_provider("transformers", whisper.name, "cpu")
    assert by_name.identity == load_provider("transformers", str(whisper), "cpu").identity


def test_other_weights_are_another_identity(tmp_path: Path) -> None:
    folder = wav2vec2(tmp_path / "ctc", "layer")
    before = load_provider("transformers", str(folder), "cpu").identity
    (folder / "README.md").write_text("notes", encoding="utf-8")
    assert load_provider("transformers", str(folder), "cpu").identity == before
    model = Wav2Vec2ForCTC.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.bias[3] += 1
    model.save_pretrained(folder)
    assert load_provider("transformers", str(folder), "cpu").identity != before


def test_our_checkpoints_identity_follows_weights_and_options(tmp_path: Path) -> None:
    from tests.tiny_models import tiny_model

    model, processor = tiny_model()
    in_memory = TinyAudioProvider(model, processor).identity
    assert TinyAudioProvider(model, processor, max_new_tokens=3).identity != in_memory
    for folder in ("one", "two"):
        model.save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
    identities = [
        load_provider("tiny-audio", str(tmp_path / name), "cpu").identity for name in ("one", "two")
    ]
    assert identities[0] == identities[1]  # the content counts, not the name of the folder
    with torch.no_grad():
        next(model.parameters()).view(-1)[1] += 0.5
    assert TinyAudioProvider(model, processor).identity != in_memory
    model.save_pretrained(tmp_path / "two")
    assert load_provider("tiny-audio", str(tmp_path / "two"), "cpu").identity != identities[0]


def test_faster_whisper_hears_its_own_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctranslate2.converters import TransformersConverter

    whisper = tmp_path / "whisper"
    make_whisper(whisper, max_target_positions=448)  # the length that faster-whisper takes for granted
    folder = tmp_path / "converted"
    TransformersConverter(str(whisper), copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(
        str(folder)
    )
    provider = load_provider("faster-whisper", str(folder), "cpu")
    texts = provider.transcribe([noise(1.0), noise(31.0)])
    assert all(isinstance(text, str) for text in texts), texts
    assert "faster-whisper" in provider.identity
    assert str(folder) not in provider.identity
    again = load_provider("faster-whisper", str(folder), "cpu")
    assert texts == again.transcribe([noise(1.0), noise(31.0)])
    # A model that knows nothing is unsure and repeats itself: its texts are drawn, not the likeliest.
    monkeypatch.setattr("tiny_audio.evaluate.provider_faster_whisper.TEMPERATURES", (0.0,))
    assert all(
        drawn != greedy
        for drawn, greedy in zip(texts, again.transcribe([noise(1.0), noise(31.0)]), strict=True)
    )
    with pytest.raises(UserError, match=r"Cannot load the model .* by faster-whisper"):
        load_provider("faster-whisper", str(whisper), "cpu")
    with pytest.raises(UserError, match="not on mps"):
        load_provider("faster-whisper", str(folder), "mps")
