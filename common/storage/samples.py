"""What a sample is to every part of the system: its record, its number and image among others, the label for none.

A data set numbers its samples shard after shard; `locate` turns such a position into a shard and a row of it. Not here:
the order in which a training reads them (`common/reading/order.py`).

S shards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding

NO_LABEL = -1
"""Stands for an absent label in arrays and batches; records have None, Parquet files null."""
_PIECE = re.compile(r"(?:~(?:p\d{4,}(?:y\d{4,}x\d{4,})?|y\d{4,}x\d{4,})(?:-[0-9a-f]{10})?)+\Z")
"""What follows the key of an image in those of its tiles and pages, and of tiles of these. The hash behind it keeps
apart what several tars call by one name; it differs from tile to tile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One sample as stored: nothing decoded, nothing augmented."""

    key: str
    """Unique in its shard."""
    shard: str
    """Stem of the shard."""
    epoch: int
    """Epoch it is read for; with the sample id it keys all random numbers of the transform."""
    view_index: int
    """Stored view to show; the epoch itself where no views are stored."""
    repeat: int = 0
    """Which of several times that the sample comes in this epoch (balanced classes); keys random numbers beside it."""
    image_bytes: bytes
    """Encoded image; in a materialised store, the crop of this view."""
    label: int | None = None
    """Class id, if known."""
    view: np.void | None = None
    """Crop, flip and jitter of the stored view (`beit.common.views.VIEW_DTYPE`)."""
    mask_bytes: bytes | None = None
    """Encoded mask, an image in itself, where every pixel has a class."""
    token_ids: NDArray[np.uint16] | None = None
    """Visual token ids of that view, uint16 (grid_size, grid_size)."""
    decoding: Decoding = USUAL
    """How its image is decoded, as the source or the store says."""

    def decode_image(self) -> Image.Image:
        """Return the image, see `beit.common.images.decode.decode_image`.

        Raises:
            BadSample: it cannot be used.
        """
        return decode_image(self.image_bytes, self.decoding)

    @property
    def sample_id(self) -> str:
        """Name of the sample, unique in the data set and equal on every rank."""
        return f"{self.shard}/{self.key}"


def shard_starts(sizes: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the position of each shard's first sample, and at the end the number of all, int64 (S + 1,)."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@overload
def locate(starts: NDArray[np.int64], positions: int) -> tuple[int, int]: ...
@overload
def locate(starts: NDArray[np.int64], positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def locate(starts: NDArray[np.int64], positions: int | NDArray[np.int64]) -> tuple[Any, Any]:
    """Return shard and row in the shard of one sample, or of many.

    Args:
        starts: From `shard_starts`, or some neighbours of it.
        positions: Between the first and the last of the starts.
    """
    # side="right" steps over shards of size zero, which start where their successor starts.
    shard_ids = np.searchsorted(starts, positions, side="right") - 1
    rows = positions - starts[shard_ids]
    return (int(shard_ids), int(rows)) if np.ndim(positions) == 0 else (shard_ids, rows)


def spread_evenly(total: int, count: int) -> NDArray[np.int64]:
    """Return `count` positions spread evenly over `total`, int64, ascending; all of them if there are no more.

    Number i of them is the one at i total / count, rounded down.
    """
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // max(1, count)


def image_key(key: str) -> str:
    """Return the key of the image that a sample was cut from; that of a whole image is its own."""
    return _PIECE.sub("", key)
