"""Building, saving and loading whole models.

Two forms of checkpoint, one file name (`model.safetensors`):

* an *adapter* leaves the frozen weights of a tower to its base model, and holds all else (projector, heads, LoRA):
  megabytes. Loading fetches the bases and warns when their weights are not those that were trained against.
* a *merged* checkpoint holds every weight, with LoRA folded in: for endpoints, and for servers that load weights
  themselves.

A weight that is missing, or that nobody asked for, raises: nothing is ever left at random.
"""

from __future__ import annotations

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .asr_config import TinyAudioConfig, resolve_model_path
from .asr_encoders import first_line, load_encoder
from .asr_lora import LORA_MARK, fold_lora

logger = logging.get_logger(__name__)

WEIGHTS_FILE = "model.safetensors"
ENCODER_PREFIX = "model.audio_tower."
DECODER_PREFIXES = ("model.language_model.", "lm_head.")
FINGERPRINT_SAMPLES = 64

AUTO_MAP = {
    "AutoConfig": "asr_config.TinyAudioConfig",
    "AutoModel": "asr_modeling.TinyAudioModel",
    "AutoModelForSpeechSeq2Seq": "asr_modeling.TinyAudioForConditionalGeneration",
    "AutoProcessor": "asr_processing.TinyAudioProcessor",
}
CUSTOM_PIPELINES = {
    "automatic-speech-recognition": {
        "impl": "asr_pipeline.TinyAudioPipeline",
        "pt": ["AutoModelForSpeechSeq2Seq"],
        "tf": [],
        "type": "multimodal",
    }
}


def fingerprint(tower: nn.Module) -> str:
    """A short hash of a tower's base weights: names, shapes and 64 values of each, rounded to bfloat16.

    The rounding makes a model loaded in float32 and in bfloat16 agree; LoRA weights are left out.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(tower.named_parameters()):
        if LORA_MARK in f".{name}":
            continue
        flat = weight.detach().reshape(-1)
        picked = flat[:: max(flat.numel() // FINGERPRINT_SAMPLES, 1)][:FINGERPRINT_SAMPLES]
        digest.update(f"{name.replace('.base_layer', '')}{tuple(weight.shape)}".encode())
        digest.update(picked.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def split_causal_lm(causal_lm: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module]:
    """A stock causal LM to its trunk and its output head."""
    return causal_lm.base_model, causal_lm.get_output_embeddings()


def fit_vocabulary(causal_lm: PreTrainedModel, num_tokens: int) -> None:
    """Grows the embedding table, where the tokenizer outgrew it, by rows that are the mean of the old ones.

    The mean and not a random draw, because an adapter checkpoint does not hold these rows: they are made again at
    every load. The placeholder's row is never read (audio takes its place) and never chosen (generation suppresses it).
    """
    table = causal_lm.get_input_embeddings()
    old_size = table.num_embeddings
    if num_tokens <= old_size:
        return
    causal_lm.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for module in (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()):
            module.weight[old_size:] = module.weight[:old_size].float().mean(dim=0).to(module.weight.dtype)


def load_decoder(
    name_or_path: str, revision: str | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A pretrained causal LM. Raises OSError with one clear line when it cannot be found."""
    where = resolve_model_path(name_or_path)
    try:
        return AutoModelForCausalLM.from_pretrained(where, revision=revision, dtype=dtype or torch.float32)
    except OSError as error:
        raise OSError(
            f"cannot load the language model {name_or_path!r}: {first_line(error)} "
            "(a folder, an id below $TINY_AUDIO_MODELS, or a hub id with network access is needed)"
        ) from error


def load_tokenizer(name_or_path: str, revision: str | None = None) -> Any:
    """A pretrained tokenizer. Raises OSError with one clear line when it cannot be found."""
    try:
        return AutoTokenizer.from_pretrained(resolve_model_path(name_or_path), revision=revision)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot load the tokenizer of {name_or_path!r}: {first_line(error)}") from error


def embedding_rms(table: nn.Embedding) -> float:
    """Root mean square of the token embeddings as the decoder sees them (Gemma scales them inside the table)."""
    ids = torch.arange(
        0, table.num_embeddings, max(table.num_embeddings // 4096, 1), device=table.weight.device
    )
    return table(ids).detach().float().pow(2).mean().sqrt().item()


def generation_config(
    tokenizer: Any, end_token_id: int, pad_token_id: int, audio_token_id: int
) -> GenerationConfig:
    """Greedy by default, ending at the end of a turn, never emitting the audio placeholder."""
    ends = list(dict.fromkeys(i for i in (end_token_id, tokenizer.eos_token_id) if i is not None))
    return GenerationConfig(
        eos_token_id=ends,
        pad_token_id=pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        suppress_tokens=[audio_token_id],
        num_beams=1,
        do_sample=False,
    )


def is_left_to_base(name: str, config: TinyAudioConfig) -> bool:
    """Whether a weight comes from a base model and not from the checkpoint."""
    if LORA_MARK in name:
        return False
    if name.startswith(ENCODER_PREFIX):
        return not config.encoder_in_checkpoint
    if name.startswith(DECODER_PREFIXES):
        return not config.decoder_in_checkpoint
    return False


def own_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a checkpoint of `model` holds: all that its bases do not supply."""
    return {name: w for name, w in model.state_dict().items() if not is_left_to_base(name, model.config)}


def load_own_state_dict(model: PreTrainedModel, state: dict[str, Tensor], source: str) -> None:
    """Loads a checkpoint's weights strictly. Raises ValueError naming what is missing, extra or misshapen."""
    current = model.state_dict()
    expected = {name for name in current if not is_left_to_base(name, model.config)}
    if model.config.tie_word_embeddings and "lm_head.weight" not in state:
        expected.discard("lm_head.weight")
    misshapen = [n for n in expected & set(state) if state[n].shape != current[n].shape]
    problems = {
        "missing": sorted(expected - set(state)),
        "unexpected": sorted(set(state) - expected),
        "of another shape": sorted(misshapen),
    }
    found = [f"{len(names)} {kind} ({', '.join(names[:3])}...)" for kind, names in problems.items() if names]
    if found:
        raise ValueError(f"{source} does not fit its config.json: weights {'; '.join(found)}")
    model.load_state_dict(state, strict=False)


def copy_code(folder: Path) -> None:
    """Puts the files of this folder beside a checkpoint's weights, so that outsiders can load it.

    Older ones give way: half of them would not fit the other half.
    """
    for file in Path(__file__).parent.glob("*.py"):
        if file.name != "__init__.py" and file.resolve() != (folder / file.name).resolve():
            shutil.copy(file, folder / file.name)


def find_file(path_or_id: str, name: str, **hub_arguments: Any) -> str:
    """A checkpoint's file, local or fetched from the hub. Raises OSError when there is none."""
    if Path(path_or_id).is_dir():
        file = Path(path_or_id) / name
        if not file.is_file():
            raise OSError(f"{path_or_id} holds no {name}: is it a model folder?")
        return str(file)
    try:
        return cached_file(path_or_id, name, **hub_arguments)
    except OSError as error:
        reason = first_line(error)
        raise OSError(f"cannot find the model {path_or_id!r}: no such folder here, and {reason}") from error


def check_base(tower: nn.Module, base: dict | None, what: str) -> None:
    """Warns when a base model's weights are not those that the checkpoint was trained against."""
    if base and base.get("fingerprint") and fingerprint(tower) != base["fingerprint"]:
        logger.warning(
            f"the weights of the {what} {base['name']} are not those this checkpoint was trained against "
            f"(fingerprint {fingerprint(tower)}, expected {base['fingerprint']}): expect more errors, or fine-tune"
        )


def load_bases(config: TinyAudioConfig, dtype: torch.dtype | None) -> dict[str, nn.Module]:
    """The towers that a checkpoint leaves to its base models, as arguments for the model's constructor."""
    parts: dict[str, nn.Module] = {}
    encoder_base: Any = config.encoder_base
    decoder_base: Any = config.decoder_base
    text_config: Any = config.text_config
    if not config.encoder_in_checkpoint:
        parts["audio_tower"] = load_encoder(
            resolve_model_path(encoder_base["name"]), revision=encoder_base.get("revision"), dtype=dtype
        )
        check_base(parts["audio_tower"], encoder_base, "encoder")
    if not config.decoder_in_checkpoint:
        causal_lm = load_decoder(decoder_base["name"], revision=decoder_base.get("revision"), dtype=dtype)
        fit_vocabulary(causal_lm, text_config.vocab_size)
        parts["language_model"], parts["lm_head"] = split_causal_lm(causal_lm)
        check_base(parts["language_model"], decoder_base, "language model")
    return parts


def load_adapter(
    model_class: type, path_or_id: str, config: TinyAudioConfig, dtype: torch.dtype, **hub: Any
) -> Any:
    """Bases from their own places, everything else from the checkpoint."""
    state = load_file(find_file(path_or_id, WEIGHTS_FILE, **hub))
    model = model_class(config, **load_bases(config, dtype))
    load_own_state_dict(model, state, path_or_id)
    cast_weights(model, dtype)
    return model


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Everything that checkpoints hold in another type, in place, as transformers loads it.

    What a module computes for itself stays exact, unlike with `module.to(dtype)`: frequencies of rotary positions that
    are rounded to bfloat16 put a token 250 positions on half a position away.
    """
    for part in module.modules():
        buffers = [part._buffers[name] for name in part._buffers.keys() - part._non_persistent_buffers_set]
        for tensor in [*part.parameters(recurse=False), *buffers]:
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def merge(model: Any) -> Any:
    """A copy of `model` that stands alone: LoRA folded in (in float32), all weights in the checkpoint."""
    merged = copy.deepcopy(model)
    fold_adapters(merged)
    merged.config.encoder_in_checkpoint = merged.config.decoder_in_checkpoint = True
    return merged


def fold_adapters(model: Any) -> None:
    """Adds LoRA to the weights of both towers in place; what is saved after that is no adapter any more."""
    for tower, lora in (
        (model.model.audio_tower, model.config.encoder_lora),
        (model.model.language_model, model.config.decoder_lora),
    ):
        if lora:
            fold_lora(tower)
    model.config.encoder_lora = model.config.decoder_lora = None


def read_config(path_or_id: str) -> TinyAudioConfig:
    """The architecture of a checkpoint. Raises OSError where there is none, ValueError for another kind of model."""
    find_file(path_or_id, "config.json")
    raw, _ = TinyAudioConfig.get_config_dict(path_or_id)
    if raw.get("model_type") != TinyAudioConfig.model_type:
        raise ValueError(
            f"{path_or_id} is a {raw.get('model_type')!r} model, not a Tiny Audio one; "
            "train one with `tiny-audio train`, or name its folder outputs/<run>/model "
            "(`tiny-audio eval` takes others with --provider transformers)"
        )
    return TinyAudioConfig.from_pretrained(path_or_id)


def load_model(
    path_or_id: str, device: str = "auto", dtype: torch.dtype | None = None, inference_only: bool = False
) -> tuple[Any, Any]:
    """A checkpoint with the package's own classes: model (in eval mode) and processor.

    Args:
        path_or_id: folder or hub id. device: "auto" (cuda, mps or cpu, whichever is there first) or a torch device.
        dtype: None for the checkpoint's own.
        inference_only: fold LoRA in, which saves a tenth of the time, where the checkpoint's weights are float32: in
            fewer bits most of an update would be rounded away. They are cast after that.

    Raises:
        OSError: something cannot be found.  ValueError: it is not a Tiny Audio model, or its weights do not fit.
    """
    from .asr_modeling import TinyAudioForConditionalGeneration
    from .asr_processing import TinyAudioProcessor

    read_config(path_or_id)  # what is no model of ours is refused before anything large is read
    # Known to the Auto classes, our own code is used without asking whether to trust the checkpoint's copy of it.
    AutoConfig.register(TinyAudioConfig.model_type, TinyAudioConfig, exist_ok=True)
    model = TinyAudioForConditionalGeneration.from_pretrained(
        path_or_id, dtype="auto" if inference_only or dtype is None else dtype
    )
    processor = TinyAudioProcessor.from_pretrained(path_or_id)
    if inference_only and model.dtype == torch.float32:
        fold_adapters(model)
    if dtype is not None:
        cast_weights(model, dtype)
    return model.to(pick_device(device)).eval(), processor


def pick_device(device: str = "auto") -> torch.device:
    """The named device, or the best one that is there."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
