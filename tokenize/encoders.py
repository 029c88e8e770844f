"""What it is to turn a view into words, by the name of the tokenizer: arithmetic and memory; nothing is loaded.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common import tokenizers
from beit.common.config import config_from_dict
from beit.common.errors import InputError
from beit.common.forecast.model import TrainedModel
from beit.common.storage.documents import read_json
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.tokenizers.vqkd_config import VQKDConfig
from beit.common.vit.flops import forward_flops

_KEPT_WORDS, _KEPT_WIDTHS = 6, 40
"""Numbers per position that a dVAE's training keeps: for each word, and for each channel; counted by torch."""
VOCABULARIES = {"mini": 1024, "dall-e": 8192}
"""Words of the tokenizers that have names."""
_CONFIG = "config.json"
_DALLE_MAPS = 8
"""Maps as large as its first one that are there at once; from 800 MB measured with 4 views of 112 px."""
_STEM_STRIDE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCost:
    """What it is to ask a teacher."""

    dim: int
    """Features of a patch."""
    img_size: int
    """Side of the images it takes, in pixels."""
    parameters: int = 0
    """Numbers that it holds; 0 for code, which does not say."""
    flops: float = 0.0
    """Multiplications and additions of an image; 0 for code."""


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
    kind, model = _network(name)
    positions = grid_size**2
    if kind == "dall-e":
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


def encoding_bytes(name: str, grid_size: int) -> float | None:
    """Return the memory of one view in float32 at the worst moment; None for code and unknown names."""
    kind, model = _network(name)
    positions = grid_size**2
    if kind == "dall-e":  # its first group, whose blocks have three maps at once, and what they are made of
        return _DALLE_MAPS * 4.0 * 256 * (8 * grid_size) ** 2
    if kind == "dvae":
        shape = config_from_dict(DiscreteVAEConfig, model, origin=name)
        fine = positions * (shape.downsampling // _STEM_STRIDE) ** 2
        return 4.0 * (2 * positions * shape.vocab_size + 3 * fine * shape.width)
    if kind == "vqkd":
        vqkd = config_from_dict(VQKDConfig, model, origin=name)
        return 4.0 * positions * (2 * vqkd.vocab_size + 8 * vqkd.embed_dim)
    if kind == "kmeans":
        centres = config_from_dict(KMeansConfig, model, origin=name)
        width = 3 * centres.patch_size**2 if centres.vit is None else 8 * centres.vit.embed_dim
        return 4.0 * positions * (2 * centres.vocab_size + width)
    return None


def _network(name: str) -> tuple[str | None, dict[str, Any]]:
    settings = read_settings(name) or {}
    return settings.get("architecture"), settings.get("model", {})


def dvae_model(shape: DiscreteVAEConfig, *, crop_size: int, crops_per_image: int) -> TrainedModel:
    """Return the numbers of a dVAE under training, whose words are what takes memory."""
    width, half, shuffle = shape.width, shape.width // 2, shape.downsampling // _STEM_STRIDE
    positions = crops_per_image * (crop_size // shape.downsampling) ** 2
    outputs = shape.head_channels * _STEM_STRIDE**2
    block = 9 * width * half + half + half * width + width
    count = (shape.channels * _STEM_STRIDE**2 + 1) * half
    count += half * width * (9 if shuffle > 1 else 1) + width + (9 * width * width + width) * (shuffle == 4)
    count += 2 * shape.num_blocks * block + (width + 1) * shape.code_dim + shape.vocab_size * shape.code_dim + 1
    count += 9 * shape.code_dim * width + width + (width + 1) * half * shuffle**2 + (9 * half + 1) * outputs
    decoder = positions * (9 * shape.code_dim * width + shape.vocab_size * shape.code_dim + width * half * shuffle**2)
    decoder += positions * (shape.num_blocks * (9 * width * half + half * width) + 9 * shuffle**2 * half * outputs)
    return TrainedModel(
        parameters=count,
        trained=count,
        flops_per_image=3 * (_dvae_flops(shape, positions) + 2 * decoder),
        kept_bytes=4.0 * positions * (_KEPT_WORDS * shape.vocab_size + _KEPT_WIDTHS * width),
        passing_bytes=4.0 * positions * 2 * shape.vocab_size,
        row_bytes=3.0 * crops_per_image * crop_size**2,
    )


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
