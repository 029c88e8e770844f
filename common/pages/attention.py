"""Attention as pictures: maps of chosen points laid over their images.

Not here: the network whose attention it is (`beit.common.vit.vit`), and how far its heads look
(`finetune/attention.py`).

B images, H heads, S = 1 + N positions, CLS first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.pages.pictures import enlarged, heat_colours, picture_table, sheet

_MARK, _MARK_RIM = (0, 255, 255), (0, 0, 0)
_HEAT_SHARE = 0.7
"""Of a map's colours; the rest is the image in grey."""
_CELL_PX = 136
_SHARES = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75))
"""Of height and width: where the points lie that are looked from unless others are named."""


def chosen_points(grid_size: tuple[int, int]) -> list[int]:
    """Return the positions of CLS and of three patches, one in the middle."""
    places = [(int(down * grid_size[0]), int(right * grid_size[1])) for down, right in _SHARES]
    return [0, *dict.fromkeys(1 + row * grid_size[1] + column for row, column in places)]


def place_of(point: int, grid_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return row and column of a position; None for CLS."""
    return divmod(point - 1, grid_size[1]) if point else None


def points_sheet(
    names: Sequence[str],
    pixels: NDArray[np.uint8],
    weights: NDArray[np.float32],
    points: Sequence[int],
    grid_size: tuple[int, int],
    *,
    block: int,
    facts: str,
) -> Image.Image:
    """Draw where a block looks from some points, the mean of its heads, image by image.

    Args:
        names: Of the images.
        pixels: (B, height, width, 3).
        weights: (B, H, S, S) attention probabilities of the block.
        points: Positions in the sequence.
        grid_size: Patches per side.
        block: Which it is, from 0.
        facts: The numbers it stands on.
    """
    places = [place_of(point, grid_size) for point in points]
    rows = []
    for image, maps in zip(pixels, weights.mean(1), strict=True):
        from_points = [maps[point, 1:].reshape(grid_size) for point in points]
        overlaid_maps = [overlaid(image, *one, _CELL_PX) for one in zip(from_points, places, strict=True)]
        rows.append([np.asarray(enlarged(image, _CELL_PX)), *overlaid_maps])
    titles = ["image", *("from CLS" if place is None else f"patch {place[0]},{place[1]}" for place in places)]
    captions = [[name.rpartition("/")[2], *[""] * len(points)] for name in names]
    return sheet(
        [picture_table(rows, titles=titles, captions=captions, cell_px=_CELL_PX)],
        heading=f"Attention of block {block}",
        facts=facts,
        legend="Where the block looks from CLS and from the framed patches, named by row and column, the mean of its "
        "heads. Bright is much attention, relative to the brightest place of the same map; attention to CLS is left "
        "out.",
    )


def overlaid(
    pixels: NDArray[np.uint8], values: NDArray[np.float32], place: tuple[int, int] | None, side_px: int
) -> NDArray[np.uint8]:
    """Lay a map (rows, columns) over its image, and frame the patch that looks, if one does."""
    grey = np.asarray(enlarged(pixels, side_px).convert("L"))[..., None].astype(np.float64)
    heat = np.asarray(enlarged(heat_colours(values / max(float(values.max()), 1e-12)), side_px)).astype(np.float64)
    mixed = np.round(_HEAT_SHARE * heat + (1 - _HEAT_SHARE) * grey).astype(np.uint8)
    return framed(Image.fromarray(mixed), place, values.shape)


def framed(image: Image.Image, place: tuple[int, int] | None, grid_size: tuple[int, ...]) -> NDArray[np.uint8]:
    """Frame the patch at (row, column); nothing for CLS."""
    if place is not None:
        draw = ImageDraw.Draw(image)
        height, width = image.height / grid_size[0], image.width / grid_size[1]
        top, left = round(place[0] * height), round(place[1] * width)
        box = (left, top, round(left + width) - 1, round(top + height) - 1)
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=_MARK_RIM)
        draw.rectangle(box, outline=_MARK, width=2)
    return np.asarray(image)
