"""Where the tiles of a large image lie, what they are called, and which pixels of the whole each answers for.

Tiles are squares of `tile` px that begin every `tile - overlap` px; the last one of a row or column is moved back so
that it ends with the image, as windows of segmentation do. So all tiles of a large image are of one size, show nothing
but the image, and leave nothing of it out. Along a side that is shorter than a tile, it is as long as the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from beit.common.errors import InputError, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = NDArray[np.float32]


CUT_PIXELS = 8_000_000
"""Of the tiles that are decoded at a time, unless one has more, where an image can be decoded in windows: 24 MB as RGB,
and about half as much again encoded. Arbitrary."""


class Box(NamedTuple):
    """Part of an image in px; right and bottom are behind the last pixel, as in Pillow."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top


class Tile(NamedTuple):
    """One tile of an image."""

    row: int
    """From 0 on."""
    column: int
    """From 0 on."""
    box: Box

    @property
    def name(self) -> str:
        """How it is called: "y0001x0003" is the fourth of the second row."""
        return f"y{self.row:04d}x{self.column:04d}"


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side: every `stride` pixels, the last one so that it ends with the side.

    Example:
        >>> window_starts(1000, 512, 341)
        [0, 341, 488]
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride, length - window), 0) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How images are cut."""

    tile: int
    """Side of a tile in px."""
    overlap: int = 0
    """Pixels that neighbours share, more where the last one was moved back."""

    def __post_init__(self) -> None:
        require(self.tile >= 1, f"tile ({self.tile}) must be at least 1 px")
        if not 0 <= self.overlap < self.tile:
            raise InputError(
                f"overlap ({self.overlap}) must be at least 0 px and smaller than tile ({self.tile}), or no tile would "
                "begin behind the one before it; a share such as "
                f"{self.tile // 8} is usual"
            )

    def starts(self, length: int) -> list[int]:
        """Return where tiles begin along a side of `length` px."""
        return window_starts(length, self.tile, self.tile - self.overlap)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return how many rows and columns of tiles an image of this width and height has."""
        width, height = size
        return len(self.starts(height)), len(self.starts(width))

    def count(self, size: tuple[int, int]) -> int:
        """Return how many tiles an image of this width and height has."""
        rows, columns = self.grid(size)
        return rows * columns

    def tiles(self, size: tuple[int, int], first: int = 0, count: int | None = None) -> Iterator[Tile]:
        """Yield tiles row by row.

        Args:
            size: Width and height of the image.
            first: Number of the first one, row by row.
            count: How many; left out, all that follow.
        """
        width, height = size
        tops, lefts = self.starts(height), self.starts(width)
        last = len(tops) * len(lefts) if count is None else first + count
        for number in range(first, last):
            row, column = divmod(number, len(lefts))
            left, top = lefts[column], tops[row]
            box = Box(left, top, min(left + self.tile, width), min(top + self.tile, height))
            yield Tile(row, column, box)


@dataclass(frozen=True, slots=True)
class Share:
    """What one tile says of a side of the image: the pixels [begin, end), less and less where another takes over."""

    start: int
    """Of the tile."""
    begin: int
    """First pixel that it answers for, with others or alone."""
    end: int
    """Behind the last one."""
    weights: Weights
    """(end - begin,) float32 in (0, 1]; those of all tiles sum to 1 at every pixel."""


def shares(length: int, tiling: Tiling) -> list[Share]:
    """Return how the tiles along a side of `length` px share its pixels.

    Where two overlap, the middle of the overlap is blended over `overlap` px, linearly, so that each pixel is told by
    at most two tiles, mostly by those that see it far from their edge. Without overlap, or where the last tile was
    moved back, nothing is blended more than that.
    """
    import numpy as np

    starts = tiling.starts(length)
    ends = [min(start + tiling.tile, length) for start in starts]
    middles = [(start + end) / 2 for start, end in zip(starts[1:], ends[:-1], strict=True)]
    # Two borders must not reach into each other: where many tiles overlap, or the last one was moved far back.
    gaps = [after - before for before, after in zip(middles, middles[1:], strict=False)]
    blended = int(min([tiling.overlap, *gaps]))
    borders = [int(middle - blended / 2) for middle in middles]
    ramp = ((np.arange(blended) + 0.5) / max(1, blended)).astype(np.float32)
    found = []
    for number, start in enumerate(starts):
        begin = borders[number - 1] if number else 0
        end = borders[number] + blended if number < len(borders) else length
        weights = np.ones(end - begin, np.float32)
        if number:
            weights[:blended] = ramp
        if number < len(borders):
            weights[end - begin - blended :] = 1 - ramp
        found.append(Share(start, begin, end, weights))
    return found
