"""What a file of images holds, before anything is chosen or scaled: values of their own type, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample

_NUM_CHANNELS = {"grey": 1, "rgb": 3}
_NUMBERS = "biuf"
"""Kinds of dtypes whose values can be mapped to brightness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """One image as its file has it: turned as the file asks, otherwise untouched."""

    array: NDArray[Any]
    """Values (H, W, C) of their own dtype, a number; not multiplied with an opacity, see `without_opacity`."""
    kind: Literal["grey", "rgb", "bands"]
    """What the C channels are: one of brightness, three colours, or bands of any meaning."""
    alpha: NDArray[Any] | None = None
    """Opacity (H, W), of the dtype of the array; 0 where nothing is seen of it, the end of the full range where nothing
    shines through, 1 for floats."""
    bits: int | None = None
    """Really used by the format, such as 12 of 16; None where all of the dtype are."""
    limits: tuple[float, float] | None = None
    """Smallest and largest value that the file can hold, where `bits` does not say it, as of rescaled values."""
    window: tuple[float, float] | None = None
    """The values that the image itself wants black and white."""
    is_inverted: bool = False
    """Whether the smallest value is meant to be white."""
    num_frames: int = 1
    """Pages, slices or moments in the file, of which this is one."""
    band_names: tuple[str, ...] = ()
    """Of the channels, where the file names them: one for each."""

    def __post_init__(self) -> None:
        shape, dtype = self.array.shape, self.array.dtype
        is_image = len(shape) == 3 and min(shape) >= 1 and shape[2] == _NUM_CHANNELS.get(self.kind, shape[2])
        if not is_image or dtype.kind not in _NUMBERS:
            raise BadSample("decode-error", f"{self.kind} of shape {shape} and type {dtype}")
        if self.alpha is not None and (self.alpha.shape != shape[:2] or self.alpha.dtype != dtype):
            raise BadSample("decode-error", f"opacity of shape {self.alpha.shape} for values of shape {shape}")
        if self.band_names and len(self.band_names) != shape[2]:
            raise BadSample("decode-error", f"{len(self.band_names)} names for {shape[2]} bands")

    @property
    def full_range(self) -> tuple[float, float]:
        """Smallest and largest value that the file's type can hold.

        Raises:
            BadSample: it is a floating-point type, which has no such range.
        """
        if self.limits is not None:
            return self.limits
        dtype = self.array.dtype
        if dtype.kind not in "biu":
            raise BadSample(
                "no-range",
                f"its values are of type {dtype}; say which of them are black and white, such as --set "
                "source.range=[0,1] (evaluate, predict: --range 0,1)",
            )
        bits = self.bits or (1 if dtype.kind == "b" else 8 * dtype.itemsize)
        return (0.0, 2.0**bits - 1) if dtype.kind != "i" else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def samples_of_8_bit(
    pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None, *, num_frames: int = 1
) -> Samples:
    """Return grey (H, W) or colours (H, W, 3) of 8 bits as samples."""
    array = pixels[..., None] if pixels.ndim == 2 else pixels
    kind: Literal["grey", "rgb"] = "grey" if array.shape[2] == 1 else "rgb"
    return Samples(array=array, kind=kind, alpha=alpha, num_frames=num_frames)


def without_opacity(colours: NDArray[Any], alpha: NDArray[Any], full: float) -> NDArray[Any]:
    """Return colours that were multiplied with their opacity before they were stored as they were meant to be.

    Where nothing is seen of them they are as they are stored, which is mostly black. Whole numbers are rounded to the
    nearest and end at `full`.

    Args:
        colours: (H, W, C), of their own dtype.
        alpha: (H, W).
        full: The opacity through which nothing shines.
    """
    if colours.dtype.kind != "u":
        visible = np.where(alpha > 0, alpha, full).astype(np.float64)[..., None]
        meant = colours.astype(np.float64) * full / visible
        return (meant if colours.dtype.kind == "f" else np.rint(meant).clip(-full - 1, full)).astype(colours.dtype)
    wide = np.dtype(np.uint32 if colours.dtype.itemsize <= 2 else np.uint64)
    top: NDArray[Any] = np.array(full, dtype=wide)
    shown: NDArray[Any] = np.maximum(alpha, 1).astype(wide)[..., None]
    scaled: NDArray[Any] = colours.astype(wide) * top  # at most 65535 x 65535, or 2^32 x 2^32
    found: NDArray[Any] = np.minimum(scaled // shown + (scaled % shown >= (shown + 1) // 2), top)
    return found.astype(colours.dtype)
