"""Settings against what an encoder brings: those that contradict it are refused, what was in force is recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from beit.common.errors import InputError
from beit.common.sources.config import SourceConfig
from beit.common.vit.agreement import channels_of, model_settings, require_same, require_shape
from beit.common.vit.config import Normalization, ViTConfig, for_channels
from beit.common.vit.description import EncoderConfig
from beit.finetune.config import RANDOM_ENCODER, ImageConfig, ShapeConfig


class EncoderSettings(Protocol):
    """What the settings of every kind of fine-tuning say of the encoder."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def encoder(self) -> str | None:
        """Folder of an encoder, or "random"."""

    @property
    def freeze_blocks(self) -> int:
        """Blocks left as they are."""

    @property
    def adapt(self) -> str:
        """How much of the encoder is trained."""

    @property
    def image(self) -> ImageConfig:
        """Input."""

    @property
    def model(self) -> ShapeConfig:
        """Shape."""

    @property
    def source(self) -> SourceConfig:
        """Images."""


AnySettings = TypeVar("AnySettings", bound=EncoderSettings)


def require_agreement(stored: EncoderConfig, config: EncoderSettings) -> None:
    """Refuse settings that the encoder contradicts: it would win, and the run be recorded as what it was not."""
    shape, image, encoder = stored.architecture, config.image, str(config.encoder)
    pixels = for_channels(stored.normalization, channels_of(shape, config.model))
    require_shape(shape, config.model, encoder)
    _require_whole_patches(shape, config)
    own = {
        "image.patch_size": (image.patch_size, shape.patch_size, "patch size"),
        "image.mean": (_listed(image.mean), list(pixels.mean), "mean of the pixels"),
        "image.std": (_listed(image.std), list(pixels.std), "standard deviation of the pixels"),
    }
    require_same(own, encoder)


def in_force(config: AnySettings, architecture: ViTConfig, normalization: Normalization) -> AnySettings:
    """Return the settings with those filled in that were left out, and came from an encoder or are the usual ones."""
    found = brought_settings(architecture, normalization)
    size = config.model.size or architecture.size
    return replace(
        config,
        image=replace(config.image, **found["image"]),
        model=replace(config.model, **found["model"] | {"size": size}),
    )


def unnamed_shape(config: EncoderSettings, architecture: ViTConfig) -> str | None:
    """Return a warning where nothing says how large random weights are to be, which are a rival of some encoder."""
    if config.encoder != RANDOM_ENCODER or config.model.names_shape:
        return None
    return (
        f"nothing says how large the random weights are, so they are {architecture.name}; a rival of an "
        "encoder has its shape, as in config.toml of a run: --set model.size=tiny --set image.img_size=64 and so on"
    )


def brought_settings(architecture: ViTConfig, normalization: Normalization) -> dict[str, dict[str, Any]]:
    """Return what the sections image and model say of an encoder, or of a model made of one."""
    return {
        "image": {name: getattr(architecture, name) for name in ("img_size", "patch_size")}
        | {"mean": tuple(normalization.mean), "std": tuple(normalization.std)},
        "model": model_settings(architecture),
    }


def _require_whole_patches(shape: ViTConfig, config: EncoderSettings) -> None:
    """Refuse a side of the input that the encoder's patches do not divide, with the nearest that they do."""
    side, patch = config.image.img_size, shape.patch_size
    if side is not None and side % patch:
        below, above = side // patch * patch, -(-side // patch) * patch
        raise InputError(
            f"image.img_size ({side}) must be a multiple of patch_size ({patch}), the encoder's in {config.encoder}; "
            f"take {f'{below} or {above}' if below else above}"
        )


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    """Return values as they are recorded."""
    return None if values is None else list(values)
