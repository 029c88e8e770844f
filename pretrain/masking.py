"""Which patches of an image are masked.

Here: the released blockwise algorithm, the paper's Algorithm 1, uniform masking, none at all, and how their counts
scale with the patch grid. Not here: what the model does with a mask (`common/vit/vit.py`, `pretrain/model.py`) and
which key a sample's mask is drawn under (`pretrain/data.py`).

A mask is held as one integer while it is drawn, bit y * width + x for patch (y, x): counting what a block adds is then
one operation, and a mask takes less than 0.1 ms.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from beit.common.config import at_least, checked, within
from beit.common.errors import InputError
from beit.common.rng import CounterRng

MaskMode = Literal["blockwise", "algorithm1", "random", "none"]

_PAPER_MASKED, _PAPER_MIN_BLOCK, _PAPER_PATCHES = 75, 16, 196
_ALGORITHM1_RATIO = 0.4
_ALGORITHM1_ASPECT = 0.3


@checked("mask")
class MaskConfig:
    """How masks are drawn; the defaults are the released code's, scaled to the grid."""

    mode: MaskMode = "blockwise"
    """blockwise: the released code; algorithm1: the paper's listing; random: uniformly random patches; none: nothing is
    masked, for the objective all_tokens only."""
    num_masked: Annotated[int, at_least(0, "0 scales it")] = 0
    """Most patches masked per image; 0 means 75/196 of the grid. Not used by algorithm1."""
    min_block: Annotated[int, at_least(0, "0 scales it")] = 0
    """Least target area of a block, in patches; 0 means 16/196 of the grid."""
    exact: bool = False
    """Whether a blockwise mask that falls short is grown to num_masked; the released code leaves it short."""
    min_aspect: Annotated[float, within("(0, 1]")] = 0.3
    """Least height / width of a block; the largest is its inverse."""
    max_attempts: Annotated[int, at_least(1)] = 10
    """Tries to place a block before a blockwise mask is left as it is."""


def target_num_masked(config: MaskConfig, grid_size: tuple[int, int]) -> int:
    """Return the most patches a blockwise or random mask covers: 75 at 14x14, never 0."""
    return _patches("num_masked", config.num_masked, _PAPER_MASKED, grid_size, way_out="lower it")


def target_min_block(config: MaskConfig, grid_size: tuple[int, int]) -> int:
    """Return the least target area of a block in patches: 16 at 14x14, never 0."""
    return _patches("min_block", config.min_block, _PAPER_MIN_BLOCK, grid_size, way_out="lower it or raise img_size")


def _patches(name: str, configured: int, of_paper: int, grid_size: tuple[int, int], *, way_out: str) -> int:
    num_patches = grid_size[0] * grid_size[1]
    if configured > num_patches:
        raise InputError(f"mask.{name} ({configured}) must not exceed num_patches ({num_patches}); {way_out}")
    return configured or max(1, round(of_paper * num_patches / _PAPER_PATCHES))


def max_num_masked(config: MaskConfig, grid_size: tuple[int, int]) -> int:
    """Return a bound no mask exceeds: the static number of positions a training step gathers per image.

    It is `target_num_masked`, except for algorithm1, whose last block may overshoot its stop rule.
    """
    if config.mode == "none":
        return 0
    if config.mode != "algorithm1":
        return target_num_masked(config, grid_size)
    num_patches = grid_size[0] * grid_size[1]
    stop = _ALGORITHM1_RATIO * num_patches
    # A block starts at or below the stop count and its target area is at most the larger of the rest and the minimum.
    area = max(target_min_block(config, grid_size), 1)
    overshoot = max(area + _rounding_slack(area), _rounding_slack(stop))
    return min(num_patches, math.floor(stop + overshoot))


def draw_mask(
    rng: CounterRng,
    grid_size: tuple[int, int],
    config: MaskConfig = MaskConfig(),  # noqa: B008
) -> NDArray[np.bool_]:
    """Draw one mask over the patch grid.

    Args:
        rng: Owns all randomness; same key, same mask.
        grid_size: Patches per side (height, width).
        config: Mode and counts.

    Returns:
        Bool array (height, width), True = masked; at least one patch, at most `max_num_masked`. Mode none: all False.

    Source: BEiT §2.3, Alg. 1, and the released code. Differs: random numbers; where not a single block fits
        (grids of a few patches), neighbouring patches are masked instead, because an image without masked patches
        teaches nothing.
    """
    height, width = grid_size
    if config.mode == "none":
        return np.zeros(grid_size, dtype=np.bool_)
    if config.mode == "random":
        bits = _random(rng, height * width, target_num_masked(config, grid_size))
    elif config.mode == "algorithm1":
        bits = _algorithm1(rng, grid_size, target_min_block(config, grid_size))
    else:
        num_masked = target_num_masked(config, grid_size)
        bits = _blockwise(rng, grid_size, config)
        if config.exact or not bits:
            bits = _grow(rng, bits, grid_size, num_masked)
    size = height * width
    packed = np.frombuffer(bits.to_bytes((size + 7) // 8, "little"), dtype=np.uint8)
    return np.unpackbits(packed, count=size, bitorder="little").astype(np.bool_).reshape(height, width)


def _blockwise(rng: CounterRng, grid_size: tuple[int, int], config: MaskConfig) -> int:
    num_masked, min_block = target_num_masked(config, grid_size), target_min_block(config, grid_size)
    bits = 0
    while room := num_masked - bits.bit_count():
        block = _find_block(rng, grid_size, config, bits=bits, min_block=min_block, room=room)
        if not block:
            break
        bits |= block
    return bits


def _find_block(
    rng: CounterRng, grid_size: tuple[int, int], config: MaskConfig, *, bits: int, min_block: int, room: int
) -> int:
    # The first of a few random blocks that adds at least one and at most `room` patches; 0 if none does.
    height, width = grid_size
    log_aspect = -math.log(config.min_aspect)
    for _ in range(config.max_attempts):
        area = rng.uniform(min_block, room)  # once room < min_block, the interval is simply reversed
        aspect = math.exp(rng.uniform(-log_aspect, log_aspect))
        block_height = round(math.sqrt(area * aspect))
        block_width = round(math.sqrt(area / aspect))
        if block_height >= height or block_width >= width:
            continue  # a block never spans the grid
        top = rng.integers(0, height - block_height)
        left = rng.integers(0, width - block_width)
        block = _block_bits(width, block_height, block_width) << (top * width + left)
        if 0 < (block & ~bits).bit_count() <= room:
            return block
    return 0


def _algorithm1(rng: CounterRng, grid_size: tuple[int, int], min_block: int) -> int:
    # Differs from the listing: its real-valued sides are rounded, and clipped to the grid.
    height, width = grid_size
    stop = _ALGORITHM1_RATIO * height * width
    bits = 0
    while bits.bit_count() <= stop:
        area = rng.uniform(min_block, stop - bits.bit_count())
        aspect = rng.uniform(_ALGORITHM1_ASPECT, 1 / _ALGORITHM1_ASPECT)
        block_height = min(height, max(1, round(math.sqrt(area * aspect))))
        block_width = min(width, max(1, round(math.sqrt(area / aspect))))
        top = rng.integers(0, height - block_height)
        left = rng.integers(0, width - block_width)
        bits |= _block_bits(width, block_height, block_width) << (top * width + left)
    return bits


def _random(rng: CounterRng, num_patches: int, num_masked: int) -> int:
    # The first num_masked steps of a Fisher-Yates shuffle.
    patches = list(range(num_patches))
    bits = 0
    for i in range(num_masked):
        j = rng.integers(i, num_patches - 1)
        patches[i], patches[j] = patches[j], patches[i]
        bits |= 1 << patches[i]
    return bits


def _grow(rng: CounterRng, bits: int, grid_size: tuple[int, int], num_masked: int) -> int:
    # Add random neighbours of what is masked, one by one, so that the mask stays made of blobs.
    height, width = grid_size
    size = height * width
    whole = (1 << size) - 1
    first_column = _block_bits(width, height, 1)
    last_column = first_column << (width - 1)
    while bits.bit_count() < num_masked:
        beside = (bits & ~last_column) << 1 | (bits & ~first_column) >> 1 | bits << width | bits >> width
        free = beside & whole & ~bits
        cells = [cell for cell in range(size) if free >> cell & 1] or range(size)
        bits |= 1 << cells[rng.integers(0, len(cells) - 1)]
    return bits


def _rounding_slack(area: float) -> float:
    # Rounding both sides of a block up by half a patch adds at most this much area.
    aspect = math.sqrt(_ALGORITHM1_ASPECT)
    return 0.5 * math.sqrt(area) * (aspect + 1 / aspect) + 0.25


@lru_cache(maxsize=4096)
def _block_bits(grid_width: int, height: int, width: int) -> int:
    row = (1 << width) - 1
    return sum(row << (grid_width * y) for y in range(height))
