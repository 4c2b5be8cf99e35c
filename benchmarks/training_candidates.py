"""What `training.py` lets take turns: our loop with its tricks on one by one, and a stock model in HF's Trainer.

A candidate trains on every clip once an epoch, the same number of clips a step. Learning rates are so low that no
weight moves: each epoch is then the same work, and its losses can be compared with those of the others.

Legend: B batch, L feature frames, F encoder frames, T decoder positions, D_e encoder width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sized_models import SAMPLING_RATE, Sizes, our_model, sound, stock_model, stock_prompt
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as StockTrainer
from tricks import WHISPER_SECONDS, new_tokens_for

from tiny_audio.data.batching import plan_window
from tiny_audio.hub import asr_drafting
from tiny_audio.hub.asr_encoders import run_encoder
from tiny_audio.hub.asr_lora import inject_lora
from tiny_audio.hub.asr_losses import IGNORE_LABEL, encode_ctc_text
from tiny_audio.hub.asr_modeling import TinyAudioForConditionalGeneration
from tiny_audio.train.build import freeze
from tiny_audio.train.config import compose_config
from tiny_audio.train.loop import Trainer

MEAN_SECONDS, SHORTEST_SECONDS, LONGEST_SECONDS = 7.0, 1.0, 25.0
SPREAD = 0.7  # of the logarithm of the lengths
STEPS_SORTED = 50  # HF's Trainer sorts the clips of so many batches by length at a time
CHARACTERS_PER_SECOND = 14  # of English speech: what the alignment head is to hear
PASS_SECONDS = (
    60.0  # of sound that ours takes through the model at once; a step is as many passes as it needs
)
NO_LEARNING = 1e-12
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


@dataclass(frozen=True)
class Tricks:
    """What one step of the ladder has switched on."""

    tokens_at_length: bool = True  # else 375 audio tokens for every clip
    encoder_at_length: bool = True  # else the encoder runs over 30 s
    like_length: bool = True  # else a step takes clips as they come
    labels_only: bool = True  # else every position has logits, of which those at labels are used
    prompt_once: bool = True  # else each clip's copy of the prompt is read by itself
    bounded_pass: bool = True  # else all clips of a step go through the model at once
    cached: bool = False  # the encoder's frames are there already


OFF = Tricks(*[False] * 7)
LADDER = {
    "30 s, every trick off": OFF,
    "+ audio tokens at the clip's length": replace(OFF, tokens_at_length=True),
    "+ encoder at the clip's length": replace(OFF, tokens_at_length=True, encoder_at_length=True),
    "+ batches of like length": Tricks(labels_only=False, prompt_once=False, bounded_pass=False),
    "+ logits at labels only": Tricks(prompt_once=False, bounded_pass=False),
    "+ prompt read once": Tricks(bounded_pass=False),
    f"+ at most {PASS_SECONDS:g} s a pass": Tricks(),
    "+ cached features (not in ratio)": Tricks(cached=True),
}
BASELINE, EXACT_FROM, OURS, CACHED = (list(LADDER)[i] for i in (0, 2, 6, 7))


@dataclass(frozen=True)
class Clip:
    """A clip of noise and what is said in it."""

    waveform: np.ndarray  # (S,)
    text: str  # as many letters, which are tokens, as speech of that length has tokens
    characters: str  # as many as it has characters

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLING_RATE


def clip_mix(num_steps: int, clips_a_step: int, seed: int = 0) -> tuple[list[Clip], list[Clip]]:
    """The clips of some steps in random order, and those of the step with the longest clips.

    As many lengths are drawn as HF's Trainer sorts at a time, and cut by length into steps; the steps taken are evenly
    spaced among them. So few clips are padded as little as many would be.
    """
    draw = np.random.default_rng(seed)
    lengths = draw.lognormal(math.log(MEAN_SECONDS) - SPREAD**2 / 2, SPREAD, STEPS_SORTED * clips_a_step)
    steps = np.clip(np.sort(lengths), SHORTEST_SECONDS, LONGEST_SECONDS).reshape(STEPS_SORTED, clips_a_step)
    taken = steps[((np.arange(num_steps) + 0.5) / num_steps * STEPS_SORTED).astype(int)]

    def letters(number: int) -> str:
        return "".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), number))

    def clip(seconds: float) -> Clip:
        text, characters = new_tokens_for(seconds), round(CHARACTERS_PER_SECOND * seconds)
        return Clip(sound(seconds, characters), letters(text), letters(characters))

    mix, longest = draw.permutation(taken.ravel()), steps[-1]
    return [clip(seconds) for seconds in mix.tolist()], [clip(seconds) for seconds in longest.tolist()]


def plan_steps(clips: Sequence[Clip], clips_a_step: int, tricks: Tricks) -> list[list[list[int]]]:
    """The clips of an epoch by number, as passes of steps: equally many clips in each step."""
    seconds = np.array([clip.seconds for clip in clips])
    tokens = np.array([len(clip.text) for clip in clips])
    plan: Any = {"seed": [0, 0], "max_clips": clips_a_step}
    if tricks.like_length:
        steps = list(plan_window(seconds, tokens, batch_seconds=math.inf, **plan))
    else:
        order = np.random.default_rng(0).permutation(len(clips))
        steps = [rows.tolist() for rows in np.split(order, range(clips_a_step, len(clips), clips_a_step))]
    if not tricks.bounded_pass:
        return [[step] for step in steps]
    passes = (plan_window(seconds[step], tokens[step], batch_seconds=PASS_SECONDS, **plan) for step in steps)
    return [[[step[i] for i in rows] for rows in plan] for step, plan in zip(steps, passes, strict=True)]


class WithoutTricks(TinyAudioForConditionalGeneration):
    """Our model with what `tricks` says left out: the plain ways to the same losses."""

    tricks = Tricks()

    def forward(self, **inputs: Any) -> Any:  # type: ignore[override]
        if self.tricks.tokens_at_length and not self.tricks.encoder_at_length:
            inputs |= self._encode_padded(inputs.pop("input_features"), inputs["input_features_mask"])
        share_from = asr_drafting.SHARE_FROM_POSITIONS
        asr_drafting.SHARE_FROM_POSITIONS = share_from if self.tricks.prompt_once else math.inf  # type: ignore[assignment]
        try:
            return super().forward(**inputs)
        finally:
            asr_drafting.SHARE_FROM_POSITIONS = share_from

    @torch.no_grad()
    def _encode_padded(self, features: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Frames of clips padded to 30 s, `features` (B, n_mels, L), cut to what `mask` (B, L) says is heard."""
        lengths, _ = self.model.audio_token_lengths(mask.sum(dim=1))  # (B,)
        longest = int(lengths.max())
        frames = run_encoder(self.model.audio_tower, features)[:, :longest]  # (B, F, D_e)
        heard = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (B, F)
        return {"encoder_frames": frames.transpose(1, 2), "input_features_mask": heard}

    def _loss_sums(self, hidden_states: Tensor | None, labels: Tensor, *others: Any) -> Any:
        if self.tricks.labels_only or hidden_states is None:
            return super()._loss_sums(hidden_states, labels, *others)
        sums, counts, infeasible = super()._loss_sums(None, labels, *others)
        # As transformers does it: logits of all positions, in float32, and targets moved by one.
        logits = self.compute_logits(hidden_states).float()  # (B, T, V)
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_LABEL)  # (B, T)
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_LABEL, reduction="sum"
        )
        return {"lm": loss, **sums}, counts, infeasible


class Ours:
    """Our model under our training loop: the `small` recipe's losses once the decoder has joined, LoRA and projector.

    Args:
        folder: for what a loop writes beside training.
    """

    def __init__(self, sizes: Sizes, clips_a_step: int, folder: Path):
        self.clips_a_step = clips_a_step
        self.model, self.processor = our_model(sizes, decoder_lora=LORA, embedding_ctc=True)
        freeze(self.model, freeze_encoder=True, freeze_decoder=True)
        self.model.__class__ = WithoutTricks
        overrides = [
            "+experiments=small",
            "encoder_lora.r=0",
            "ctc.alone_share=0",
            f"training.learning_rate={NO_LEARNING}",
            f"training.decoder_learning_rate={NO_LEARNING}",
            "training.max_steps=100000",
            "training.bf16=false",
        ]
        self.config = compose_config(overrides)
        self.lm_config = compose_config([*overrides, "ctc.weight=0", "ctc.embedding_weight=0"])
        self.trainer = Trainer(self.config, self.model, None, folder, report=lambda line: None)
        self.trainer.model.train()

    def hear(self, clips: Sequence[Clip]) -> None:
        """Gets `clips` ready for `steps`."""
        self.clips = clips
        examples = [self._example(clip, clip.waveform) for clip in clips]
        padded = [
            self._example(
                clip, np.pad(clip.waveform, (0, WHISPER_SECONDS * SAMPLING_RATE - len(clip.waveform)))
            )
            for clip in clips
        ]
        cut = [
            short | {"input_features": long["input_features"]}
            for short, long in zip(examples, padded, strict=True)
        ]
        # (audio tokens at length, encoder at length) -> what the model is given of each clip
        self.examples = {(True, True): examples, (False, False): padded, (True, False): cut}
        self.lengths = torch.tensor([example["input_features"].shape[-1] for example in examples])
        self.encoded = [self._encoded(clip, example) for clip, example in zip(clips, examples, strict=True)]

    def _example(self, clip: Clip, waveform: np.ndarray) -> dict[str, Any]:
        characters = encode_ctc_text(clip.characters, self.processor.ctc_vocabulary)
        return self.processor.encode(waveform, clip.text) | {"ctc_labels": characters}

    @torch.no_grad()
    def _encoded(self, clip: Clip, example: dict[str, Any]) -> dict[str, Any]:
        frames = run_encoder(self.model.model.audio_tower, example["input_features"][None])[0]  # (F, D_e)
        encoded = self.processor.assemble(frames.T.cpu(), clip.text, encoded=True)
        return encoded | {"ctc_labels": example["ctc_labels"]}

    @property
    def num_trained(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def steps(self, tricks: Tricks) -> list[list[dict[str, Any]]]:
        """The batches of each step, as a worker would have them ready."""
        return [
            [self._batch(rows, tricks) for rows in passes]
            for passes in plan_steps(self.clips, self.clips_a_step, tricks)
        ]

    def _batch(self, rows: list[int], tricks: Tricks) -> dict[str, Any]:
        kind = tricks.tokens_at_length, tricks.encoder_at_length
        examples = self.encoded if tricks.cached else self.examples[kind]
        batch = dict(self.processor.collate([examples[row] for row in rows]))
        if tricks.cached:
            batch["encoder_frames"] = batch.pop("input_features")
        if kind == (True, False):
            places = torch.arange(batch["input_features"].shape[-1])
            batch["input_features_mask"] = places < self.lengths[rows][:, None]  # (B, L)
        seconds = sum(self.clips[row].seconds for row in rows)
        return {**batch, "audio_seconds": seconds, "epoch": 0, "batch_index": 0}

    def train(
        self, steps: list[list[dict[str, Any]]], tricks: Tricks, lm_only: bool = False
    ) -> dict[str, float]:
        """Takes the steps. Returns the sum of each loss over all clips, which no batching changes."""
        WithoutTricks.tricks = tricks
        self.trainer.config = self.lm_config if lm_only else self.config
        self.trainer._totals = {}
        for batches in steps:
            self.trainer._step(batches)
        assert self.trainer.progress.skipped_steps == 0 and not self.trainer._totals["infeasible"]
        return {name: float(total) for name, total in self.trainer._totals.items() if name.endswith("_sum")}


class StepClock(TrainerCallback):
    """Adds up the seconds that HF's Trainer spends inside steps: not those of its setting up, nor of collating."""

    def __init__(self, clock: Callable[[], float]):
        self.clock, self.seconds = clock, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seconds -= self.clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += self.clock()


class Stock:
    """transformers' Qwen3-ASR of the same sizes in HF's Trainer, as a careful user would set it up.

    Towers frozen, the same LoRA, features computed before, batches of like length padded to their longest clip, labels
    on the transcript alone, no key-value cache. It learns from the language model's loss alone: it knows no other.

    Args:
        num_trained: parameters that ours trains. The projector is made wider until this trains as many.
        own_prompt: with the few tokens of its own template, not as many as ours has.
    """

    def __init__(
        self,
        sizes: Sizes,
        clips_a_step: int,
        num_trained: int,
        own_prompt: bool,
        folder: Path,
        clock: Callable[[], float],
    ):
        self.model, processor = stock_model(sizes)
        self.model.requires_grad_(False)
        trunk = self.model.model
        inject_lora(trunk.language_model, LORA)
        lora = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        projector = trunk.multi_modal_projector
        width_in, width_out = projector.linear_1.in_features, projector.linear_2.out_features
        hidden = round((num_trained - lora - width_out) / (width_in + 1 + width_out))
        projector.linear_1 = torch.nn.Linear(width_in, hidden)
        projector.linear_2 = torch.nn.Linear(hidden, width_out)
        self.model.config.text_config.use_cache = False
        self.processor, self.prompt = processor, stock_prompt(own_prompt)
        self.clock = StepClock(clock)
        self.trainer = StockTrainer(
            self.model,
            TrainingArguments(
                output_dir=str(folder),
                per_device_train_batch_size=clips_a_step,
                num_train_epochs=1,
                train_sampling_strategy="group_by_length",
                learning_rate=NO_LEARNING,
                max_grad_norm=1.0,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[],
            data_collator=self._collate,
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)

    @property
    def num_trained(self) -> int:
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def item(self, clip: Clip) -> dict[str, Any]:
        """A clip as the model's own processor makes it."""
        text = self.prompt + clip.text + self.processor.tokenizer.eos_token
        inputs = self.processor(text=[text], audio=[clip.waveform])
        ids = inputs["input_ids"][0]
        labels = ids.clone()
        labels[: -len(clip.text) - 1] = IGNORE_LABEL
        return {
            "input_features": inputs["input_features"][0],
            "input_features_mask": inputs["input_features_mask"][0],
            "input_ids": ids,
            "labels": labels,
        }

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        def pad(key: str, value: int) -> Tensor:
            return pad_sequence([item[key] for item in items], True, value)

        features = pad_sequence([item["input_features"].T for item in items], True)  # (B, L, n_mels)
        return {
            "input_features": features.transpose(1, 2).contiguous(),
            "input_features_mask": pad("input_features_mask", 0),
            "input_ids": pad("input_ids", self.processor.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(item["input_ids"]) for item in items], True, 0),
            "labels": pad("labels", IGNORE_LABEL),
        }

    def train(self, items: list[dict[str, Any]]) -> float:
        """Trains on each item once. Returns the seconds inside steps."""
        self.trainer.train_dataset = items
        self.clock.seconds = 0.0
        self.trainer.train()
        return self.clock.seconds
