"""Weights of one architecture for another resolution or position mode; files are `common/encoder.py`'s."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.vit.agreement import require_grey_or_same
from beit.common.vit.channels import grey_projection
from beit.common.vit.config import Normalization, PosResize, ViTConfig
from beit.common.vit.position_bias import TABLE_KEY, num_table_rows, resize_table

SHARED_TABLE = f"rel_pos_bias.{TABLE_KEY}"
_SHAPE = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "use_abs_pos_emb")
"""What the two must agree in."""
_PROJECTION = "patch_embed.proj"
_DINO_OFFSET = 0.1
"""Added to the grid that DINO's code asks for; DINOv2 calls it interpolate_offset."""


def adapt_state(
    state: Mapping[str, Tensor], source: ViTConfig, target: ViTConfig, *, pixels: Normalization | None = None
) -> dict[str, Tensor]:
    """Rewrite a state dict for another resolution and position mode of the same architecture, or for grey images.

    A shared position table is copied to every block, which leaves the function computed unchanged; where the source has
    none, tables start at zero, likewise. Position tables and embeddings are resized to the target's patch grid. Kernels
    of an RGB encoder are summed for a grey target, which leaves what is computed of grey images unchanged; their pixels
    are then normalised by `for_channels(pixels, 1)`.

    Args:
        state: Under official names.
        source: What it is of.
        target: What it is to be of.
        pixels: Normalisation of the source, which grey targets of RGB sources need.

    Returns:
        The new state dict, under official names; unchanged tensors are the same objects.
    """
    check_adaptable(source, target)
    adapted = {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
    if source.in_chans != target.in_chans:
        if pixels is None:
            raise ValueError("a grey encoder is made of an RGB one by way of its normalisation; give pixels")
        names = [f"{_PROJECTION}.{part}" for part in ("weight", "bias")]
        weight, bias, _ = grey_projection(adapted[names[0]], adapted[names[1]], pixels)
        adapted |= dict(zip(names, (weight, bias), strict=True))
    block_tables = [f"blocks.{i}.attn.{TABLE_KEY}" for i in range(target.depth)]
    if source.pos_bias == "shared" and target.pos_bias == "per_block":
        table = adapted.pop(SHARED_TABLE)
        adapted |= {name: table.clone() for name in block_tables}
    elif source.pos_bias == "none" and target.pos_bias != "none":
        names = block_tables if target.pos_bias == "per_block" else [SHARED_TABLE]
        rows = num_table_rows(source.grid_size)
        adapted |= {name: torch.zeros(rows, target.num_heads) for name in names}
    for name, tensor in adapted.items():
        if name.endswith(TABLE_KEY):
            adapted[name] = resize_table(tensor, source.grid_size, target.grid_size)
        elif name == "pos_embed":
            adapted[name] = resize_pos_embed(tensor, source.grid_size, target.grid_size, rule=source.pos_resize)
    return adapted


def resize_pos_embed(
    pos_embed: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int], *, rule: PosResize = "bicubic"
) -> Tensor:
    """Resize an absolute position embedding (1, 1 + N, D) to another grid: CLS kept, patches bicubic.

    The rules differ in where the cubic reads (DINO's scale is that of a grid larger by 0.1, so that rounding cannot
    lose a row) and in its coefficients (timm's has antialiasing on, also where the grid grows).

    Source: the released BEiT fine-tuning code; `interpolate_pos_encoding` of DINO; `resample_abs_pos_embed` of timm.
        Differs: rectangles work.
    """
    if source_grid == target_grid:
        return pos_embed
    patches = pos_embed[:, 1:].reshape(1, *source_grid, -1).permute(0, 3, 1, 2).float()  # (1, D, h, w)
    if rule == "dino":
        scale = tuple((target + _DINO_OFFSET) / source for source, target in zip(source_grid, target_grid, strict=True))
        patches = nn.functional.interpolate(patches, scale_factor=scale, mode="bicubic")
    else:
        patches = nn.functional.interpolate(patches, size=target_grid, mode="bicubic", antialias=rule == "timm")
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)


def check_adaptable(source: ViTConfig, target: ViTConfig) -> None:
    """Refuse a target whose weights cannot be made of the source's."""
    for name in _SHAPE:
        stored, wanted = getattr(source, name), getattr(target, name)
        require(stored == wanted, f"the encoder has {name} {stored}, the model wants {wanted}; they must be equal")
    require_grey_or_same(source.in_chans, target.in_chans, "the encoder")
    require(
        source.pos_bias in ("none", target.pos_bias) or (source.pos_bias, target.pos_bias) == ("shared", "per_block"),
        f"the encoder has pos_bias {source.pos_bias!r}, which cannot become {target.pos_bias!r}; "
        f"set model.pos_bias to {source.pos_bias!r}",
    )
