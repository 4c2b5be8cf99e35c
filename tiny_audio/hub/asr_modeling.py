"""The model: an audio encoder, a projector and a causal language model that reads audio tokens among words.

Legend: B batch, L feature frames (mel) or samples (waveform), F encoder frames, P audio tokens of a clip,
A audio tokens of the whole batch, T text tokens, D_e encoder width, D_t decoder width, V vocabulary.

Modules are named as in transformers' own audio-language models: `model.audio_tower`,
`model.multi_modal_projector`, `model.language_model` and `lm_head`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from .asr_checkpoint import AUTO_MAP, CUSTOM_PIPELINES, copy_code, load_adapter, own_state_dict
from .asr_config import TinyAudioConfig
from .asr_drafting import allow_lent_prompts, read_with_shared_prompt, train_checkpointed_layers
from .asr_embedding_ctc import EmbeddingCTC
from .asr_encoders import (
    build_encoder,
    encoder_geometry,
    encoder_output_length,
    encoder_width,
    prepare_encoder,
    run_encoder,
)
from .asr_generation import TranscriptGeneration
from .asr_lora import inject_lora
from .asr_losses import (
    CTC_PADDING,
    IGNORE_LABEL,
    LossWeights,
    alignment_loss,
    language_model_loss,
)
from .asr_projectors import build_projector, length_mask, projector_output_length

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


@dataclass
class AudioFeatures(ModelOutput):
    """What the encoder and the projector make of a batch.

    Args:
        last_hidden_state: (B, F, D_e) encoder frames, zero beyond a clip's end.
        pooler_output: (A, D_t) the valid audio tokens of the whole batch, flattened clip after clip.
        frame_lengths, token_lengths: (B,) valid frames and audio tokens of each clip.
        balance_loss: (B,) load-balancing loss of a mixture-of-experts projector, or None.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    frame_lengths: Tensor | None = None
    token_lengths: Tensor | None = None
    balance_loss: Tensor | None = None

    def select(self, rows: Tensor) -> AudioFeatures:
        """The features of some clips, `rows (N,)` of the batch."""
        assert self.last_hidden_state is not None and self.pooler_output is not None
        assert self.frame_lengths is not None and self.token_lengths is not None
        clips = self.pooler_output.split(self.token_lengths.tolist())
        return AudioFeatures(
            last_hidden_state=self.last_hidden_state[rows],
            pooler_output=torch.cat([clips[row] for row in rows.tolist()]),
            frame_lengths=self.frame_lengths[rows],
            token_lengths=self.token_lengths[rows],
        )


@dataclass
class TinyAudioOutput(ModelOutput):
    """Output of the model with its head.

    Args:
        loss: scalar, when labels were given: each loss term divided by its normaliser, weighted and summed.
        logits: (B, T, V) without labels; None with labels, which are scored at their own positions only.
        loss_sums: with labels, the terms of the loss before normalising, as sums over the batch:
            "lm", "ctc", "embedding", "balance".
        infeasible: with labels, the number of CTC targets longer than their frames allow.
        audio_features: the `AudioFeatures`, when audio was given.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    loss_sums: dict[str, Tensor] | None = None
    infeasible: Tensor | None = None
    audio_features: AudioFeatures | None = None


class TinyAudioPreTrainedModel(PreTrainedModel):
    config_class = TinyAudioConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = []
    _skip_keys_device_placement = "past_key_values"

    def _init_weights(self, module: nn.Module) -> None:
        """The towers initialise themselves, and PyTorch's defaults suit the projector and the heads."""


class TinyAudioModel(TinyAudioPreTrainedModel):
    """Towers and projector without a head: features and token ids in, decoder hidden states out."""

    def __init__(
        self,
        config: TinyAudioConfig,
        audio_tower: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.audio_tower = build_encoder(config.audio_config) if audio_tower is None else audio_tower
        self.language_model = (
            AutoModel.from_config(config.text_config) if language_model is None else language_model
        )
        self.multi_modal_projector = build_projector(config)
        prepare_encoder(self.audio_tower)
        if config.encoder_lora:
            inject_lora(self.audio_tower, config.encoder_lora)
        if config.decoder_lora:
            inject_lora(self.language_model, config.decoder_lora)
        allow_lent_prompts(self.language_model)
        self.encoder_geometry = encoder_geometry(config.audio_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> TinyAudioModel:
        """Training mode for what trains. A frozen tower stays in eval: HuBERT's dropout would blur its features."""
        super().train(mode)
        for tower in (self.audio_tower, self.language_model):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        if mode:
            train_checkpointed_layers(self.language_model)
        return self

    def audio_token_lengths(self, lengths: Tensor, encoded: bool = False) -> tuple[Tensor, Tensor]:
        """(B,) feature lengths (`encoded`: of encoder frames) to (B,) encoder frames and (B,) audio tokens."""
        frames = lengths if encoded else encoder_output_length(self.encoder_geometry, lengths)
        return frames, projector_output_length(self.config.projector_type, self.config.stack_factor, frames)

    def get_audio_features(
        self, input_features: Tensor, input_features_mask: Tensor, encoded: bool = False, **_: Any
    ) -> AudioFeatures:
        """Runs encoder and projector.

        Args:
            input_features: (B, n_mels, L) log-mel features or (B, L) waveforms, zero beyond a clip's end.
            input_features_mask: (B, L) bool, True where valid.
            encoded: the features are what the frozen encoder made of them, (B, D_e, F), and the mask is (B, F).
        """
        frame_lengths, token_lengths = self.audio_token_lengths(input_features_mask.sum(dim=1), encoded)
        tower: Any = self.audio_tower
        if encoded:
            frames = input_features.transpose(1, 2).to(tower.dtype)  # (B, F, D_e)
        else:
            encoder_trains = torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters())
            with torch.set_grad_enabled(encoder_trains):
                frames = run_encoder(tower, input_features, input_features_mask)  # (B, F, D_e)
        # While a run is evaluated, a frozen tower may be in bfloat16, what trains in float32, and autocast off.
        trained_dtype = next(self.multi_modal_projector.parameters()).dtype
        heard = frames if torch.is_autocast_enabled(frames.device.type) else frames.to(trained_dtype)
        tokens, balance_loss = self.multi_modal_projector(heard, frame_lengths)  # (B, P, D_t)
        flat = tokens[length_mask(token_lengths, tokens.shape[1])]  # (A, D_t)
        return AudioFeatures(
            last_hidden_state=frames,
            pooler_output=flat,
            frame_lengths=frame_lengths,
            token_lengths=token_lengths,
            balance_loss=balance_loss,
        )

    def splice(self, input_ids: Tensor, audio: AudioFeatures | None) -> Tensor:
        """Embeds `input_ids (B, T)` and puts the audio tokens where the placeholders are: (B, T, D_t)."""
        embeddings = self.get_input_embeddings()(input_ids)
        if audio is None:
            return embeddings
        assert audio.pooler_output is not None
        placeholders = input_ids == self.config.audio_token_id  # (B, T)
        if audio.pooler_output.device.type == "cpu" and int(placeholders.sum()) != len(audio.pooler_output):
            raise ValueError(
                f"the text holds {int(placeholders.sum())} audio placeholders and the audio makes "
                f"{len(audio.pooler_output)} tokens: build both with the model's own processor"
            )
        return embeddings.masked_scatter(placeholders[..., None], audio.pooler_output.to(embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_frames: Tensor | None = None,
        **kwargs: Any,
    ) -> TinyAudioOutput:
        audio = None
        features = input_features if encoder_frames is None else encoder_frames
        if features is not None:
            assert input_features_mask is not None, "input_features come with their input_features_mask"
            audio = self.get_audio_features(features, input_features_mask, encoded=encoder_frames is not None)
        if inputs_embeds is None:
            assert input_ids is not None, "give input_ids or inputs_embeds"
            inputs_embeds = self.splice(input_ids, audio)
        outputs = None
        if (
            use_cache is False
            and input_ids is not None
            and attention_mask is position_ids is None
            and not kwargs
        ):
            outputs = read_with_shared_prompt(
                self.language_model, input_ids, inputs_embeds, self.config.audio_token_id
            )
        if outputs is None:
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        outputs["audio_features"] = audio
        return outputs


class TinyAudioForConditionalGeneration(TinyAudioPreTrainedModel, TranscriptGeneration, GenerationMixin):
    """The speech recogniser: `TinyAudioModel`, the decoder's head, and the heads that learn alignment.

    `GenerationMixin` is named although `TranscriptGeneration` is one: transformers looks for it among the direct bases.
    """

    def __init__(
        self,
        config: TinyAudioConfig,
        audio_tower: nn.Module | None = None,
        language_model: PreTrainedModel | None = None,
        lm_head: nn.Module | None = None,
    ):
        super().__init__(config)
        self.model = TinyAudioModel(config, audio_tower, language_model)
        text_config: Any = config.text_config
        if lm_head is None:
            lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.lm_head = lm_head
        self.ctc_head = None
        if config.ctc_vocabulary:
            self.ctc_head = nn.Linear(encoder_width(config.audio_config), len(config.ctc_vocabulary) + 1)
        self.embedding_ctc = None
        if config.embedding_ctc:
            self.embedding_ctc = EmbeddingCTC(text_config.hidden_size, text_config.vocab_size)
        table = self.get_input_embeddings()  # embed_tokens in most decoders, wte in GPT-2
        name = next(name for name, module in self.model.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Loads a checkpoint of either form, strictly.

        Raises:
            OSError: the checkpoint or one of its base models cannot be found.
            ValueError: a weight is missing, or does not belong.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        if config is None:
            config = cls.config_class.from_pretrained(path_or_id, **hub)
        if config.encoder_in_checkpoint and config.decoder_in_checkpoint:
            with_info = kwargs.pop("output_loading_info", False)
            # Mismatched sizes are reported with the rest, by name.
            kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = super().from_pretrained(path_or_id, *args, config=config, **kwargs)
            problems = {key: sorted(map(str, names)) for key, names in info.items() if names}
            if problems:
                raise ValueError(f"the weights in {path_or_id} do not fit its config.json: {problems}")
            return (model, info) if with_info else model
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto"
        if isinstance(dtype, str):
            dtype = config.dtype if dtype == "auto" else getattr(torch, dtype)
        model = load_adapter(cls, str(path_or_id), config, dtype or torch.float32, **hub).eval()
        model.generation_config = GenerationConfig.from_pretrained(path_or_id, **hub)
        device_map = kwargs.get("device_map")
        device = device_map.get("") if isinstance(device_map, dict) else device_map
        return model if device in (None, "auto") else model.to(device)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes config, generation config, code and weights; weights that a base model supplies are left out."""
        self.config.auto_map, self.config.custom_pipelines = AUTO_MAP, CUSTOM_PIPELINES
        state = kwargs.pop("state_dict", None) or own_state_dict(self)
        super().save_pretrained(folder, state_dict=state, **kwargs)
        # safetensors writes for the owner alone, whatever the umask says.
        for file in Path(folder).glob("*.safetensors"):
            shutil.copymode(Path(folder) / "config.json", file)
        copy_code(Path(folder))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_audio_features(
        self, input_features: Tensor, input_features_mask: Tensor, **kwargs: Any
    ) -> AudioFeatures:
        return self.model.get_audio_features(input_features, input_features_mask, **kwargs)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """(..., D_t) to (..., V), with the scaling that some decoders put behind their head."""
        logits = self.lm_head(hidden_states)
        for scale in LOGIT_SCALES:
            logits = scale(logits, self.config.text_config)
        return logits

    def ctc_logits(self, frames: Tensor) -> Tensor:
        """(B, F, D_e) encoder frames to (B, F, characters + 1). Raises ValueError without an alignment head."""
        if self.ctc_head is None:
            raise ValueError("this model has no alignment head (ctc_vocabulary is null)")
        return self.ctc_head(frames.to(self.ctc_head.weight.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        ctc_labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        loss_weights: LossWeights | None = None,
        normalizers: dict[str, float] | None = None,
        encoder_frames: Tensor | None = None,
        **kwargs: Any,
    ) -> TinyAudioOutput:
        """One pass.

        Args:
            encoder_frames: (B, D_e, F) what a frozen encoder made of the audio, in place of `input_features`.
            labels: (B, T) token ids, -100 where nothing is scored. Right-padded batches with labels need no
                attention mask: causal attention never looks at padding behind it.
            ctc_labels: (B, C) classes of the alignment head, padded with -1.
            loss_weights: default: the language model's loss alone.
            normalizers: what each term's sum is divided by ("lm": label tokens, "ctc": characters,
                "embedding": text tokens, "balance": clips); default: this batch's own counts. With gradient
                accumulation or several processes, the counts of the whole step make the gradient that of
                one big batch.
        """
        weights = loss_weights or LossWeights()
        if labels is not None and not weights.language_model:
            features = input_features if encoder_frames is None else encoder_frames
            assert features is not None and input_features_mask is not None, "alignment needs audio"
            audio = self.get_audio_features(features, input_features_mask, encoded=encoder_frames is not None)
            return self._with_loss(
                TinyAudioOutput(audio_features=audio), None, labels, ctc_labels, weights, normalizers
            )
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache if labels is None else False,
            encoder_frames=encoder_frames,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state  # (B, T, D_t)
        result = TinyAudioOutput(
            past_key_values=outputs.get("past_key_values"),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            audio_features=outputs.get("audio_features"),
        )
        if labels is None:
            result.logits = self.compute_logits(
                hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
            )
            return result
        return self._with_loss(result, hidden_states, labels, ctc_labels, weights, normalizers)

    def _with_loss(
        self,
        result: TinyAudioOutput,
        hidden_states: Tensor | None,
        labels: Tensor,
        ctc_labels: Tensor | None,
        weights: LossWeights,
        normalizers: dict[str, float] | None,
    ) -> TinyAudioOutput:
        """`result` with its losses; `hidden_states (B, T, D_t)` are None where the decoder rests."""
        sums, counts, result.infeasible = self._loss_sums(
            hidden_states, labels, ctc_labels, result.audio_features, weights
        )
        scale = {"lm": weights.language_model, "ctc": weights.ctc}
        scale |= {"embedding": weights.embedding, "balance": weights.balance}
        counts = counts if normalizers is None else normalizers
        terms = [scale[name] * term / max(counts[name], 1) for name, term in sums.items()]
        result.loss = sum(terms[1:], start=terms[0])
        result.loss_sums = {name: term.detach() for name, term in sums.items()}
        return result

    def _loss_sums(
        self,
        hidden_states: Tensor | None,
        labels: Tensor,
        ctc_labels: Tensor | None,
        audio: AudioFeatures | None,
        weights: LossWeights,
    ) -> tuple[dict[str, Tensor], dict[str, float], Tensor]:
        targets = labels[:, 1:]  # a position predicts the next token
        scored = targets != IGNORE_LABEL  # (B, T - 1)
        sums: dict[str, Tensor] = {}
        counts: dict[str, float] = {"lm": int(scored.sum())}
        if hidden_states is not None:
            hidden, vocabulary = hidden_states[:, :-1][scored], self.config.text_config.vocab_size
            sums["lm"] = language_model_loss(hidden, targets[scored], self.compute_logits, vocabulary)
        infeasible = torch.zeros((), dtype=torch.long, device=labels.device)
        if weights.ctc and audio is not None and ctc_labels is not None:
            assert audio.last_hidden_state is not None and audio.frame_lengths is not None
            ctc_logits = self.ctc_logits(audio.last_hidden_state)
            per_clip, impossible = alignment_loss(ctc_logits, audio.frame_lengths, ctc_labels)
            sums["ctc"], infeasible = per_clip.sum(), infeasible + impossible.sum()
            counts["ctc"] = int((ctc_labels != CTC_PADDING).sum())
        if weights.embedding and audio is not None:
            per_clip, impossible = self._embedding_loss(labels, audio, weights.embedding_negatives)
            sums["embedding"], infeasible = per_clip.sum(), infeasible + impossible.sum()
            counts["embedding"] = counts["lm"]
        if weights.balance and audio is not None and audio.balance_loss is not None:
            sums["balance"], counts["balance"] = audio.balance_loss.sum(), len(audio.balance_loss)
        return sums, counts, infeasible

    def _embedding_loss(
        self, labels: Tensor, audio: AudioFeatures, num_negatives: int
    ) -> tuple[Tensor, Tensor]:
        if self.embedding_ctc is None:
            raise ValueError("the embedding loss needs a model built with embedding_ctc=true")
        assert audio.pooler_output is not None and audio.token_lengths is not None
        # The end token is written, not heard: the last label of each row is left out.
        rows = [row[row != IGNORE_LABEL][:-1] for row in labels]
        targets = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=CTC_PADDING)  # (B, C)
        clips = audio.pooler_output.split(audio.token_lengths.tolist())
        tokens = nn.utils.rnn.pad_sequence(clips, batch_first=True)  # (B, P, D_t)
        table = self.get_input_embeddings()
        embeddings = table(
            torch.arange(table.num_embeddings, device=labels.device)
        )  # scaled as the decoder scales it
        return self.embedding_ctc(tokens, audio.token_lengths, targets, embeddings, num_negatives)


def _soft_cap(logits: Tensor, text_config: Any) -> Tensor:
    cap = getattr(text_config, "final_logit_softcapping", None)  # Gemma 2 and 3
    return logits if not cap else torch.tanh(logits / cap) * cap


def _divide(logits: Tensor, text_config: Any) -> Tensor:
    divisor = getattr(text_config, "logits_scaling", None)  # Granite
    return logits if not divisor else logits / divisor


def _multiply(logits: Tensor, text_config: Any) -> Tensor:
    factor = getattr(text_config, "logit_scale", None)  # Cohere
    return logits if not factor else logits * factor


LOGIT_SCALES = (_soft_cap, _divide, _multiply)
