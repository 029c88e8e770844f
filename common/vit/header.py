"""Does the header of a weights file fit the description beside it? Looked at before anything is built by its numbers.

Torch-free, as the description is. Whether the tensors themselves are right is `common/encoder.py`'s.
"""

from __future__ import annotations

import re
from pathlib import Path

from beit.common.errors import InputError, require
from beit.common.storage.tensor_check import Shape, read_shapes
from beit.common.vit.config import ViTConfig

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_TABLE = "relative_position_bias_table"
_COPY = "they do not belong together, copy both again"


def check_header(weights: Path, config: ViTConfig) -> None:
    """Compare a description with the shapes in a weights file, without reading a tensor.

    Tensors that the file lacks are not missed here; whoever loads it knows which it needs.
    """
    shapes = read_shapes(weights)
    blocks = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    require(
        len(blocks) == config.depth,
        f"{weights.parent}: the description says {config.depth} blocks, the weights have {len(blocks)}; {_COPY}",
    )
    for name, wanted in _expected(config).items():
        if name in shapes and shapes[name] != wanted:
            raise InputError(
                f"{weights.parent}: {name} has shape {shapes[name]}, the model needs {wanted}; it is another model"
            )


def _expected(config: ViTConfig) -> dict[str, Shape]:
    """Return the shapes that, between them, every number of the description has a part in."""
    dim, side, grid = config.embed_dim, config.patch_size, config.grid_size[0]
    table = ((2 * grid - 1) ** 2 + 3, config.num_heads)
    return {
        "cls_token": (1, 1, dim),
        "patch_embed.proj.weight": (dim, config.in_chans, side, side),
        "pos_embed": (1, 1 + config.num_patches, dim),
        "blocks.0.mlp.fc1.weight": (config.mlp_dim, dim),
        f"rel_pos_bias.{_TABLE}": table,
        f"blocks.0.attn.{_TABLE}": table,
    }
