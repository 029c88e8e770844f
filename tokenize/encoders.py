"""How much arithmetic it is to turn a view into words, by the name of the tokenizer; torch-free, nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beit.common import tokenizers
from beit.common.config import config_from_dict
from beit.common.errors import InputError
from beit.common.storage.documents import read_json
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.tokenizers.vqkd_config import VQKDConfig
from beit.common.vit.flops import forward_flops

VOCABULARIES = {"mini": 1024, "dall-e": 8192}
"""Words of the tokenizers that have names."""
_CONFIG = "config.json"
_STEM_STRIDE = 4


def read_settings(name: str) -> dict[str, Any] | None:
    """Return what the folder of a tokenizer says of its network; None where there is none, or it says nothing."""
    if name == "dall-e":
        return {"architecture": "dall-e"}
    folder = Path(tokenizers.__path__[0]) / "mini" if name == "mini" else Path(name)
    if not (folder / _CONFIG).is_file():
        return None
    try:
        found = read_json(folder / _CONFIG)
    except InputError:
        return None
    return found if isinstance(found, dict) else None


def vocabulary(name: str) -> int | None:
    """Return how many words a tokenizer has; None where that is not known without loading it."""
    settings = read_settings(name) or {}
    return VOCABULARIES.get(name) or settings.get("model", {}).get("vocab_size")


def encoding_flops(name: str, grid_size: int) -> float | None:
    """Return multiplications and additions of one view of `grid_size` words a side; None for code and unknown names."""
    settings = read_settings(name)
    if settings is None:
        return None
    kind, model = settings.get("architecture"), settings.get("model", {})
    positions = grid_size**2
    if kind in ("dall-e", "dalle"):
        return _dalle_flops(grid_size)
    if kind == "dvae":
        return _dvae_flops(config_from_dict(DiscreteVAEConfig, model, origin=name), positions)
    if kind == "vqkd":
        shape = config_from_dict(VQKDConfig, model, origin=name)
        width = shape.embed_dim
        rest = 2 * positions * (width * width + width * shape.code_dim + shape.code_dim * shape.vocab_size)
        return forward_flops(shape.vit) + rest
    if kind == "kmeans":
        centres = config_from_dict(KMeansConfig, model, origin=name)
        length = 3 * centres.patch_size**2 if centres.vit is None else centres.vit.embed_dim
        before = 0 if centres.vit is None else forward_flops(centres.vit)
        return before + 2 * positions * length * centres.vocab_size
    return None


def _dvae_flops(shape: DiscreteVAEConfig, positions: int) -> float:
    width, half = shape.width, shape.width // 2
    shuffle = shape.downsampling // _STEM_STRIDE
    fine = positions * shuffle**2
    total = fine * shape.channels * _STEM_STRIDE**2 * half
    total += positions * (4 if shuffle == 4 else 1) * half * width * (9 if shuffle > 1 else 1)
    total += positions * 9 * width * width * (shuffle == 4)
    total += positions * shape.num_blocks * (9 * width * half + half * width)
    return 2.0 * (total + positions * width * shape.code_dim + positions * shape.code_dim * shape.vocab_size)


def _dalle_flops(grid_size: int) -> float:
    """Count four groups of two blocks, each group twice as wide and on half the grid (`common/tokenizers/dalle.py`)."""
    side, width = 8 * grid_size, 256
    total, channels = side**2 * 3 * 49 * width, width
    for _ in range(4):
        for _ in range(2):
            hidden = width // 4
            block = 9 * (channels * hidden + 2 * hidden * hidden) + hidden * width
            total += side**2 * (block + (channels * width if channels != width else 0))
            channels = width
        side, width = side // 2, 2 * width
    return 2.0 * (total + grid_size**2 * channels * 8192)
