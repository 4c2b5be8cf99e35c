"""Generation of transcripts: the audio is encoded once, no clip writes more than was said, and text can be streamed.

Legend: B batch, L feature frames (mel) or samples (waveform), T text tokens, V vocabulary.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .asr_alignment import speech_evidence
from .asr_drafting import has_plain_cache, recall_prompt, share_prompt, write_from_draft
from .asr_guard import ClipLengthCriteria, RepetitionCriteria, has_speech, new_token_limits
from .asr_joint import CANDIDATES, HeardCharacters, Hearing, JointScores
from .asr_losses import decode_ctc_text

logger = logging.get_logger(__name__)

# What a call and a generation config may say for the text to be the plain greedy one, which asr_drafting writes too.
GREEDY_OPTIONS = {"max_new_tokens", "logits_processor", "streamer"}
GREEDY_SETTINGS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "suppress_tokens",
    "num_beams",
    "do_sample",
}
UNFINISHED_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class TranscriptGeneration(GenerationMixin):
    """`generate`, `generate_stream` and what belongs to them; mixed into the model with its head."""

    config: Any
    model: Any

    @torch.no_grad()
    def alignment(self, audio: Any) -> Tensor | None:
        """(B, F, characters + 1) log-probabilities of the alignment head; None without one."""
        if self.ctc_head is None:
            return None
        return self.ctc_logits(audio.last_hidden_state).float().log_softmax(dim=-1)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        audio_features: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Token ids of the transcripts, `(B, new tokens)` without the prompt.

        Takes all of `GenerationMixin.generate`'s options. The audio is encoded once, whatever the number of
        beams. Without `max_new_tokens` or `max_length`, each clip may grow to what can be said in its own
        length, independent of its batch mates; with them, they are what each clip may grow to.

        Args:
            audio_features: what `get_audio_features` returned, in place of `input_features` and their mask.
            tokenizer: where the model has an alignment head, stops texts that repeat themselves beyond what
                it hears (`asr_guard`), and reads the characters that it hears.
            ctc_decoding_weight: in place of the config's; 0 for the decoder alone. Sampling is the decoder's alone.
        """
        if input_features is None and audio_features is None:
            return super().generate(
                input_ids, attention_mask=attention_mask, stopping_criteria=stopping_criteria, **kwargs
            )
        assert input_ids is not None, "audio comes with a prompt: give input_ids"
        audio = audio_features
        if audio is None:
            assert input_features_mask is not None, "input_features come with their input_features_mask"
            audio = self.get_audio_features(input_features, input_features_mask)
        embeddings = self.model.splice(input_ids, audio)
        log_probabilities = self.alignment(audio)
        characters = (
            None if log_probabilities is None else speech_evidence(log_probabilities, audio.frame_lengths)
        )
        if tokenizer is None and self.ctc_head is not None and self.embedding_ctc is None:
            logger.warning_once(
                "without `tokenizer=processor.tokenizer` the text is the decoder's alone: the CTC head has no say"
            )
        if kwargs.get("stop_strings"):
            kwargs["tokenizer"] = tokenizer  # transformers looks for them in the text
        criteria = list(stopping_criteria or [])
        limit = self._given_limit(kwargs)
        if limit is not None:
            kwargs["max_new_tokens"] = limit
        else:
            limits = new_token_limits(self.config, audio.frame_lengths, characters)
            kwargs["max_new_tokens"] = int(limits.max())
            criteria.append(ClipLengthCriteria(limits))
        if tokenizer is not None and characters is not None:
            criteria.append(RepetitionCriteria(tokenizer, characters))
        weight = kwargs.pop("ctc_decoding_weight", self.config.ctc_decoding_weight)
        joint = bool(weight) and not self.setting(kwargs, "do_sample")
        greedy = self._is_greedy(kwargs)
        alone = greedy and len(input_ids) == 1
        hearing, draft = None, None
        if joint or alone:  # all others do without: it costs a product with the whole vocabulary
            hearing, draft = self._hear(audio, log_probabilities, tokenizer)
        if joint and hearing is not None:
            # Behind the caller's: what those keep is the decoder's own.
            processors = [
                *(kwargs.get("logits_processor") or []),
                self._joint_scores(hearing, weight, kwargs),
            ]
            kwargs["logits_processor"] = LogitsProcessorList(processors)
        if alone and draft is not None:
            return self._generate_from_draft(draft, input_ids, embeddings, attention_mask, criteria, **kwargs)
        if greedy and attention_mask is not None:
            embeddings, attention_mask, cache = share_prompt(self, input_ids, embeddings, attention_mask)
            if cache is not None:
                kwargs["past_key_values"] = cache
        return super().generate(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            stopping_criteria=StoppingCriteriaList(criteria),
            **kwargs,
        )

    @staticmethod
    def _given_limit(kwargs: dict[str, Any]) -> int | None:
        """Takes `max_length` out of the options: of it, transformers would subtract the prompt of the longest clip."""
        of_config = kwargs.get("generation_config")
        length = kwargs.pop("max_length", None)
        values = [kwargs.get("max_new_tokens"), length]
        values += [getattr(of_config, key, None) for key in ("max_new_tokens", "max_length")]
        limit = next((value for value in values if value is not None), None)
        if limit is not None and limit < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {limit}")
        return limit

    def _hear(
        self, audio: Any, log_probabilities: Tensor | None, tokenizer: Any
    ) -> tuple[Hearing | None, list[int] | None]:
        """What the better of the model's CTC heads hears in a batch, and a draft of its first clip's text."""
        if self.embedding_ctc is not None:
            hearing, drafts = self.embedding_ctc.listen(
                audio.pooler_output, audio.token_lengths, self.get_input_embeddings().weight
            )
            return hearing, drafts[0]
        if log_probabilities is None or tokenizer is None:
            return None, None
        vocabulary = self.config.ctc_vocabulary
        hearing = HeardCharacters(log_probabilities, audio.frame_lengths, tokenizer, vocabulary)
        heard = log_probabilities[0, : int(audio.frame_lengths[0])].argmax(dim=-1).tolist()
        text = decode_ctc_text(heard, vocabulary)
        return hearing, tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def _joint_scores(self, hearing: Hearing, weight: float, options: dict[str, Any]) -> JointScores:
        beams = self.setting(options, "num_beams") or 1
        ends = [*self._end_ids(), self.generation_config.pad_token_id]
        return JointScores(hearing, weight, ends, max(CANDIDATES, 2 * beams))

    def _end_ids(self) -> list[int]:
        ends = self.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    def setting(self, options: dict[str, Any], name: str) -> Any:
        """What a call says, else its generation config, else the model's."""
        settings = options.get("generation_config") or self.generation_config
        return options.get(name, getattr(settings, name, None))

    def _is_greedy(self, options: dict[str, Any]) -> bool:
        """Whether this call is for the likeliest token each time, and the decoder's cache one that can be cut."""
        settings = {key for key, value in self.generation_config.to_diff_dict().items() if value is not None}
        settings -= {"transformers_version", "_from_model_config"}
        plain = self.generation_config.num_beams in (None, 1) and not self.generation_config.do_sample
        allowed = options.keys() <= GREEDY_OPTIONS and settings <= GREEDY_SETTINGS
        return plain and allowed and "max_new_tokens" in options and has_plain_cache(self.config.text_config)

    def _generate_from_draft(
        self,
        draft: list[int],
        input_ids: Tensor,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        criteria: list[StoppingCriteria],
        max_new_tokens: int,
        logits_processor: Any = (),
        streamer: BaseStreamer | None = None,
    ) -> Tensor:
        """(1, new tokens) of one clip, whose text is probably `draft`."""
        ends = self._end_ids()
        if attention_mask is not None:
            valid = attention_mask[0].bool()
            input_ids, embeddings = input_ids[:, valid], embeddings[:, valid]
        before_audio = int((input_ids[0] == self.config.audio_token_id).int().argmax())
        cache = recall_prompt(self, input_ids[0, :before_audio]) if before_audio else None
        ids = write_from_draft(
            self,
            embeddings[:, before_audio:],
            draft + ends[:1],
            max_new_tokens,
            ends,
            self.generation_config.suppress_tokens or (),
            logits_processor or (),
            criteria,
            streamer,
            cache,
        )
        return torch.tensor([ids], device=embeddings.device)

    def generate_stream(
        self, tokenizer: Any, audio_features: Any = None, guard: bool = True, **inputs: Any
    ) -> Iterator[str]:
        """Yields the text of one clip in pieces, as they are written; joined they are the text of `generate`.

        That is, of `generate` with the same `tokenizer`.

        Takes `generate`'s arguments but for beams. An exception of the generation is raised here; when the
        caller stops early (`close()`, or leaving the loop), the generation stops at its next token.
        """
        if audio_features is None:
            mask = inputs.pop("input_features_mask")
            audio_features = self.get_audio_features(inputs.pop("input_features"), mask)
        if len(audio_features.frame_lengths) != 1:
            raise ValueError("a stream is of one clip: give a batch of one")
        log_probabilities = self.alignment(audio_features)
        heard = log_probabilities is None or has_speech(log_probabilities, audio_features.frame_lengths)
        if guard and not heard:
            return
        pieces = _Pieces(tokenizer)
        criteria = StoppingCriteriaList([*(inputs.pop("stopping_criteria", None) or []), pieces.stopper])
        inputs |= {"tokenizer": tokenizer, "streamer": pieces, "stopping_criteria": criteria}

        def work() -> None:
            try:
                self.generate(audio_features=audio_features, **inputs)
                pieces.end()
            except BaseException as error:  # whatever it is, it belongs to the caller
                pieces.queue.put(error)

        worker = threading.Thread(target=work, name="generate_stream", daemon=True)
        worker.start()
        try:
            while (piece := pieces.queue.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            pieces.stopper.stopped.set()
            worker.join()


class _Stopper(StoppingCriteria):
    """Ends the generation once `stopped` is set."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)


class _Pieces(BaseStreamer):
    """Token ids to pieces of text without outer blanks or half characters; None in the queue is the end."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.queue: queue.Queue[str | BaseException | None] = queue.Queue()
        self.stopper = _Stopper()
        self.ids: list[int] = []
        self.written = ""

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        # A byte of a character, or a blank that may turn out to be the last, waits for what follows.
        self._write(text.lstrip().rstrip(UNFINISHED_CHARACTER).rstrip())

    def end(self) -> None:
        self._write(self.tokenizer.decode(self.ids, skip_special_tokens=True).strip())
        self.queue.put(None)

    def _write(self, text: str) -> None:
        if text.startswith(self.written) and len(text) > len(self.written):
            self.queue.put(text[len(self.written) :])
            self.written = text


class TokenScores(LogitsProcessor):
    """Keeps the log-probability of each token that is written, without holding the scores of the whole vocabulary.

    Last in the list of processors: it sees the scores that the choice is made from. Not for beams.
    """

    def __init__(self) -> None:
        self.chosen: list[Tensor] = []
        self.last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._note(input_ids[:, -1:] if input_ids.shape[1] else None)
        self.last = scores.float().log_softmax(dim=-1)
        return scores

    def _note(self, tokens: Tensor | None) -> None:
        if self.last is not None and tokens is not None:
            self.chosen.append(self.last.gather(1, tokens))

    def finish(self, ids: Tensor) -> Tensor:
        """(B, T) log-probabilities of `ids (B, T)`, which generation has returned."""
        self._note(ids[:, -1:])
        return torch.cat(self.chosen, dim=1)

    def as_list(self) -> LogitsProcessorList:
        return LogitsProcessorList([self])


def word_scores(tokenizer: Any, ids: list[int], scores: list[float]) -> list[float]:
    """Log-probability of each word of the text that `ids` make: the sum over its tokens."""
    totals: list[float] = []
    for count, score in enumerate(scores, start=1):
        words = len(tokenizer.decode(ids[:count], skip_special_tokens=True).split())
        if words == 0:
            continue
        while len(totals) < words:
            totals.append(0.0)
        totals[words - 1] += score
    # Bytes of a character that was not whole looked like a word, and were a blank at the end.
    words = len(tokenizer.decode(ids, skip_special_tokens=True).split())
    return [*totals[: words - 1], sum(totals[words - 1 :])] if words else []
