"""Pixels of COCO's annotations: polygons, and run lengths as lists of numbers or as text; then one mask of all.

Here: a segmentation to runs of pixels, and many to class ids, in plain numpy. Which pixels a polygon covers is decided
as `pycocotools` does it, to the pixel, because published masks and figures were made so. Not here: reading the JSON.

A run is a stretch of pixels counted down the columns, as COCO counts them: pixel (row, column) of an image of height H
is number column x H + row. R = runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample

_SCALE = 5
"""Polygons are drawn on a grid this much finer than the pixels."""
_MIDDLE = _SCALE // 2  # the fine column that decides about a pixel's column
_MAX_POINTS = 20_000_000
"""Of the outline of one polygon on the fine grid; a third of a gigabyte. A damaged coordinate would take all memory."""
_MIN_POLYGON = 6  # numbers; a polygon has at least three corners

Int64Array = NDArray[np.int64]


class Region(NamedTuple):
    """Pixels of one annotation."""

    class_id: int
    is_crowd: bool
    """It surrounds many objects at once, roughly."""
    starts: Int64Array
    """First pixel of every run, int64 (R,), ascending."""
    ends: Int64Array
    """Pixel behind every run, int64 (R,)."""

    @property
    def area(self) -> int:
        """Pixels covered."""
        return int((self.ends - self.starts).sum())


def has_shape(segmentation: object) -> bool:
    """Tell whether an annotation's segmentation describes pixels, by its form: a box alone does not."""
    if isinstance(segmentation, dict):
        return bool(segmentation.get("counts"))
    return isinstance(segmentation, list) and any(len(polygon) >= _MIN_POLYGON for polygon in _polygons(segmentation))


def region_of(segmentation: Any, *, class_id: int, is_crowd: bool, height: int, width: int) -> Region:
    """Return the pixels of one annotation.

    The polygons of an annotation are parts of one object: they are joined, so a ring inside a ring is filled. Those of
    fewer than three corners are passed over.

    Args:
        segmentation: List of polygons (x, y, x, y, ...), or {"size": [height, width], "counts": list or text}.
        class_id: What the pixels are.
        is_crowd: See `Region`.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    Raises:
        BadSample: it is no such thing, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        starts, ends = _runs_of_counts(segmentation, height, width)
    else:
        polygons = [polygon for polygon in _polygons(segmentation) if len(polygon) >= _MIN_POLYGON]
        starts, ends = _union([polygon_runs(polygon, height, width) for polygon in polygons])
    return Region(class_id, is_crowd, starts, ends)


def paint(regions: Iterable[Region], *, height: int, width: int, background: int) -> NDArray[np.uint8]:
    """Return class ids, uint8 (height, width); where regions overlap, the smaller lies in front.

    Crowds lie behind everything, for their outlines are rough, and of equal ones the later lies in front.

    Args:
        regions: In the order of the file.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        background: Id of the pixels that no region covers.
    """
    pixels = np.full(height * width, background, np.uint8)
    for region in sorted(regions, key=lambda region: (not region.is_crowd, -region.area)):
        for start, end in zip(region.starts.tolist(), region.ends.tolist(), strict=True):
            pixels[start:end] = region.class_id
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def polygon_runs(corners: Sequence[float], height: int, width: int) -> tuple[Int64Array, Int64Array]:
    """Return the runs of pixels that a polygon covers, clipped to the image.

    Args:
        corners: x, y, x, y, ... in pixels; (0, 0) is the upper left corner of the upper left pixel.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    Returns:
        Starts and ends, both int64 (R,), ascending.
    Raises:
        BadSample: a coordinate is no finite number, or far outside.

    Source: cocoapi, `rleFrPoly`. The outline is drawn on a grid five times finer; wherever it passes the middle of a
    pixel column, a run begins or ends there. Differs: nothing in the result; all points are computed at once.
    """
    u, v = _outline(corners)
    before, after = u[:-1], u[1:]
    column, remainder = np.divmod(np.minimum(before, after) - _MIDDLE, _SCALE)
    passes = (before != after) & (remainder == 0) & (column >= 0) & (column < width)
    highest = np.minimum(v[:-1], v[1:])[passes]
    row = np.ceil(np.clip((highest + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
    edges = np.sort(column[passes] * height + row)
    starts, ends = edges[0::2], edges[1::2]
    return _without_empty(starts, ends)


def _outline(corners: Sequence[float]) -> tuple[Int64Array, Int64Array]:
    """Return columns and rows of all points of a polygon's outline on the fine grid, in order, int64 (P,) each."""
    try:
        points = np.asarray(corners, dtype=np.float64)
        points = points[: len(points) // 2 * 2].reshape(-1, 2)
    except (TypeError, ValueError):
        raise BadSample("decode-error", "a polygon is not a list of numbers") from None
    if not np.isfinite(points).all() or np.abs(points).max() > _MAX_POINTS:
        raise BadSample("decode-error", "a polygon has a corner that is no finite number, or far outside the image")
    x, y = (np.append(values, values[0]) for values in np.trunc(_SCALE * points.T + 0.5).astype(np.int64))
    width, height = np.abs(np.diff(x)), np.abs(np.diff(y))
    is_flat = width >= height
    steps = np.where(is_flat, width, height)
    if steps.sum() > _MAX_POINTS:
        raise BadSample("decode-error", "a polygon has corners far outside the image")
    # An edge is drawn from its left (flat) or upper (steep) end, whichever way it runs, so that neighbours share it.
    is_turned = np.where(is_flat, x[:-1] > x[1:], y[:-1] > y[1:])
    x_from, x_to = np.where(is_turned, x[1:], x[:-1]), np.where(is_turned, x[:-1], x[1:])
    y_from, y_to = np.where(is_turned, y[1:], y[:-1]), np.where(is_turned, y[:-1], y[1:])
    slope = np.where(is_flat, y_to - y_from, x_to - x_from) / np.maximum(steps, 1)
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    along = np.where(is_turned[edge], steps[edge] - step, step)
    across = np.trunc(np.where(is_flat, y_from, x_from)[edge] + slope[edge] * along + 0.5).astype(np.int64)
    along += np.where(is_flat, x_from, y_from)[edge]
    return np.where(is_flat[edge], along, across), np.where(is_flat[edge], across, along)


def _polygons(segmentation: Any) -> list[Any]:
    """Return the polygons of a list; some programs write the only one without the list around it."""
    if not isinstance(segmentation, list):
        raise BadSample("decode-error", f"a segmentation is {type(segmentation).__name__}, not polygons or run lengths")
    if segmentation and isinstance(segmentation[0], int | float):
        return [segmentation]
    return [polygon for polygon in segmentation if isinstance(polygon, list)]


def _runs_of_counts(rle: dict[str, Any], height: int, width: int) -> tuple[Int64Array, Int64Array]:
    if rle.get("size") != [height, width]:
        raise BadSample("decode-error", f"run lengths are of size {rle.get('size')}, the image of [{height}, {width}]")
    counts = rle.get("counts")
    try:
        lengths = _decode_counts(counts) if isinstance(counts, str) else np.asarray(counts, dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        raise BadSample("decode-error", "run lengths are neither a list of numbers nor COCO's text") from None
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise BadSample("decode-error", f"run lengths do not add up to {height} x {width} pixels")
    edges = np.cumsum(lengths)
    # Runs of zeros and ones alternate, zeros first; where the last is of zeros it begins at an edge without a partner.
    ends = edges[1::2]
    return _without_empty(edges[0::2][: len(ends)], ends)


def _decode_counts(text: str) -> Int64Array:
    """Return the run lengths in COCO's text: five bits per character, least first, the sixth says that more follow.

    From the fourth number on they are differences to the last but one.
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise ValueError(text)
    is_last = (codes & 32) == 0
    first = np.flatnonzero(np.concatenate([[True], is_last[:-1]]))
    place = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    if place.max() > 11:
        raise ValueError(text)
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    last = np.flatnonzero(is_last)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _union(parts: list[tuple[Int64Array, Int64Array]]) -> tuple[Int64Array, Int64Array]:
    """Return the runs of pixels that are in any of some parts."""
    if len(parts) == 1:
        return parts[0]
    starts = np.concatenate([np.zeros(0, np.int64), *(start for start, _ in parts)])
    ends = np.concatenate([np.zeros(0, np.int64), *(end for _, end in parts)])
    edges = np.concatenate([starts, ends])
    change = np.repeat([1, -1], len(starts))
    order = np.lexsort((-change, edges))  # at one pixel what begins comes before what ends: touching runs become one
    depth = np.cumsum(change[order])
    edges = edges[order]
    return edges[(depth == 1) & (change[order] == 1)], edges[depth == 0]


def _without_empty(starts: Int64Array, ends: Int64Array) -> tuple[Int64Array, Int64Array]:
    is_there = ends > starts
    return starts[is_there], ends[is_there]
