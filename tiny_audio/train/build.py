"""From a training config to a model and its processor: new towers, pretrained towers, or a checkpoint to go on from."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

from tiny_audio.data.features import FrameStore
from tiny_audio.data.loader import TrainData
from tiny_audio.data.source import Source
from tiny_audio.errors import UserError, first_line
from tiny_audio.hub.asr_checkpoint import (
    embedding_rms,
    fingerprint,
    fit_vocabulary,
    generation_config,
    load_decoder,
    load_model,
    load_tokenizer,
    read_config,
    split_causal_lm,
)
from tiny_audio.hub.asr_config import TinyAudioConfig, resolve_model_path
from tiny_audio.hub.asr_embedding_ctc import EmbeddingCTC
from tiny_audio.hub.asr_encoders import (
    build_encoder,
    encoder_geometry,
    encoder_output_length,
    encoder_width,
    load_encoder,
    run_encoder,
)
from tiny_audio.hub.asr_lora import LORA_MARK, inject_lora
from tiny_audio.hub.asr_losses import LossWeights, plain_text
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.hub.asr_processing import SAMPLING_RATE, TinyAudioProcessor, add_audio_token
from tiny_audio.train.architecture import architecture_of, blaming, feature_extractor_of
from tiny_audio.train.config import CONFIG_FOLDER

logger = logging.getLogger(__name__)

# Of the first transcripts of each source, this share of letters may lie outside the alignment head's vocabulary.
UNKNOWN_LETTERS_ALLOWED = 0.1
TEXTS_LOOKED_AT = 1000
LARGEST_ALPHABET = 100
AUTO = "auto"  # of training.batch_seconds
BALANCE_WEIGHT = 0.01  # of the load-balancing loss, as in Switch Transformers


def byte_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of the 256 byte values and special tokens: writes any text in any language, needs no file.

    Each of `words` is one token when a space or the start of the text stands before it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    # Without words nothing is joined, so a space may stay a token by itself.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(words), use_regex=bool(words))
    tokenizer.decoder = decoders.ByteLevel()
    if words:
        trainer = trainers.BpeTrainer(
            vocab_size=len(alphabet) + sum(len(word.encode()) for word in words),  # merges enough for all
            initial_alphabet=alphabet,
            show_progress=False,
        )
        tokenizer.train_from_iterator(words, trainer)
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special.values()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def checkpointed_towers(model: Any, setting: bool | str) -> list[Any]:
    """The towers of `model` whose activations are computed again, by `training.gradient_checkpointing`."""
    towers = {"encoder": model.model.audio_tower, "decoder": model.model.language_model}
    return [tower for name, tower in towers.items() if setting is True or setting == name]


def loss_weights(config: DictConfig, step: int = 0) -> LossWeights:
    """The weights of the losses at `step`, counted from 0."""
    progress = step / config.training.max_steps  # 0 at the first step
    final = config.ctc.weight if config.ctc.final_weight is None else config.ctc.final_weight
    return LossWeights(
        language_model=float(progress >= config.ctc.alone_share),
        ctc=config.ctc.weight + progress * (final - config.ctc.weight),
        embedding=config.ctc.embedding_weight,
        balance=BALANCE_WEIGHT if config.model.projector_type == "moe" else 0.0,
        embedding_negatives=config.ctc.embedding_negatives,
    )


def trains_alignment_head(config: DictConfig) -> bool:
    """Whether the alignment head's loss has a weight at any step."""
    return config.ctc.weight > 0 or bool(config.ctc.final_weight)


def fixed_batch_seconds(settings: DictConfig) -> float:
    """`training.batch_seconds`, or where that is auto, its default: what is taken where nothing can be tried."""
    if settings.batch_seconds != AUTO:
        return float(settings.batch_seconds)
    return float(OmegaConf.load(CONFIG_FOLDER / "config.yaml").training.batch_seconds)


def check_alphabet(vocabulary: str, texts: Sequence[str]) -> None:
    """Raises UserError where the alignment head cannot write much of what the transcripts hold.

    It would learn silence for the rest, and the guard, which asks it, would silence the decoder as well.
    """
    letters = Counter(c for text in texts for c in plain_text(text) if c.isalpha())
    unknown = {letter: count for letter, count in letters.items() if letter not in vocabulary}
    share = sum(unknown.values()) / max(1, letters.total())
    if share <= UNKNOWN_LETTERS_ALLOWED:
        return
    alphabet = "".join(sorted(set(vocabulary) | set(unknown)))
    advice = (
        f'set ctc.vocabulary="{alphabet}"'
        if len(alphabet) <= LARGEST_ALPHABET
        else "set ctc.weight=0 ctc.final_weight=null (no head)"
    )
    some = "".join(sorted(unknown, key=lambda letter: -unknown[letter])[:10])
    raise UserError(
        f"data.train: {100 * share:.0f}% of the letters are not in ctc.vocabulary, such as {some}: {advice}"
    )


def build_data(
    config: DictConfig,
    sources: Sequence[Source],
    processor: TinyAudioProcessor,
    *,
    variants: int | None = None,
    store: FrameStore | None = None,
) -> TrainData:
    """The batches that a config describes; `variants` and `store` as in `TrainData`.

    Raises UserError where too little of the sources can be used.
    """
    if trains_alignment_head(config) and processor.ctc_vocabulary:
        rows = [row for source in sources for row in itertools.islice(source.utterances(), TEXTS_LOOKED_AT)]
        check_alphabet(processor.ctc_vocabulary, [row.text for row in rows])
    return TrainData(
        sources,
        processor,
        seed=config.seed,
        batch_seconds=fixed_batch_seconds(config.training),
        max_clips=config.training.per_device_train_batch_size,
        num_workers=config.training.num_workers,
        augmentation=config.augmentation,
        min_seconds=config.data.min_seconds,
        max_seconds=min(config.data.max_seconds, processor.max_seconds),
        languages=config.data.languages,
        max_characters_per_second=config.data.max_characters_per_second,
        max_bad_fraction=config.data.max_bad_fraction,
        clean_text=config.data.clean_text,
        short_first=config.data.short_first,
        variants=variants,
        store=store,
    )


def check_start(init_from: str | None, folder: Path) -> None:
    """Raises UserError where the model to start from lies in the run's own `folder`.

    An earlier run there is moved aside, and the path would be dead: in config.yaml, and for whoever resumes the run.
    """
    if init_from is None:
        return
    start, own = Path(resolve_model_path(init_from)).resolve(), folder.resolve()
    if start.is_dir() and own in (start, *start.parents):
        raise UserError(
            f"init_from={init_from} lies in output_dir={folder}, which a new run moves aside: "
            f"name another folder, such as output_dir={folder}-2"
        )


def build_model(config: DictConfig) -> tuple[TinyAudioForConditionalGeneration, TinyAudioProcessor]:
    """The model that a config describes, ready to train, in float32 on the CPU.

    Random weights depend on `config.seed` alone. With `init_from`, the model is that checkpoint; adapters and heads
    that the config asks for and the checkpoint lacks are added to it, new.

    Raises:
        UserError: a part cannot be found, or parts do not fit each other.
    """
    torch.manual_seed(config.seed)
    try:
        if config.init_from:
            model, processor = load_model(
                resolve_model_path(config.init_from), device="cpu", dtype=torch.float32
            )
            _add_parts(model, processor, config)
        else:
            model, processor = _new_model(config)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(str(error)) from error
    freeze(model, config.model.freeze_encoder, config.model.freeze_decoder)
    freeze_heads_without_loss(model, config)
    return model, processor


def build_encoder_side(config: DictConfig) -> tuple[Any, TinyAudioProcessor]:
    """The encoder that `build_model` would put into its model, and a processor for its inputs; no decoder is loaded.

    Raises:
        UserError: a part cannot be found.
    """
    torch.manual_seed(config.seed)
    try:
        if config.init_from:
            return _encoder_side_of_checkpoint(resolve_model_path(config.init_from))
        tower, feature_extractor = _encoder(config.model)
        settings = config.model
        architecture = TinyAudioConfig(
            audio_config=tower.config,
            projector_type=settings.projector_type,
            stack_factor=settings.stack_factor,
        )
        tokenizer = build_tokenizer(settings)
        return tower, TinyAudioProcessor.from_parts(
            architecture, feature_extractor, tokenizer, settings.prompt
        )
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error


def _encoder_side_of_checkpoint(path: str) -> tuple[Any, TinyAudioProcessor]:
    architecture = read_config(path)
    if architecture.encoder_lora or architecture.encoder_in_checkpoint:
        model, processor = load_model(path, device="cpu", dtype=torch.float32)
        return model.model.audio_tower, processor
    base: Any = architecture.encoder_base
    tower = load_encoder(resolve_model_path(base["name"]), revision=base.get("revision"), dtype=torch.float32)
    return tower, TinyAudioProcessor.from_pretrained(path)


def _new_model(config: DictConfig) -> tuple[TinyAudioForConditionalGeneration, TinyAudioProcessor]:
    audio_tower, feature_extractor = _encoder(config.model)
    tokenizer = build_tokenizer(config.model)
    add_audio_token(tokenizer)
    causal_lm = _decoder(config.model, tokenizer)
    architecture = describe(config, audio_tower.config, causal_lm.config)
    with blaming("model.feature_extractor"):
        architecture.frame_seconds = frame_seconds(architecture.audio_config, feature_extractor)
    processor = TinyAudioProcessor.from_parts(architecture, feature_extractor, tokenizer, config.model.prompt)
    architecture.audio_token_id = processor.audio_token_id
    trunk, head = split_causal_lm(causal_lm)
    for base, tower in ((architecture.encoder_base, audio_tower), (architecture.decoder_base, trunk)):
        if base is not None:
            base["fingerprint"] = fingerprint(tower)
    model = TinyAudioForConditionalGeneration(architecture, audio_tower, trunk, head)
    if not config.model.encoder_model_name:
        try_encoder(audio_tower, processor)
    model.model.multi_modal_projector.set_output_scale(embedding_rms(model.get_input_embeddings()))
    model.generation_config = generation_config(
        tokenizer, processor.end_token_id, processor.pad_token_id, processor.audio_token_id
    )
    return model, processor


def additions(architecture: TinyAudioConfig, config: DictConfig) -> dict[str, Any]:
    """What a config asks for beyond the `architecture` of the checkpoint that it starts from, by name of its field."""
    wanted = {
        "encoder_lora": _lora(config.encoder_lora, enabled=True),
        "decoder_lora": _lora(config.peft, enabled=config.peft.peft_method is not None),
        "ctc_vocabulary": config.ctc.vocabulary if trains_alignment_head(config) else None,
        "embedding_ctc": config.ctc.embedding_weight > 0,
        # What trains is no longer the base model's: the checkpoint has to hold it.
        "encoder_in_checkpoint": not config.model.freeze_encoder,
        "decoder_in_checkpoint": not config.model.freeze_decoder,
    }
    return {name: value for name, value in wanted.items() if value and not getattr(architecture, name)}


def _add_parts(
    model: TinyAudioForConditionalGeneration, processor: TinyAudioProcessor, config: DictConfig
) -> None:
    """Puts `additions` into a loaded model, and says which keys of the config its checkpoint overrules."""
    architecture = model.config
    architecture.ctc_decoding_weight = config.ctc.decoding_weight
    for key in ("projector_type", "stack_factor", "projector_hidden_size"):
        _say_kept(f"model.{key}", getattr(architecture, key), config.model[key])
    for key, lora in (("encoder_lora", architecture.encoder_lora), ("peft", architecture.decoder_lora)):
        if lora and config[key].r:
            _say_kept(f"{key}.r", lora["r"], config[key].r)
            _say_kept(f"{key}.lora_alpha", lora.get("lora_alpha", lora["r"]), config[key].lora_alpha)
    for name, value in additions(architecture, config).items():
        setattr(architecture, name, value)
        if name == "ctc_vocabulary":
            model.ctc_head = nn.Linear(encoder_width(architecture.audio_config), len(value) + 1)
            processor.ctc_vocabulary = value
        elif name == "embedding_ctc":
            text_config = architecture.text_config
            model.embedding_ctc = EmbeddingCTC(text_config.hidden_size, text_config.vocab_size)
        elif name == "encoder_lora":
            inject_lora(model.model.audio_tower, value)
        elif name == "decoder_lora":
            inject_lora(model.model.language_model, value)


def _say_kept(key: str, kept: Any, asked: Any) -> None:
    if kept != asked:
        logger.warning("%s=%s is not used: the model of init_from has %s and keeps it", key, asked, kept)


def describe(config: DictConfig, audio_config: Any, text_config: Any) -> TinyAudioConfig:
    """The architecture of a training config, given the configs of its towers."""
    settings = config.model
    return TinyAudioConfig(
        audio_config=audio_config,
        text_config=text_config,
        projector_type=settings.projector_type,
        stack_factor=settings.stack_factor,
        projector_hidden_size=settings.projector_hidden_size or text_config.hidden_size,
        projector_activation=settings.projector_activation,
        ctc_vocabulary=config.ctc.vocabulary if trains_alignment_head(config) else None,
        embedding_ctc=config.ctc.embedding_weight > 0,
        ctc_decoding_weight=config.ctc.decoding_weight,
        encoder_lora=_lora(config.encoder_lora, enabled=True),
        decoder_lora=_lora(config.peft, enabled=config.peft.peft_method is not None),
        encoder_base=_base(settings.encoder_model_name, settings.encoder_revision),
        decoder_base=_base(settings.decoder_model_name, settings.decoder_revision),
        encoder_in_checkpoint=not (settings.encoder_model_name and settings.freeze_encoder),
        decoder_in_checkpoint=not (settings.decoder_model_name and settings.freeze_decoder),
    )


def _lora(settings: DictConfig, enabled: bool) -> dict[str, Any] | None:
    if not enabled or not settings.r:
        return None
    values = OmegaConf.to_container(settings, resolve=True)
    return {key: value for key, value in values.items() if key != "peft_method"}


def _base(name: str | None, revision: str | None) -> dict[str, Any] | None:
    return {"name": name, "revision": revision} if name else None


def _encoder(settings: DictConfig) -> tuple[nn.Module, Any]:
    name = settings.encoder_model_name
    if name:
        where = resolve_model_path(name)
        tower = load_encoder(where, revision=settings.encoder_revision, dtype=torch.float32)
        try:
            return tower, AutoFeatureExtractor.from_pretrained(where, revision=settings.encoder_revision)
        except (OSError, ValueError) as error:
            raise OSError(f"cannot load the feature extractor of {name!r}: {first_line(error)}") from error
    key = "model.encoder_config"
    with blaming(key):
        tower = build_encoder(architecture_of(key, settings.encoder_config))
        initialise_encoder(tower)
    return tower, feature_extractor_of(settings.feature_extractor)


def try_encoder(tower: nn.Module, processor: TinyAudioProcessor) -> None:
    """A second of silence through a new encoder. Raises UserError where its sizes do not fit each other."""
    training = tower.training
    with blaming("model.encoder_config with model.feature_extractor"), torch.no_grad():
        num_samples = int(min(1.0, processor.max_seconds) * SAMPLING_RATE)
        features = processor.features(np.zeros(num_samples, dtype=np.float32))
        run_encoder(tower.eval(), features[None])
    tower.train(training)


def initialise_encoder(tower: nn.Module) -> None:
    """Random weights that keep the scale of what passes through, whatever the width (arXiv:1502.01852).

    transformers draws all weights with a deviation of 0.02, which suits a width of a thousand. A narrow encoder is
    nearly blind with it: after its convolutions the sound is a few per cent of the position embeddings.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))  # PyTorch's own for linear layers


def build_tokenizer(settings: DictConfig) -> Any:
    """The tokenizer that the `model` part of a config names. Raises ValueError when it names none."""
    if settings.tokenizer == "bytes":
        return byte_tokenizer(settings.tokenizer_words)
    name = settings.tokenizer or settings.decoder_model_name
    if not name:
        raise ValueError(
            'a decoder with random weights needs model.tokenizer: "bytes", or a folder or hub id'
        )
    return load_tokenizer(name, None if settings.tokenizer else settings.decoder_revision)


def _decoder(settings: DictConfig, tokenizer: Any) -> nn.Module:
    if settings.decoder_model_name:
        causal_lm = load_decoder(settings.decoder_model_name, revision=settings.decoder_revision)
        fit_vocabulary(causal_lm, len(tokenizer))
        return causal_lm
    key = "model.decoder_config"
    text_config = architecture_of(
        key,
        settings.decoder_config,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with blaming(key):
        return AutoModelForCausalLM.from_config(text_config)


def frame_seconds(audio_config: Any, feature_extractor: Any) -> float:
    """Time from one encoder frame to the next, measured on the length function itself."""
    geometry = encoder_geometry(audio_config)
    one_minute = 60 * SAMPLING_RATE // getattr(feature_extractor, "hop_length", 1)
    return round(60 / int(encoder_output_length(geometry, one_minute)), 4)


def freeze(model: TinyAudioForConditionalGeneration, freeze_encoder: bool, freeze_decoder: bool) -> None:
    """Decides what trains: a frozen tower trains its LoRA weights alone; projector and heads always train."""
    model.requires_grad_(True)
    parts = [(model.model.audio_tower, freeze_encoder), (model.model.language_model, freeze_decoder)]
    parts.append((model.lm_head, freeze_decoder))
    for part, frozen in parts:
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(not frozen or LORA_MARK in f".{name}")
    positions = getattr(model.model.audio_tower, "embed_positions", None)
    if positions is not None:  # Whisper's sinusoids are not learned
        positions.requires_grad_(False)


def freeze_heads_without_loss(model: TinyAudioForConditionalGeneration, config: DictConfig) -> None:
    """A head that a checkpoint brings and no loss trains stays as it is: DDP takes a missing gradient for a mistake."""
    alignment, embedding = trains_alignment_head(config), config.ctc.embedding_weight > 0
    for head, trains in ((model.ctc_head, alignment), (model.embedding_ctc, embedding)):
        if head is not None and not trains:
            head.requires_grad_(False)
