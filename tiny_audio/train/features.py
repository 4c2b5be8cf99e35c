"""`tiny-audio cache-features`: a frozen encoder's frames, made once and read by every epoch of every run that fits.

Frames belong to an encoder (by the fingerprint of its weights), a feature extractor, and where the sound is changed, to
the augmentation and its seed. What differs in one of these lies in another folder, so nothing is ever read by mistake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

from tiny_audio.data.features import FrameStore, FrameWriter, differences, store_folder
from tiny_audio.data.loader import TrainData
from tiny_audio.data.recorded import recordings
from tiny_audio.data.sources import open_sources
from tiny_audio.errors import UserError
from tiny_audio.files import check_space, is_disk_full, size_in_words
from tiny_audio.hub.asr_checkpoint import cast_weights, fingerprint, pick_device
from tiny_audio.hub.asr_encoders import encoder_geometry, encoder_output_length, encoder_width, run_encoder
from tiny_audio.train.build import build_data, build_encoder_side, frame_seconds
from tiny_audio.train.cached import active_augmentations
from tiny_audio.train.precision import mixed_precision

FORMAT = 1  # of the frames: raised when the same encoder would give others
STORED_TYPES = (torch.bfloat16, torch.float32)
COMMAND = "run tiny-audio cache-features with the same overrides as tiny-audio train"


def _listed(folder: str, name: str) -> list[list[str | int]]:
    """What a folder of noises or rooms holds: names and sizes."""
    return [[file.name, file.stat().st_size] for file in recordings(folder, f"augmentation.{name}")]


def about_frames(config: DictConfig, tower: nn.Module, processor: Any, dtype: torch.dtype) -> dict[str, Any]:
    """All that the frames of a clip depend on besides its audio."""
    extractor = {
        name: value
        for name, value in processor.feature_extractor.to_dict().items()
        if not name.startswith("_") and name != "processor_class"
    }
    augmentation = None
    if active_augmentations(config):
        # What is not given changes nothing: caches made before there was such a key stay as they are.
        given = {name: value for name, value in config.augmentation.items() if value is not None}
        augmentation = {
            **OmegaConf.to_container(OmegaConf.create(given)),
            **{name: _listed(given[name], name) for name in ("noise_files", "reverb_files") if name in given},
            "seed": config.seed,
            "max_seconds": min(config.data.max_seconds, processor.max_seconds),
        }
    return {
        "format": FORMAT,
        "encoder": fingerprint(tower),
        "feature_extractor": extractor,
        "augmentation": augmentation,
        "frames": str(dtype).removeprefix("torch."),
    }


def open_store(config: DictConfig, model: Any, processor: Any) -> FrameStore | None:
    """The store that `data.features_cache` means for `model`; None without that key.

    Raises:
        UserError: the encoder trains, or the folder holds nothing for it.
    """
    if config.data.features_cache is None:
        return None
    tower = model.model.audio_tower
    if model.config.encoder_lora or any(parameter.requires_grad for parameter in tower.parameters()):
        raise UserError(
            "data.features_cache: the encoder of this model trains, so its features change with every step; "
            "set data.features_cache=null, or encoder_lora.r=0 and model.freeze_encoder=true"
        )
    cache = Path(config.data.features_cache).expanduser()
    for dtype in STORED_TYPES:
        folder = store_folder(cache, about_frames(config, tower, processor, dtype))
        if folder.is_dir():
            return FrameStore(folder, dtype, encoder_width(model.config.audio_config))
    others = differences(cache, about_frames(config, tower, processor, STORED_TYPES[0]))
    found = f"was made with another {' and another '.join(others)}" if others else "is empty or not there"
    raise UserError(f"data.features_cache={config.data.features_cache} {found}: {COMMAND}")


def cache_features(
    config: DictConfig, dtype: torch.dtype = torch.bfloat16, note: Callable[[str], None] = print
) -> Path:
    """Encodes what `data.features_cache` lacks of `data.train`, and returns the folder of the store.

    What was encoded before is kept, by a run that was killed as well: at most one shard's clips are encoded twice.

    Raises:
        UserError: there is nothing to encode or no room for it, or the disk is full.
    """
    cache = Path(config.data.features_cache).expanduser()
    variants = config.data.features_cache_variants or 1
    sources = open_sources(config.data.train)
    tower, processor = build_encoder_side(config)
    width = encoder_width(tower.config)
    about = about_frames(config, tower, processor, dtype)
    folder = store_folder(cache, about)
    data = build_data(config, sources, processor, variants=variants)
    store = FrameStore(folder, dtype, width)
    lacking = [data.clips_to_encode(hearing, store) for hearing in range(variants)]
    num_clips = sum(len(identities) for identities, _ in lacking)
    seconds = sum(length for _, length in lacking)
    size = seconds / frame_seconds(tower.config, processor.feature_extractor) * width * dtype.itemsize
    for line in data.summary():
        note(line)
    note(
        f"{num_clips:,} of {variants * data.num_clips:,} sounds to encode, {seconds / 3600:.2f} hours: about "
        f"{size_in_words(size)} in {folder}"
    )
    if num_clips == 0:
        FrameWriter(folder, about, store.broken)  # to remove what is broken
        return folder
    check_space(
        cache, size, f"data.features_cache={cache}", "name a folder on another disk, or train without"
    )
    encoder = Encoder(tower, mixed_precision(config.training.bf16))
    writer = FrameWriter(folder, about, store.broken)
    started = time.perf_counter()
    try:
        with _progress(seconds) as advance:
            for hearing in range(variants):
                fill_store(store, writer, data, encoder, hearing, advance)
    except KeyboardInterrupt:
        writer.finish_shard()
        note("stopped; the same command goes on from here")
        raise
    except OSError as error:
        writer.abandon_shard()
        if is_disk_full(error):
            raise UserError(
                f"no space left for the features in {folder}: free some and run the same command, it goes on"
            ) from error
        raise
    finally:
        data.close()
    took = time.perf_counter() - started
    note(
        f"wrote {size_in_words(writer.bytes_written)} in {took / 60:.1f} minutes, {seconds / took:.0f} s of audio a "
        f"second; train with data.features_cache={config.data.features_cache}"
    )
    return folder


def fill_store(
    store: FrameStore,
    writer: FrameWriter,
    data: TrainData,
    encoder: Encoder,
    hearing: int,
    advance: Callable[[float], None],
) -> None:
    """Encodes what `store` lacks of `data` as it sounds in `hearing`. `advance` is told the seconds of audio done."""
    unreadable = set(data.clips_to_encode(hearing, store)[0].tolist())
    for batch in data.batches_to_encode(hearing, store):
        all_frames = encoder(batch["input_features"], batch["input_features_mask"])
        for identity, audio, num_samples, frames in zip(
            batch["identities"], batch["audio"], batch["num_samples"], all_frames, strict=True
        ):
            writer.add(identity, hearing, frames.to(store.dtype), num_samples, audio)
            unreadable.discard(identity)  # a row that is there twice has one
        advance(batch["audio_seconds"])
    for identity in unreadable:
        writer.add(identity, hearing, None)
    writer.finish_shard()


class Encoder:
    """A frozen tower, run as training runs it."""

    def __init__(self, tower: Any, precision: str) -> None:
        self._device = pick_device()
        self._half = precision == "bf16"
        self._geometry = encoder_geometry(tower.config)
        self._tower = tower.eval().to(self._device)
        cast_weights(self._tower, torch.bfloat16 if self._half else torch.float32)

    @torch.inference_mode()
    def __call__(self, features: Tensor, mask: Tensor) -> Iterator[Tensor]:
        """The frames (F, D_e) of each clip of a padded batch, on the CPU."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            frames = run_encoder(self._tower, features.to(self._device), mask.to(self._device))  # (B, F, D_e)
        lengths = encoder_output_length(self._geometry, mask.sum(dim=1))  # (B,)
        for clip, length in zip(frames.cpu(), lengths.tolist(), strict=True):
            yield clip[:length]


@contextmanager
def _progress(total_seconds: float) -> Iterator[Callable[[float], None]]:
    """A bar with the time left on standard error; where nobody watches, a line for each tenth."""
    console = Console(stderr=True)
    columns = (
        TextColumn("encoding"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    started, done = time.perf_counter(), 0.0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoding", total=total_seconds)

        def advance(seconds: float) -> None:
            nonlocal done
            before, done = done, done + seconds
            bar.update(task, completed=done)
            if not console.is_terminal and (
                before == 0 or int(10 * done / total_seconds) > int(10 * before / total_seconds)
            ):
                left = (time.perf_counter() - started) * max(total_seconds / done - 1, 0)
                console.print(
                    f"encoded {done / total_seconds:.0%}, about {left / 60:.1f} minutes left", highlight=False
                )

        yield advance
