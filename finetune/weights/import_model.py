"""`beit import`: weights of somebody else become an encoder folder that every later command takes.

Reading is `import_files.py`, naming `import_names.py`. Here is what the tensors make up: the architecture they imply,
which is then checked tensor by tensor, the head that stays, and where everything came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from beit import __version__
from beit.common.encoder import load_encoder, save_model
from beit.common.errors import InputError, require
from beit.common.storage.tensor_check import check_tensors
from beit.common.vit.config import Normalization, PosBias, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.weights.import_files import ForeignWeights, read_foreign
from beit.finetune.weights.import_names import NamedTensors, official_names

NORMALIZATIONS = {
    "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""The two that are in use."""
_KINDS = ("beit", "vit", "vit_mae", "deit")
"""`model_type` of the Hugging Face models whose computation is ours."""
_HEAD_DIM = 64
"""Channels of an attention head in almost every released ViT."""
_LAYER_SCALE = 0.1
"""Recorded as the initial layer scale where there is one; nothing but its presence matters once there are weights."""
_SIXTEEN_HEADS = (1280, 1408)
"""Widths of huge and giant models, which have 16 heads instead."""


class Imported(NamedTuple):
    """An imported encoder."""

    config: EncoderConfig
    """Its description."""
    summary: str
    """What was found, for the user."""


def import_encoder(
    source: Path,
    directory: Path,
    *,
    num_heads: int | None = None,
    normalization: Literal["imagenet", "inception"] | None = None,
) -> Imported:
    """Convert a weight file or folder into an encoder in a new or empty folder, and load that again.

    Where neither the user nor the file tells, the usual is taken: a head per 64 channels, the pixels' normalisation of
    such models.
    """
    if directory.exists() and (not directory.is_dir() or next(directory.iterdir(), None) is not None):
        raise InputError(f"{directory} is not an empty folder; name a new one for the encoder")
    foreign = read_foreign(source)
    _require_kind(foreign.config, source)
    named = official_names(foreign.tensors, str(source))
    tensors = named.tensors
    architecture = infer_architecture(named, foreign.config, num_heads, origin=str(source))
    _check(tensors, architecture, source)
    found, said = _normalization(named, foreign, normalization)
    class_names, pooling = _head(tensors, foreign.config)
    config = EncoderConfig(
        architecture=architecture,
        normalization=found,
        task="pretrain" if class_names is None else "classification",
        vocab_size=len(tensors["lm_head.weight"]) if "lm_head.weight" in tensors else None,
        class_names=class_names,
        pooling=pooling,
        provenance={
            "imported_from": str(source),
            "sha256": foreign.sha256,
            "checkpoint_key": foreign.container,
            "family": named.family,
            "left_out": named.left_out,
            "beit_version": __version__,
        },
    )
    save_model(directory, tensors, config)
    load_encoder(directory)
    return Imported(config, _summary(config, named, foreign, said))


def infer_architecture(
    named: NamedTensors, config: Mapping[str, Any], num_heads: int | None, *, origin: str
) -> ViTConfig:
    """Derive the shape of the model from its tensors, Hugging Face's config.json, if any, and what the user says."""
    tensors = named.tensors
    for name in ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "blocks.0.norm1.weight"):
        require(name in tensors, f"{origin} lacks the tensor {name!r} of every encoder; it is of another kind of model")
    projection = tensors["patch_embed.proj.weight"]
    require(projection.ndim == 4, f"{origin}: patch_embed.proj.weight has {projection.ndim} dimensions, must have 4")
    embed_dim, in_chans, patch_size = projection.shape[:3]
    table = tensors.get("rel_pos_bias.relative_position_bias_table")
    own_table = tensors.get("blocks.0.attn.relative_position_bias_table")
    pos_bias: PosBias = "shared" if table is not None else "per_block" if own_table is not None else "none"
    table = own_table if table is None else table
    gamma = tensors.get("blocks.0.gamma_1")
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name)))
    side = _grid_side(tensors.get("pos_embed"), table, config, patch_size, origin)
    eps = config.get("layer_norm_eps", 1e-6)
    require(isinstance(eps, float) and eps > 0, f"{origin}: layer_norm_eps ({eps}) must be a number above 0")
    return ViTConfig(
        img_size=side * patch_size,
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads or _num_heads(embed_dim, table, config, origin),
        mlp_ratio=len(tensors["blocks.0.mlp.fc1.weight"]) / embed_dim,
        qkv_bias="blocks.0.attn.q_bias" in tensors,
        init_values=0.0 if gamma is None else config.get("layer_scale_init_value") or _LAYER_SCALE,
        drop_path=0.0,
        use_abs_pos_emb="pos_embed" in tensors,
        pos_bias=pos_bias,
        use_mask_token="mask_token" in tensors,
        final_norm=named.family != "BEiT" and "norm.weight" in tensors,
        layer_norm_eps=eps,
    )


def _require_kind(config: Mapping[str, Any], source: Path) -> None:
    kind, activation = config.get("model_type"), config.get("hidden_act", "gelu")
    if kind is not None and kind not in _KINDS:
        raise InputError(f"{source} holds a model of type {kind!r}; known are {', '.join(_KINDS)}")
    if activation != "gelu":
        raise InputError(f"{source} has hidden_act {activation!r}, and a beit encoder computes the exact gelu")


def _grid_side(
    pos_embed: Tensor | None, table: Tensor | None, config: Mapping[str, Any], patch_size: int, origin: str
) -> int:
    """Return patches per side, from whatever depends on them."""
    if pos_embed is not None:
        require(pos_embed.ndim == 3, f"{origin}: pos_embed has {pos_embed.ndim} dimensions, must have 3")
        patches = pos_embed.shape[1] - 1
        side = math.isqrt(max(patches, 0))
        require(
            side * side == patches and side > 0,
            f"{origin}: pos_embed has {pos_embed.shape[1]} positions, must be CLS and a square of patches",
        )
        return side
    if table is not None:
        offsets = len(table) - 3
        width = math.isqrt(max(offsets, 0))
        require(
            width * width == offsets and width % 2 == 1,
            f"{origin}: the relative position table has {len(table)} rows, which no square grid of patches gives",
        )
        return (width + 1) // 2
    img_size = config.get("image_size", 224)
    require(
        isinstance(img_size, int) and img_size >= patch_size and img_size % patch_size == 0,
        f"{origin}: image_size ({img_size}) must be a multiple of the patch size ({patch_size})",
    )
    return int(img_size // patch_size)


def _num_heads(embed_dim: int, table: Tensor | None, config: Mapping[str, Any], origin: str) -> int:
    if table is not None:
        return int(table.shape[1])
    if isinstance(listed := config.get("num_attention_heads"), int):
        return listed
    if embed_dim in _SIXTEEN_HEADS:
        return 16
    require(
        embed_dim % _HEAD_DIM == 0,
        f"{origin}: the number of attention heads is not in the file, and {embed_dim} channels are no multiple of "
        f"{_HEAD_DIM}; give --num-heads",
    )
    return embed_dim // _HEAD_DIM


def _check(tensors: Mapping[str, Tensor], architecture: ViTConfig, source: Path) -> None:
    """Compare every tensor with the architecture; nothing may be missing, of another shape, or not finite."""
    dim = architecture.embed_dim
    with torch.device("meta"):
        expected = dict(VisionTransformer(architecture).state_dict())
        for name in ("norm", "fc_norm"):
            if f"{name}.weight" in tensors:
                expected |= {f"{name}.weight": torch.empty(dim), f"{name}.bias": torch.empty(dim)}
        for name in ("lm_head", "head"):
            if f"{name}.weight" in tensors:
                rows = len(tensors[f"{name}.weight"])
                expected |= {f"{name}.weight": torch.empty(rows, dim), f"{name}.bias": torch.empty(rows)}
    check_tensors(tensors, expected, source)


def _head(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[tuple[str, ...] | None, str | None]:
    """Return class names and pooling of a classification head; None and None where there is none."""
    if "head.weight" not in tensors:
        return None, None
    count = len(tensors["head.weight"])
    listed = config.get("id2label")
    names = [str(number) for number in range(count)]
    if isinstance(listed, Mapping) and len(listed) == count and all(name in listed for name in names):
        names = [str(listed[name]) for name in names]
    # ImageNet has two cranes and two maillots; classes are told apart by name.
    unique = tuple(f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names))
    return unique, "mean" if "fc_norm.weight" in tensors else "cls"


def _normalization(named: NamedTensors, foreign: ForeignWeights, given: str | None) -> tuple[Normalization, str]:
    """Return how pixels are normalised, and where that is from."""
    if given is not None:
        return NORMALIZATIONS[given], f"{given}, as given"
    mean, std = foreign.preprocessor.get("image_mean"), foreign.preprocessor.get("image_std")
    cfg = foreign.config.get("pretrained_cfg")
    if mean is None and isinstance(cfg, Mapping):
        mean, std = cfg.get("mean"), cfg.get("std")
    if mean is not None and std is not None and _is_triple(mean) and _is_triple(std):
        return Normalization(tuple(map(float, mean)), tuple(map(float, std))), "from the folder"
    usual = "inception" if named.family == "BEiT" and "pos_embed" not in named.tensors else "imagenet"
    return NORMALIZATIONS[usual], f"{usual}, the usual one of such weights; --normalization changes it"


def _is_triple(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values)


def _summary(config: EncoderConfig, named: NamedTensors, foreign: ForeignWeights, normalization: str) -> str:
    shape = config.architecture
    size = sum(tensor.numel() for tensor in named.tensors.values()) / 1e6
    head = "no head"
    if config.class_names is not None:
        head = f"a head of {len(config.class_names)} classes on {config.pooling}"
    elif config.vocab_size is not None:
        head = f"a head of {config.vocab_size} visual words"
    positions = "absolute positions" if shape.use_abs_pos_emb else "no absolute positions"
    lines = [
        f"{named.family}: {shape.depth} blocks of {shape.embed_dim} channels, {shape.num_heads} heads, "
        f"{shape.img_size} px in patches of {shape.patch_size}, {positions}, relative positions {shape.pos_bias}, "
        f"{size:.1f} M parameters, {head}",
        f"normalisation: {normalization}",
        *(f"sha256 {digest}  {name}" for name, digest in foreign.sha256.items()),
    ]
    if named.left_out:
        lines.append(f"left out: {len(named.left_out)} tensors, such as {named.left_out[0]}")
    return "\n".join(lines)
