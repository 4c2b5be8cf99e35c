"""What new towers and tokenizers are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_models import examples, tiny_config
from tests.train.short_runs import write_speech
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.hub.asr_encoders import build_encoder, run_encoder
from tiny_audio.train.build import build_data, build_model, byte_tokenizer, check_alphabet, loss_weights
from tiny_audio.train.run import save_model

WORDS = ["zero", "one", "seven"]


def test_words_of_the_byte_tokenizer_are_one_token_each() -> None:
    tokenizer = byte_tokenizer(WORDS)
    tokens = tokenizer("seven one zero one").input_ids
    assert len(tokens) == 4 and tokens[1] == tokens[3]
    assert tokenizer.decode(tokens).strip() == "seven one zero one"
    assert len(tokenizer) < 256 + 40


@pytest.mark.parametrize("text", ["seventy-one", "zerö", "日本 one", "a  b"])
def test_other_text_is_written_in_bytes(text: str) -> None:
    tokenizer = byte_tokenizer(WORDS)
    assert tokenizer.decode(tokenizer(text).input_ids).strip() == text


def test_a_new_encoder_hears_the_sound_over_its_positions() -> None:
    """With transformers' own random weights the frames of two different sounds are nearly the same."""
    model, processor = build_model(tiny_config())
    batch = processor.collate(examples(processor)[:2])
    features, mask = batch["input_features"], batch["input_features_mask"]
    length = int(mask.sum(dim=1).min()) // 2 * 2

    def difference(tower: torch.nn.Module) -> float:
        with torch.no_grad():
            frames = run_encoder(tower.eval(), features[..., :length], mask[:, :length])
        return float((frames[0] - frames[1]).norm() / frames.norm())

    ours = difference(model.model.audio_tower)
    assert ours > 3 * difference(build_encoder(model.config.audio_config))


def test_a_weight_that_grows_from_zero_has_its_head(tmp_path: Path) -> None:
    grows = ("ctc.weight=0", "ctc.final_weight=0.5", "ctc.alone_share=0")
    config = tiny_config(*grows)
    model, processor = build_model(config)
    assert model.ctc_head is not None and model.ctc_head.weight.requires_grad
    assert loss_weights(config, config.training.max_steps // 2).ctc == pytest.approx(0.25)
    without, _ = build_model(tiny_config("ctc.weight=0", "ctc.final_weight=0", "ctc.alone_share=0"))
    assert without.ctc_head is None
    # A model without the head gets it, and the texts are looked at.
    save_model(without, processor, tmp_path / "model")
    again, _ = build_model(tiny_config(*grows, f"init_from={tmp_path}/model"))
    assert again.ctc_head is not None
    write_speech(tmp_path / "speech")
    config = tiny_config(*grows, f"data.train={tmp_path}/speech", "ctc.vocabulary=xyz")
    _, processor = build_model(config)
    with pytest.raises(UserError, match="letters are not in"):
        build_data(config, open_sources(config.data.train), processor)


def test_an_alphabet_that_the_alignment_head_cannot_write() -> None:
    vocabulary = " abcdefghijklmnopqrstuvwxyz"
    check_alphabet(vocabulary, ["Ça va, naïve café", "one two", ""])
    with pytest.raises(UserError, match=r'100% of the letters .* ctc.vocabulary=" abc.*веипрт"'):
        check_alphabet(vocabulary, ["привет"])
    with pytest.raises(UserError, match=r"ctc.weight=0"):
        check_alphabet(vocabulary, ["".join(map(chr, range(0x4E00, 0x4F00)))])
