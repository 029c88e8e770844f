"""How many tokens survive what should not matter: a small shift, JPEG re-encoding, another number format.

Pre-training asks for the tokens of an image it sees slightly differently each time; where they are a matter of chance,
they cannot be predicted. S side of a window in px, g tokens per side.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.tokenizer import Tokenizer

SHIFTS_PX = (1, 2, 4)
JPEG_QUALITY = 90
"""Mild: what cameras and web sites write; with Pillow's usual subsampling of colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftStability:
    """Tokens of a window and of the same window moved to the right."""

    shift_px: int
    """How far."""
    is_whole_tokens: bool
    """The shift is a multiple of the tokens' side: grids line up, and the words themselves should move along. Else
    words at equal places of the grid are compared."""
    equal_share: float
    """Share of equal words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stability:
    """Shares of tokens that stay the same word."""

    num_views: int
    """Views compared."""
    shifts: list[ShiftStability]
    """By distance."""
    jpeg_equal_share: float
    """After JPEG re-encoding at quality `JPEG_QUALITY`."""
    dtype_equal_shares: dict[str, float]
    """By number format of the forward pass, against float32."""


class StabilityTally:
    """Adds up comparisons, batch by batch, of a tokenizer in float32 with itself, and with it in other number formats.

    Each view costs as much as seven encodings.
    """

    def __init__(self, tokenizer: Tokenizer, by_dtype: Mapping[str, Tokenizer]) -> None:
        self._tokenizer, self._by_dtype = tokenizer, by_dtype
        self._equal, self._compared = Counter[str](), Counter[str]()
        self._num_views = 0

    def add(self, views: NDArray[np.uint8], token_ids: NDArray[np.integer]) -> None:
        """Compare windows of uint8 views (B, W, W, 3) whose left upper one of S px has the words (B, g, g).

        W is S and `shift_margin`, so that windows that move show real pixels at their edges, and a tokenizer that takes
        one side only gets that side.
        """
        side = token_ids.shape[1] * self._tokenizer.downsampling
        still = np.ascontiguousarray(views[:, :side, :side])
        self._num_views += len(views)
        for shift in shifts_of(self._tokenizer.downsampling):
            moved = self._encode(views[:, :side, shift : shift + side])
            columns, rest = divmod(shift, self._tokenizer.downsampling)
            columns = 0 if rest else columns
            self._count(f"shift {shift}", moved[:, :, : moved.shape[2] - columns], token_ids[:, :, columns:])
        self._count("jpeg", self._encode(through_jpeg(still)), token_ids)
        for dtype, tokenizer in self._by_dtype.items():
            self._count(dtype, tokenizer.encode(still).cpu().numpy(), token_ids)

    def result(self) -> Stability:
        """Return the shares; one view at least."""
        share = {name: self._equal[name] / self._compared[name] for name in self._equal}
        factor = self._tokenizer.downsampling
        return Stability(
            num_views=self._num_views,
            shifts=[
                ShiftStability(shift_px=shift, is_whole_tokens=shift % factor == 0, equal_share=share[f"shift {shift}"])
                for shift in shifts_of(factor)
            ],
            jpeg_equal_share=share["jpeg"],
            dtype_equal_shares={dtype: share[dtype] for dtype in self._by_dtype},
        )

    def _encode(self, views: NDArray[np.uint8]) -> NDArray[np.integer]:
        return np.asarray(self._tokenizer.encode(views).cpu().numpy())

    def _count(self, name: str, first: NDArray[np.integer], second: NDArray[np.integer]) -> None:
        self._equal[name] += int((first == second).sum())
        self._compared[name] += first.size


def shifts_of(downsampling: int) -> list[int]:
    """Return the distances to compare, ascending: `SHIFTS_PX` and one whole token."""
    return sorted({*SHIFTS_PX, downsampling})


def shift_margin(downsampling: int) -> int:
    """Return how much larger than its windows a view must be, in px."""
    return shifts_of(downsampling)[-1]


def through_jpeg(views: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Write views (B, S, S, 3) as JPEG and read them again."""
    files = [io.BytesIO() for _ in views]
    for view, file in zip(views, files, strict=True):
        Image.fromarray(view).save(file, format="JPEG", quality=JPEG_QUALITY)
    return np.stack([np.asarray(Image.open(file)) for file in files])
