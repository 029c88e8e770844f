"""What the values of a mask stand for: classes with names and colours, and pixels that belong to none.

Here: `MaskClasses`, the classes of a data set or of a model. Not here: reading masks, and files that
name classes.

C = classes. In memory a mask is uint8 (H, W): class ids in [0, C), and `IGNORED` where a pixel counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import require

IGNORED = 255
"""Id of pixels that are neither learned nor measured; the field's convention."""
MAX_CLASSES = 255
"""So many ids are left in a byte."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskClasses:
    """The classes of masks, in the order of their ids."""

    names: tuple[str, ...]
    """C names."""
    colours: tuple[Colour, ...]
    """C colours, RGB, of palettes and pictures; `voc_colours` where nobody chose any."""

    def __post_init__(self) -> None:
        """Check that there are some, as many colours as names, and few enough for a byte."""
        require(
            2 <= len(self.names) <= MAX_CLASSES,
            f"segmentation knows 2 to {MAX_CLASSES} classes, and these are {len(self.names)}; join or split some",
        )
        assert len(self.colours) == len(self.names)

    def __len__(self) -> int:
        return len(self.names)


def voc_colours(count: int) -> tuple[Colour, ...]:
    """Return the colours of ids 0 to count - 1 as PASCAL VOC spreads the bits of an id over red, green and blue.

    Example:
        >>> voc_colours(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    ids = np.arange(count, dtype=np.int64)
    channels: NDArray[np.int64] = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            channels[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return tuple((int(red), int(green), int(blue)) for red, green, blue in channels)
