"""Whether features can be cached: of an encoder that stays as it is, and of sounds that come again."""

from __future__ import annotations

from omegaconf import DictConfig

from tiny_audio.errors import UserError


def active_augmentations(config: DictConfig) -> list[str]:
    """The keys of `augmentation` that make a clip sound otherwise in each epoch."""
    active = {
        name: any(value) if name == "gain_db" else name.endswith(("_probability", "_masks")) and value > 0
        for name, value in config.augmentation.items()
    }
    return [f"augmentation.{name}" for name, on in active.items() if on]


def check_features_cache(config: DictConfig) -> None:
    """Raises UserError where `data.features_cache` cannot be what the encoder would give."""
    data = config.data
    if data.features_cache is None:
        return
    if not config.model.freeze_encoder or config.encoder_lora.r:
        trains = "encoder_lora.r=0" if config.model.freeze_encoder else "model.freeze_encoder=true"
        raise UserError(
            f"data.features_cache={data.features_cache}: the encoder trains, so its features change with every step; "
            f"set {trains}, or data.features_cache=null"
        )
    active = active_augmentations(config)
    if active and data.features_cache_variants is None:
        raise UserError(
            f"data.features_cache={data.features_cache}: with {', '.join(active)} a clip sounds otherwise in "
            "every epoch; set "
            "data.features_cache_variants=K to hear K sounds of each clip in turn, or switch the augmentation off"
        )
    if not active and (data.features_cache_variants or 1) > 1:
        raise UserError("data.features_cache_variants: without augmentation all are the same; set it to null")
