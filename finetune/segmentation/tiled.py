"""Segmenting an image of which only parts are in memory: tile by tile, put together again row by row.

    for strip in segment_tiles(model, pixels, settings, Tiling(1024, 128)):
        strip.ids  # (rows, W) of the rows from strip.top on

Each tile is looked at as an image of its own, as `inference.py` does: through windows or as a whole, in several scales
and directions. The probabilities of neighbours are blended over their overlap
(`beit.common.images.large.tiles.shares`), so that no border shows. In memory are one tile, its probabilities, and those
of the overlap with the tiles below: 4 C bytes for each of its pixels.

C = classes; H, W = size of the image in px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.common.errors import BadSample
from beit.common.images.large.tiles import Box, Share, Tiling, shares
from beit.common.images.large.windows import Pixels
from beit.finetune.masks.classes import IGNORED
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.inference import likeliest, segment
from beit.finetune.segmentation.model import Segmenter

_TOLD = 0.5
"""Share of the probabilities from which on a pixel has a class, where a tile beside it cannot be read."""


@dataclass(frozen=True, slots=True)
class IdStrip:
    """Some rows of a mask, from side to side."""

    top: int
    """First row."""
    ids: NDArray[np.uint8]
    """Likeliest class of every pixel (rows, W), `IGNORED` where a tile cannot be read."""
    unreadable: tuple[str, ...]
    """What is wrong with each tile that cannot be read, of those that begin here."""


def segment_tiles(model: Segmenter, pixels: Pixels, settings: InferenceConfig, tiling: Tiling) -> Iterator[IdStrip]:
    """Yield the mask of an image from the top to the bottom.

    Args:
        model: In eval mode, with a normalisation, as `load_segmenter` gives it.
        pixels: The image.
        settings: How each tile is segmented.
        tiling: How the image is cut.

    Raises:
        InputError: a tile is too large to be looked at as a whole.
    """
    width, height = pixels.size
    rows, columns = shares(height, tiling), shares(width, tiling)
    above: Tensor | None = None
    for number, row in enumerate(rows):
        end = rows[number + 1].begin if number + 1 < len(rows) else height
        ids = np.empty((end - row.begin, width), np.uint8)
        below: Tensor | None = None
        unreadable = []
        for left, found in _blended_row(model, pixels, settings, tiling, row, columns):
            if isinstance(found, BadSample):
                unreadable.append(str(found))
                continue
            right = left + found.shape[2]
            if above is not None:
                found[:, : above.shape[1]] += above[:, :, left:right]
            done = found[:, : end - row.begin]
            ids[:, left:right] = _ids(done)
            if end < row.end:
                if below is None:
                    below = found.new_empty(found.shape[0], row.end - end, width)
                below[:, :, left:right] = found[:, end - row.begin :]
        yield IdStrip(row.begin, ids, tuple(unreadable))
        above = below


def _blended_row(
    model: Segmenter,
    pixels: Pixels,
    settings: InferenceConfig,
    tiling: Tiling,
    row: Share,
    columns: list[Share],
) -> Iterator[tuple[int, Tensor | BadSample]]:
    """Yield left edge and weighted probabilities (C, rows, columns) that are complete from side to side."""
    width, height = pixels.size
    bottom = min(row.start + tiling.tile, height)
    before: Tensor | None = None
    for number, column in enumerate(columns):
        end = columns[number + 1].begin if number + 1 < len(columns) else width
        box = Box(column.start, row.start, min(column.start + tiling.tile, width), bottom)
        try:
            told = _probabilities(model, pixels, settings, box)
            told = told[:, row.begin - row.start : row.end - row.start, column.begin - box.left : column.end - box.left]
            told = told * _outer(row, column, told)
        except BadSample as error:
            yield column.begin, error
            told = torch.zeros(
                model.num_classes, row.end - row.begin, column.end - column.begin, device=model.cls_token.device
            )
        if before is not None:
            told[:, :, : before.shape[2]] += before
        yield column.begin, told[:, :, : end - column.begin]
        before = told[:, :, end - column.begin :] if end < column.end else None


def _outer(row: Share, column: Share, like: Tensor) -> Tensor:
    down, across = (torch.from_numpy(share.weights).to(like.device) for share in (row, column))
    return down[:, None] * across[None, :]


def _probabilities(model: Segmenter, pixels: Pixels, settings: InferenceConfig, box: Box) -> Tensor:
    """Return the probabilities (C, h, w) float32 of a part of the image, looked at as an image of its own."""
    image = np.atleast_3d(np.asarray(pixels.read(box))).transpose(2, 0, 1)
    return torch.cat([strip.probabilities for strip in segment(model, image, settings)], 1)


def _ids(probabilities: Tensor) -> NDArray[np.uint8]:
    ids = likeliest(probabilities).numpy()
    untold = (probabilities.sum(0) < _TOLD).cpu().numpy()
    ids[untold] = IGNORED
    return ids
