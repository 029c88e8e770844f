"""Settings against what an encoder brings: those that contradict it are refused, those left out are filled in.

It would win, and the run be recorded as what it was not. Which settings a stage has is the stage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beit.common.errors import InputError, require
from beit.common.images.decoding import GREY, RGB
from beit.common.vit.config import VIT_SIZES, ViTConfig

_SIZE = ("embed_dim", "depth", "num_heads")
_OF_SHAPE = ("size", *_SIZE, "mlp_ratio", "init_values", "use_abs_pos_emb", "pos_bias")


def require_shape(shape: ViTConfig, model: Any, encoder: str) -> None:
    """Refuse a section `model`, a dataclass whose fields may be None, that is not the encoder's."""
    _require_size(shape, model, encoder)
    has_scale = shape.init_values > 0
    require(
        model.init_values is None or (model.init_values > 0) == has_scale,
        f"model.init_values ({model.init_values}) must be {'above 0' if has_scale else '0'}, as the encoder {encoder} "
        f"has {'' if has_scale else 'no '}layer scale; leave it out",
    )
    own = {
        "model.mlp_ratio": (model.mlp_ratio, shape.mlp_ratio, "width of the MLP"),
        "model.use_abs_pos_emb": (model.use_abs_pos_emb, shape.use_abs_pos_emb, "choice of absolute positions"),
    }
    require_same(own, encoder)
    require_grey_or_same(shape.in_chans, model.in_chans, f"the encoder {encoder}")


def require_grey_or_same(found: int, wanted: int | None, what: str) -> None:
    """Refuse channels that an encoder cannot be given: one of RGB can become grey, but not the other way."""
    require(
        wanted is None or wanted == found or (found, wanted) == (RGB, GREY),
        f"model.in_chans ({wanted}) must be {found}, as {what} sees {found} channel{'s' if found > 1 else ''}; leave "
        "it out: images in colour are then read as their luma",
    )


def channels_of(shape: ViTConfig, model: Any) -> int:
    """Return the channels of a model made of an encoder: those that a section `model` names, else the encoder's."""
    return int(shape.in_chans if model.in_chans is None else model.in_chans)


def require_same(own: Mapping[str, tuple[Any, Any, str]], encoder: str) -> None:
    """Refuse settings that are not the encoder's: by name what is set, None for nothing, what it has, what that is."""
    for name, (given, value, what) in own.items():
        require(
            given is None or given == value,
            f"{name} ({given}) must be {value}, the {what} of the encoder {encoder}; leave it out, where a "
            f"recipe says it with --set {name}=none, or take another encoder",
        )


def model_settings(architecture: ViTConfig) -> dict[str, Any]:
    """Return what the section model says of an encoder, or of a model made of one."""
    grey = {"in_chans": GREY} if architecture.in_chans == GREY else {}  # 3 goes without saying, as in earlier runs
    return {name: getattr(architecture, name) for name in _OF_SHAPE} | grey


def _require_size(shape: ViTConfig, model: Any, encoder: str) -> None:
    """Refuse settings made for a model of another size; those that name none fit all."""
    found = {name: getattr(shape, name) for name in _SIZE}
    named = VIT_SIZES[model.size]._asdict() if model.size else found
    wanted = {name: named[name] if getattr(model, name) is None else getattr(model, name) for name in found}
    if wanted != found:
        said = " ".join(f"--set model.{name}=none" for name in ("size", *_SIZE) if getattr(model, name) is not None)
        text = ["{embed_dim} wide, {depth} blocks, {num_heads} heads".format(**values) for values in (wanted, found)]
        raise InputError(
            f"the settings are for a model of {text[0]} (section model), but the encoder {encoder} has {text[1]}; take "
            f"another recipe or encoder, or leave the size to the encoder with {said}"
        )
