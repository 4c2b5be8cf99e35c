"""Audio encoders by table: what each family hears, how many frames it gives, how to build, load and run one.

Legend: B batch, S samples, n_mels mel bins, L feature length (mel frames, or samples for encoders that hear
the waveform), F encoder frames, D_e encoder width.

Towers are transformers' own bare encoders, with their names of modules and weights. A clip's frames do not
depend on its batch mates or on how far the batch is padded.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    HubertModel,
    ParakeetEncoder,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Model,
    WavLMModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from .asr_encoder_forward import (
    Padding,
    freeze_batch_statistics,
    run_parakeet,
    run_wav2vec2,
    run_whisper,
    share_positions,
)
from .asr_wavlm import use_callable_projections

logger = logging.getLogger(__name__)

Length = TypeVar("Length", int, Tensor)  # one length, or a tensor of them
FeatureKind = Literal["mel", "waveform"]
FEATURE_UNITS: dict[FeatureKind, str] = {"mel": "feature frames", "waveform": "samples"}


@dataclass(frozen=True)
class Convolution:
    """What a convolution along time does to a length."""

    kernel: int
    stride: int
    padding: int = 0  # on either side


@dataclass(frozen=True)
class EncoderFamily:
    """All that sets one family of encoders apart.

    Attributes:
        model_class: the bare encoder in transformers.
        feature_kind: "mel" (B, n_mels, L) or "waveform" (B, S).
        geometry_fields: config values that the frame count depends on.
        convolutions: those values to the convolutions that shorten the input.
        forward: runs a tower: (tower, input_features, padding, F) to frames (B, F, D_e).
        settings: config values that hold for every tower of the family, whatever its checkpoint says.
        unused_weights: patterns of checkpoint weights of heads and decoders, which an encoder does without.
        checkpoint_prefixes: what the encoder's weights are called by in checkpoints of whole models, where
            transformers does not take it off by itself.
        max_length_fields: config value to feature frames per unit, where positions are limited.
        whole_models: model types that hold such an encoder as their `encoder_config`.
        unsupported: config switches that are refused when set, with the reason.
    """

    model_class: Any  # a subclass of PreTrainedModel
    feature_kind: FeatureKind
    geometry_fields: tuple[str, ...]
    convolutions: Callable[[dict[str, Any]], list[Convolution]]
    forward: Callable[[Any, Tensor, Padding | None, int], Tensor]
    settings: dict[str, float]
    unused_weights: tuple[str, ...]
    checkpoint_prefixes: tuple[str, ...] = ()
    max_length_fields: dict[str, int] = field(default_factory=dict)
    whole_models: tuple[str, ...] = ()
    unsupported: dict[str, str] = field(default_factory=dict)


# The table
# ----------------------------------------------------------------------------------------------------


def _whisper_convolutions(geometry: dict[str, Any]) -> list[Convolution]:
    return [Convolution(kernel=3, stride=1, padding=1), Convolution(kernel=3, stride=2, padding=1)]


def _wav2vec2_convolutions(geometry: dict[str, Any]) -> list[Convolution]:
    layers = zip(geometry["conv_kernel"], geometry["conv_stride"], strict=True)
    return [Convolution(kernel, stride) for kernel, stride in layers]


def _parakeet_convolutions(geometry: dict[str, Any]) -> list[Convolution]:
    kernel = geometry["subsampling_conv_kernel_size"]
    layer = Convolution(kernel, geometry["subsampling_conv_stride"], padding=(kernel - 1) // 2)
    return [layer] * (
        geometry["subsampling_factor"].bit_length() - 1
    )  # as many as the factor's powers of two


_ADAPTER = "its adapter convolves over padding and shortens the frames once more"

_WAV2VEC2_LIKE: dict[str, Any] = {
    "feature_kind": "waveform",
    "geometry_fields": ("conv_kernel", "conv_stride"),
    "convolutions": _wav2vec2_convolutions,
    "forward": run_wav2vec2,
    # Without random masking, `masked_spec_embed` would be a weight that nothing reads or trains: it is left
    # out.
    "settings": {"layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0},
    "unused_weights": (
        "masked_spec_embed",
        r"lm_head\..*",  # CTC
        r"(quantizer|project_q|project_hid|final_proj)\..*|label_embs_concat",  # pretraining
        r"(projector|classifier|tdnn|objective)\..*|layer_weights",  # classification of clips and speakers
        r"feature_extractor\.(weight|bias)",  # the speakers' embedding, in spite of its name
    ),
}

ENCODER_FAMILIES: dict[str, EncoderFamily] = {
    "whisper": EncoderFamily(
        model_class=WhisperEncoder,
        feature_kind="mel",
        geometry_fields=(),
        convolutions=_whisper_convolutions,
        forward=run_whisper,
        settings={"encoder_layerdrop": 0.0},
        unused_weights=(r"(model\.)?decoder\..*", r"(proj_out|projector|classifier)\..*|layer_weights"),
        checkpoint_prefixes=(r"^model\.encoder\.", r"^encoder\."),
        max_length_fields={"max_source_positions": 2},  # the second convolution halves the mel frames
    ),
    "wav2vec2": EncoderFamily(
        model_class=Wav2Vec2Model,
        unsupported={"add_adapter": _ADAPTER},
        **_WAV2VEC2_LIKE,
    ),
    "hubert": EncoderFamily(
        model_class=HubertModel,
        unsupported={"conv_pos_batch_norm": "its batch norm makes padding non-zero before a convolution"},
        **_WAV2VEC2_LIKE,
    ),
    "wavlm": EncoderFamily(
        model_class=WavLMModel,
        unsupported={"add_adapter": _ADAPTER},
        **_WAV2VEC2_LIKE,
    ),
    "parakeet_encoder": EncoderFamily(
        model_class=ParakeetEncoder,
        feature_kind="mel",
        geometry_fields=("subsampling_factor", "subsampling_conv_kernel_size", "subsampling_conv_stride"),
        convolutions=_parakeet_convolutions,
        forward=run_parakeet,
        settings={"layerdrop": 0.0},
        unused_weights=(r"(ctc_head|decoder|joint|encoder_projector)\..*",),
        whole_models=("parakeet_ctc", "parakeet_rnnt", "parakeet_tdt"),
    ),
}


def encoder_family(audio_config: PreTrainedConfig) -> tuple[EncoderFamily, PreTrainedConfig]:
    """The family of an encoder's config, and the bare encoder's config (itself, or inside a whole model's).

    Raises ValueError for a family that is not in the table, or a variant that cannot be run exactly.
    """
    for family in ENCODER_FAMILIES.values():
        if audio_config.model_type in family.whole_models:
            audio_config = audio_config.encoder_config
    model_type = audio_config.model_type
    if model_type not in ENCODER_FAMILIES:
        known = ", ".join(ENCODER_FAMILIES)
        raise ValueError(f"no audio encoder of type {model_type!r} is known; known types are: {known}")
    family = ENCODER_FAMILIES[model_type]
    for switch, reason in family.unsupported.items():
        if getattr(audio_config, switch, False):
            raise ValueError(
                f"{model_type} encoders with {switch} = true are not supported: {reason}. Use one without it"
            )
    return family, audio_config


# Numbers of an encoder
# ----------------------------------------------------------------------------------------


def encoder_geometry(audio_config: PreTrainedConfig) -> dict[str, Any]:
    """The JSON-able values that the frame count depends on. Raises ValueError for an unknown encoder."""
    family, audio_config = encoder_family(audio_config)
    geometry: dict[str, Any] = {"model_type": audio_config.model_type}
    for name in family.geometry_fields:
        value = getattr(audio_config, name)
        geometry[name] = list(value) if isinstance(value, (list, tuple)) else value
    return geometry


def _convolutions(geometry: dict[str, Any]) -> list[Convolution]:
    return ENCODER_FAMILIES[geometry["model_type"]].convolutions(geometry)


def encoder_output_length(geometry: dict[str, Any], feature_length: Length) -> Length:
    """Encoder frames F of a clip with `feature_length` mel frames or samples: 0 when it is too short for one.

    An integer gives an integer; an integer tensor gives one of the same shape and dtype, on its device.
    """
    length = feature_length
    for convolution in _convolutions(geometry):
        length = (length + 2 * convolution.padding - convolution.kernel) // convolution.stride + 1
    return length.clamp(min=0) if isinstance(length, Tensor) else max(length, 0)


def encoder_min_feature_length(geometry: dict[str, Any]) -> int:
    """The fewest mel frames or samples that give one encoder frame."""
    length = 1
    for convolution in reversed(_convolutions(geometry)):
        length = max((length - 1) * convolution.stride + convolution.kernel - 2 * convolution.padding, 1)
    return length


def encoder_max_feature_length(audio_config: PreTrainedConfig) -> int | None:
    """The most mel frames or samples that one pass takes; None where positions are not limited."""
    family, audio_config = encoder_family(audio_config)
    limits = [getattr(audio_config, name) * factor for name, factor in family.max_length_fields.items()]
    return min(limits, default=None)


def encoder_feature_kind(geometry: dict[str, Any]) -> FeatureKind:
    """What the encoder hears: "mel" (n_mels, L) or "waveform" (S,)."""
    return ENCODER_FAMILIES[geometry["model_type"]].feature_kind


def encoder_width(audio_config: PreTrainedConfig) -> int:
    """D_e, the width of an encoder frame."""
    return encoder_family(audio_config)[1].hidden_size


# Making a tower
# -----------------------------------------------------------------------------------------------


def _settled_config(audio_config: PreTrainedConfig) -> tuple[EncoderFamily, PreTrainedConfig]:
    """The family, and a copy of the bare encoder's config with the family's settings."""
    family, audio_config = encoder_family(audio_config)
    audio_config = copy.deepcopy(audio_config)
    for name, value in family.settings.items():
        setattr(audio_config, name, value)
    return family, audio_config


def prepare_encoder(tower: Any) -> None:
    """Settles, in place, what batch invariance and LoRA ask of a tower; twice is harmless.

    No layer is dropped at random and no feature masked by the tower itself; batch norm keeps its statistics
    in train mode; WavLM's attention calls its projections. Dropout stays as configured. `build_encoder` and
    `load_encoder` have done this to what they return.
    """
    family, audio_config = encoder_family(tower.config)
    for name, value in family.settings.items():
        setattr(audio_config, name, value)
    if hasattr(tower, "layerdrop"):  # Whisper and Parakeet read their own copy, the others the config
        tower.layerdrop = 0.0
    if hasattr(tower, "masked_spec_embed"):
        del tower.masked_spec_embed
    use_callable_projections(tower)
    freeze_batch_statistics(tower)
    share_positions(tower)


def build_encoder(audio_config: PreTrainedConfig) -> PreTrainedModel:
    """A bare encoder with random weights, on the current default device (the meta device too).

    The config is copied, not changed. Raises ValueError for an unknown encoder or an unsupported variant.
    """
    family, audio_config = _settled_config(audio_config)
    # _from_config also settles the attention implementation, without which masks are not built
    tower = family.model_class._from_config(audio_config)
    prepare_encoder(tower)
    return tower


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keeps back transformers' table of unused weights: `load_encoder` says what matters of it."""
    reporter = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    reporter.addFilter(keep)
    try:
        yield
    finally:
        reporter.removeFilter(keep)


def load_encoder(
    name_or_path: str | Path, revision: str | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A bare pretrained encoder from a folder or a hub id, in eval mode.

    The checkpoint may hold the bare encoder or any model around it: heads and decoders are dropped by the
    family's list and named in the log.

    Args:
        name_or_path: a folder that `save_pretrained` wrote, or a hub id.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; None for that of the checkpoint.

    Raises:
        OSError: there is no readable model at that place.
        ValueError: not a known encoder, or its weights are not exactly those that the encoder needs.
    """
    source = str(name_or_path)
    complaint = f"cannot load the audio encoder {source}"
    advice = "give a model folder or hub id; without a hub, TINY_AUDIO_MODELS names the folder with the ids"
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise OSError(f"{complaint}: the folder has no config.json; {advice}")
    try:
        family, audio_config = _settled_config(AutoConfig.from_pretrained(source, revision=revision))
        with _without_load_report():
            tower, report = family.model_class.from_pretrained(
                source,
                config=audio_config,
                revision=revision,
                dtype=dtype,
                key_mapping=dict.fromkeys(family.checkpoint_prefixes, ""),
                ignore_mismatched_sizes=True,  # they are in the report, and raise below
                output_loading_info=True,
            )
    except (OSError, SafetensorError) as error:
        raise OSError(f"{complaint}: {first_line(error)} ({advice})") from error
    except ValueError as error:
        raise ValueError(f"{complaint}: {first_line(error)}") from error
    _check_loaded(complaint, family, report)
    # Saving would otherwise undo the renamings that loading needed: prefixes of whole models, old weight norm
    # names.
    tower._weight_conversions = None
    prepare_encoder(tower)
    return tower


def _check_loaded(complaint: str, family: EncoderFamily, report: dict[str, Any]) -> None:
    """Logs the weights that the family's list drops; raises ValueError when any other did not fit."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{complaint}: it lacks {len(missing)} weights, as {_some(missing)}")
    misshapen = [
        f"{name} {list(found)}, not {list(wanted)}" for name, found, wanted in report["mismatched_keys"]
    ]
    if misshapen:
        raise ValueError(
            f"{complaint}: weights of another shape than its config says, as {_some(sorted(misshapen))}"
        )
    prefix = family.model_class.base_model_prefix
    unused = re.compile(rf"({prefix}\.)?({'|'.join(family.unused_weights)})")
    unexpected = sorted(report["unexpected_keys"])
    unknown = [name for name in unexpected if not unused.fullmatch(name)]
    if unknown:
        raise ValueError(f"{complaint}: {len(unknown)} weights have no place in it, as {_some(unknown)}")
    if unexpected:
        logger.info("left out %d weights of heads or decoders, as %s", len(unexpected), _some(unexpected))


def _some(names: list[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def first_line(error: Exception) -> str:
    """What an exception says, in one line: its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


# Running a tower
# ----------------------------------------------------------------------------------------------


def run_encoder(tower: Any, input_features: Tensor, input_features_mask: Tensor | None = None) -> Tensor:
    """Runs an encoder on a padded batch, every clip as if it were alone (to 1e-4 in float32).

    Waits for the device once to read the clips' lengths, and not at all without a mask. (Padded batches of
    wav2vec2 and its like wait once more: transformers looks for padding, and the group-norm front ends for
    lengths.) Under `torch.compile` lengths are not checked and masks always applied; only group-norm front
    ends break the graph.

    Args:
        tower: from `build_encoder` or `load_encoder`; frozen, with LoRA injected, or trained.
        input_features: (B, n_mels, L) or (B, S), clips padded on the right.
        input_features_mask: bool (B, L) or (B, S), True where valid; None when no clip is padded.

    Returns:
        Frames (B, F, D_e), where F is the `encoder_output_length` of L, zero beyond a clip's own frames.

    Raises:
        ValueError: a clip is shorter than one frame, or longer than the encoder has positions for.
    """
    family, audio_config = encoder_family(tower.config)
    geometry = encoder_geometry(audio_config)
    feature_length = input_features.shape[-1]
    longest = encoder_max_feature_length(audio_config)
    if longest is not None and feature_length > longest:
        raise ValueError(
            f"the batch is {feature_length} {FEATURE_UNITS[family.feature_kind]} long; this "
            f"{audio_config.model_type} encoder takes at most {longest}: split the audio"
        )
    padding = _find_padding(geometry, feature_length, input_features_mask)
    input_features = input_features.to(tower.dtype)
    if padding is not None:
        mask = padding.feature_mask if input_features.dim() == 2 else padding.feature_mask[:, None, :]
        input_features = input_features.masked_fill(~mask, 0.0)
    num_frames = encoder_output_length(geometry, feature_length)
    frames = family.forward(tower, input_features, padding, num_frames)  # (B, F, D_e)
    return frames if padding is None else frames.masked_fill(~padding.frame_mask[:, :, None], 0.0)


def _find_padding(geometry: dict[str, Any], feature_length: int, mask: Tensor | None) -> Padding | None:
    """Where the clips end, or None when all fill the batch. Raises ValueError when one is too short."""
    if mask is None:
        _check_long_enough(geometry, [feature_length])
        return None
    lengths = mask.sum(-1)  # (B,)
    if not torch.compiler.is_compiling():
        known_lengths = lengths.tolist()  # waits for the device
        _check_long_enough(geometry, known_lengths)
        if min(known_lengths) == feature_length:
            return None
    num_frames = encoder_output_length(geometry, feature_length)
    frame_lengths = encoder_output_length(geometry, lengths)  # (B,)
    frame_mask = torch.arange(num_frames, device=mask.device) < frame_lengths[:, None]  # (B, F)
    return Padding(lengths, mask.bool(), frame_mask)


def _check_long_enough(geometry: dict[str, Any], lengths: list[int]) -> None:
    needed = encoder_min_feature_length(geometry)
    unit = FEATURE_UNITS[encoder_feature_kind(geometry)]
    for position, length in enumerate(lengths):
        if length < needed:
            raise ValueError(
                f"clip {position} of the batch has {length} {unit}; "
                f"{geometry['model_type']} encoders of this kind need at least {needed}"
            )
