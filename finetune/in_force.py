"""Settings against what an encoder brings: those that contradict it are refused, what was in force is recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from beit.common.config import config_to_dict, flatten
from beit.common.errors import InputError, require
from beit.common.vit.config import VIT_SIZES, Normalization, ViTConfig
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


AnySettings = TypeVar("AnySettings", bound=EncoderSettings)


def require_agreement(stored: EncoderConfig, config: EncoderSettings) -> None:
    """Refuse settings that the encoder contradicts: it would win, and the run be recorded as what it was not."""
    shape, settings = stored.architecture, flatten(config_to_dict(config))
    _require_size(shape, config)
    _require_whole_patches(shape, config)
    has_scale = shape.init_values > 0
    init_values = config.model.init_values
    require(
        init_values is None or (init_values > 0) == has_scale,
        f"model.init_values ({init_values}) must be {'above 0' if has_scale else '0'}, as the encoder {config.encoder} "
        f"has {'' if has_scale else 'no '}layer scale; leave it out",
    )
    own = {
        "image.patch_size": (shape.patch_size, "patch size"),
        "image.mean": (list(stored.normalization.mean), "mean of the pixels"),
        "image.std": (list(stored.normalization.std), "standard deviation of the pixels"),
        "model.mlp_ratio": (shape.mlp_ratio, "width of the MLP"),
        "model.use_abs_pos_emb": (shape.use_abs_pos_emb, "choice of absolute positions"),
    }
    for name, (value, what) in own.items():
        given = settings.get(name)
        require(
            given is None or given == value,
            f"{name} ({given}) must be {value}, the {what} of the encoder {config.encoder}; leave it out, or take "
            "another encoder",
        )


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
    names = ("size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values", "use_abs_pos_emb", "pos_bias")
    return {
        "image": {name: getattr(architecture, name) for name in ("img_size", "patch_size")}
        | {"mean": tuple(normalization.mean), "std": tuple(normalization.std)},
        "model": {name: getattr(architecture, name) for name in names},
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


def _require_size(shape: ViTConfig, config: EncoderSettings) -> None:
    """Refuse settings made for a model of another size; those that name none fit all."""
    model = config.model
    found = {name: getattr(shape, name) for name in ("embed_dim", "depth", "num_heads")}
    named = VIT_SIZES[model.size]._asdict() if model.size else found
    wanted = {name: named[name] if getattr(model, name) is None else getattr(model, name) for name in found}
    if wanted != found:
        text = ["{embed_dim} wide, {depth} blocks, {num_heads} heads".format(**values) for values in (wanted, found)]
        raise InputError(
            f"the settings are for a model of {text[0]} (section model), but the encoder {config.encoder} has "
            f"{text[1]}; take another recipe or encoder, or leave the size to the encoder with --set model.size=none"
        )
