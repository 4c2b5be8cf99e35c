"""The same text, and the same losses, with less work for the decoder.

Two ways, neither of which changes what is written (up to ties within rounding): the words of the prompt before the
audio are the same for every clip of a batch and are read once, in training too; and where the alignment head hears
the words, the decoder checks its text many tokens at a time instead of writing one after another (speculative
decoding, arXiv:2211.17192, with the CTC head as the draft).

Legend: B batch, T prompt tokens with audio, D_t decoder width, N tokens that all prompts begin with.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.generation import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

# Below this many positions saved, a pass for the prompt alone costs what it saves: it reads every weight once more.
SHARE_FROM_POSITIONS = 128
READS_ALONE = "reads_prompts_alone"  # attribute of a decoder whose clips share no prompt
# A check of this many tokens costs about what writing one does: both read every weight once.
DRAFT_WINDOW = 16
# How far ahead the draft is searched for the token that the decoder wrote in its place.
RESUME_WITHIN = 4


def has_plain_cache(text_config: Any) -> bool:
    """Whether the decoder's memory is keys and values of all positions: such a cache can be shared and cut back.

    Recurrent states and sliding windows forget, so models with those are left to `generate`.
    """
    kinds = getattr(text_config, "layer_types", None)
    plain = all(kind == "full_attention" for kind in kinds) if kinds else True
    return plain and getattr(text_config, "sliding_window", None) is None


# A prompt read once ----------------------------------------------------------------------------------------------


def shared_prompt_length(input_ids: Tensor, attention_mask: Tensor, audio_token_id: int) -> int:
    """The number N of tokens before the audio, where they are the same in all rows of `input_ids (B, T)`; else 0.

    Prompts are padded on the left. A single row shares nothing.
    """
    if len(input_ids) < 2:
        return 0
    starts = attention_mask.argmax(dim=1)  # (B,) where the padding ends
    lengths = (input_ids == audio_token_id).int().argmax(dim=1) - starts  # (B,)
    shared = int(lengths.min())
    if shared <= 0 or int(lengths.max()) != shared:
        return 0
    columns = starts[:, None] + torch.arange(shared, device=input_ids.device)  # (B, N)
    rows = input_ids.gather(1, columns)
    return shared if bool((rows == rows[:1]).all()) else 0


def _prompt_first(values: Tensor, attention_mask: Tensor, shared: int) -> Tensor:
    """Moves N positions from behind each row's padding to before it: `values (B, T)` or `(B, T, D_t)`."""
    starts = attention_mask.argmax(dim=1)[:, None]  # (B, 1)
    columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)[None, :]  # (1, T)
    moved_padding = torch.where(columns < starts + shared, columns - shared, columns)
    order = torch.where(columns < shared, starts + columns, moved_padding)  # (B, T)
    if values.dim() == 3:
        order = order[:, :, None].expand(-1, -1, values.shape[2])
    return values.gather(1, order)


def share_prompt(
    model: Any, input_ids: Tensor, embeddings: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor, DynamicCache | None]:
    """Reads the common beginning of a batch's prompts once.

    Args:
        model: the `TinyAudioForConditionalGeneration`.
        input_ids: (B, T) prompts padded on the left; embeddings: (B, T, D_t) the same with audio spliced in.
        attention_mask: (B, T), 1 where valid.

    Returns:
        `inputs_embeds`, `attention_mask` and `past_key_values` for `GenerationMixin.generate`, which goes on behind
        what the cache holds; the padding then lies between the common beginning and the audio, where the mask hides
        it. Where that saves too little, what was given and None.
    """
    text_config = model.config.text_config
    shared = shared_prompt_length(input_ids, attention_mask, model.config.audio_token_id)
    saved_positions = shared * (len(input_ids) - 1)
    if saved_positions < SHARE_FROM_POSITIONS or not has_plain_cache(text_config):
        return embeddings, attention_mask, None
    cache = recall_prompt(model, input_ids[0, attention_mask[0].argmax() :][:shared])
    embeddings = _prompt_first(embeddings, attention_mask, shared)
    attention_mask = _prompt_first(attention_mask, attention_mask, shared)
    cache.batch_repeat_interleave(len(embeddings))
    return embeddings, attention_mask, cache


def recall_prompt(model: Any, ids: Tensor) -> DynamicCache:
    """The decoder's memory of a prompt's first tokens `ids (N,)`, which is kept for the next call.

    It is made anew for other tokens, and when a weight has changed or moved.
    """
    trunk = model.model.language_model
    weights = [(weight.data_ptr(), weight._version) for weight in trunk.parameters()]
    key = (ids.tolist(), weights)
    known = getattr(model, "_recalled_prompt", None)
    if known is None or known[0] != key:
        cache = DynamicCache(config=model.config.text_config)
        trunk(inputs_embeds=model.get_input_embeddings()(ids)[None], past_key_values=cache, use_cache=True)
        known = model._recalled_prompt = (key, cache)
    memory = copy.copy(known[1])  # layers put new tensors in the place of old ones, and never write into them
    memory.layers = [copy.copy(layer) for layer in memory.layers]
    return memory


class LentPrompt(DynamicLayer):
    """One layer's keys and values (1, heads, N, D) of a prompt, put before those of every clip of a batch.

    What is lent never grows, so that a layer which is run a second time (activation checkpointing) sees the same again.
    """

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if len(keys) == 1:  # the prompt itself; a batch that shares one has two rows at least
            self.keys, self.values, self.is_initialized = keys, values, True
            return keys, values
        assert self.keys is not None and self.values is not None
        shape = (len(keys), -1, -1, -1)
        keys = torch.cat([self.keys.expand(shape), keys], dim=-2)  # (B, heads, T, D)
        return keys, torch.cat([self.values.expand(shape), values], dim=-2)


def read_with_shared_prompt(
    language_model: Any, input_ids: Tensor, embeddings: Tensor, audio_token_id: int
) -> BaseModelOutputWithPast | None:
    """The decoder's hidden states (B, T, D_t) of a batch padded on the right, its common beginning read once.

    Gradients are those of reading it in every row. None where that would save too little: read it as it is then.

    Args:
        language_model: its checkpointed layers allow a cache (`allow_lent_prompts`).
        input_ids: (B, T); embeddings: (B, T, D_t) the same with audio spliced in.
    """
    differs = (input_ids != input_ids[:1]).any(dim=0) | (input_ids == audio_token_id).any(dim=0)  # (T,)
    shared = int(differs.int().argmax())
    if shared * (len(input_ids) - 1) < SHARE_FROM_POSITIONS or not has_plain_cache(language_model.config):
        return None
    if getattr(language_model, READS_ALONE, False):
        return None
    cache = Cache(layer_class_to_replicate=LentPrompt)
    passes = [
        language_model(inputs_embeds=part, past_key_values=cache, use_cache=False).last_hidden_state
        for part in (embeddings[:1, :shared], embeddings[:, shared:])
    ]
    hidden = torch.cat([passes[0].expand(len(input_ids), -1, -1), passes[1]], dim=1)
    return BaseModelOutputWithPast(last_hidden_state=hidden)


def train_checkpointed_layers(language_model: nn.Module) -> None:
    """Marks the checkpointed layers of a frozen decoder, and nothing inside them, as training.

    transformers checkpoints no others, although the gradients of the audio tokens pass through them. Rates of dropout
    that a layer itself applies, as OPT's do, become 0: a frozen decoder has none.
    """
    for module in language_model.modules():
        if not isinstance(module, GradientCheckpointingLayer) or not module.gradient_checkpointing:
            continue
        if not module.training:
            rates = [
                name for name, value in vars(module).items() if "dropout" in name and type(value) is float
            ]
            for name in rates:
                setattr(module, name, 0.0)
        module.training = True


def read_prompts_alone(language_model: nn.Module) -> None:
    """From now on, each row reads its own prompt in training.

    That is for a model whose layers must run equally often in all processes, however many clips each of them has.
    """
    setattr(language_model, READS_ALONE, True)


def allow_lent_prompts(language_model: nn.Module) -> None:
    """Lets checkpointed layers keep a cache, which transformers otherwise takes away lest it grow twice."""
    for module in language_model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._can_checkpoint_with_cache = True


# A draft checked -------------------------------------------------------------------------------------------------


def write_from_draft(
    model: Any,
    embeddings: Tensor,
    draft: Sequence[int],
    limit: int,
    end_ids: Collection[int],
    suppressed: Sequence[int] = (),
    processors: Iterable[LogitsProcessor] = (),
    criteria: Iterable[StoppingCriteria] = (),
    streamer: BaseStreamer | None = None,
    cache: DynamicCache | None = None,
) -> list[int]:
    """The greedy transcript of one clip, at most `limit` tokens, the end token included.

    Each pass of the decoder reads the next tokens of the draft and yields those that it would have written itself, and
    one more; a draft that is all wrong therefore costs as many passes as having none.

    Args:
        embeddings: (1, T, D_t) the prompt with its audio, without padding and without what `cache` holds of it.
        draft: token ids that may come, an end token last; what is left of them is taken up again behind a mistake.
        suppressed: ids that are never written.
        processors, criteria, streamer: called for every token written, in its order, as `generate` calls them.
    """
    table, suppressed, device = model.get_input_embeddings(), list(suppressed), embeddings.device
    processors, criteria = list(processors), list(criteria)
    cache, at = cache or DynamicCache(config=model.config.text_config), 0
    written = torch.empty(1, 0, dtype=torch.long, device=device)  # (1, new tokens)
    inputs = embeddings  # (1, what the cache does not hold yet, D_t)
    while True:
        proposed = list(draft[at : at + min(DRAFT_WINDOW, limit - written.shape[1] - 1)])
        if proposed:
            proposals = table(torch.tensor([proposed], device=device))  # (1, proposed, D_t)
            inputs = torch.cat([inputs, proposals.to(inputs.dtype)], dim=1)
        outputs = model.model.language_model(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
        # Rows of a matrix: of a slice (1, proposed + 1, D_t), PyTorch copies the head's weights first.
        logits = model.compute_logits(outputs.last_hidden_state[0, -len(proposed) - 1 :])
        logits[:, suppressed] = -torch.inf
        for agreed in range(len(proposed) + 1):
            scores = logits[agreed : agreed + 1]  # (1, V)
            for processor in processors:
                scores = processor(written, scores)
            choice = scores.argmax(dim=-1, keepdim=True)  # (1, 1)
            written, token = torch.cat([written, choice], dim=1), int(choice)
            if streamer is not None:
                streamer.put(choice[0].cpu())
            ended = token in end_ids or written.shape[1] >= limit
            if ended or any(bool(criterion(written, scores).all()) for criterion in criteria):
                return written[0].tolist()
            if proposed[agreed : agreed + 1] != [token]:
                break
        if agreed < len(proposed):
            cache.crop(agreed - len(proposed))  # forgets what the decoder would not have written
        inputs = table(choice).to(embeddings.dtype)
        at = _resume(draft, at + agreed, token)


def _resume(draft: Sequence[int], at: int, token: int) -> int:
    """Where the draft goes on after `token` was written in the place of `draft[at]`.

    Behind that token where it comes soon (the draft had something too much), else behind the one it replaces.
    """
    ahead = list(draft[at : at + RESUME_WITHIN])
    return at + (ahead.index(token) + 1 if token in ahead else 1)
