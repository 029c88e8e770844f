"""Which values of an image become black and white: the rule a user gives, and the step from values to 8 bits.

Models see 8 bits per channel. Cameras, scanners and detectors give more, and mostly use a small part of what their
files could hold; the rule says which part becomes 0 to 255. NumPy is imported where values are touched, so that
settings are checked without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beit.common.errors import BadSample, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from beit.common.images.samples import Samples

DTYPE, WINDOW, BOUNDS, PERCENTILE = "dtype", "window", "bounds", "percentile"
RangeSetting = str | float | tuple[float, ...]
"""As settings have it; a number alone is always wrong, and `ValueRange.parse` says so."""
HOW_TO_GIVE = 'it is "dtype", "window", two values such as [0, 4095], or "percentile:0.5,99.5"'


@dataclass(frozen=True, slots=True)
class ValueRange:
    """Which values become 0 and 255."""

    kind: str = DTYPE
    """`DTYPE`: the full range of the file's sample type. `WINDOW`: the one that the image itself states, as DICOM does.
    `BOUNDS`: the two values below. `PERCENTILE`: two values that were found over a sample of the images."""
    low: float | None = None
    """Becomes 0, as what is smaller; None unless there are bounds, or percentiles that were found."""
    high: float | None = None
    """Becomes 255, as what is larger."""
    percentiles: tuple[float, float] | None = None
    """Of the values of the sampled images, in [0, 100], ascending; for `PERCENTILE` only."""

    @classmethod
    def parse(cls, setting: RangeSetting, found: tuple[float, float] | None = None) -> ValueRange:
        """Read a setting.

        Args:
            setting: What a user gave.
            found: Where it names percentiles: the values that were found.
        """
        if setting in (DTYPE, WINDOW):
            return cls(str(setting))
        if isinstance(setting, tuple):
            low, high = _ascending(setting, setting, "the first below the second")
            return cls(BOUNDS, low, high)
        if isinstance(setting, str) and setting.startswith(f"{PERCENTILE}:"):
            numbers = _numbers(setting.removeprefix(f"{PERCENTILE}:"))
            low, high = _ascending(numbers, setting, "the first below the second, as percentile:0.5,99.5")
            if low < 0 or high > 100:
                raise InputError(
                    f"source.range ({setting}) must name percentiles from 0 to 100, as percentile:0.5,99.5"
                )
            values = found or (None, None)
            return cls(PERCENTILE, values[0], values[1], (low, high))
        raise InputError(f"source.range ({setting}) is no range of values; {HOW_TO_GIVE}")

    @property
    def is_resolved(self) -> bool:
        """Whether images can be decoded: percentiles have to be found first."""
        return self.kind != PERCENTILE or self.low is not None

    @property
    def needs_values(self) -> bool:
        """Whether it is said in values of the file, so that these must be had in full."""
        return self.kind in (BOUNDS, PERCENTILE)

    @property
    def setting(self) -> str | tuple[float, float]:
        """What a user gave."""
        if self.kind == PERCENTILE and self.percentiles is not None:
            return f"{PERCENTILE}:{self.percentiles[0]:g},{self.percentiles[1]:g}"
        return (self.low, self.high) if self.low is not None and self.high is not None else self.kind

    @property
    def found(self) -> tuple[float, float] | None:
        """The values that percentiles were found to be."""
        is_found = self.kind == PERCENTILE and self.low is not None and self.high is not None
        return (self.low, self.high) if is_found else None  # type: ignore[return-value]

    def __str__(self) -> str:
        """Return it as messages have it."""
        if self.kind == BOUNDS:
            return f"[{self.low:g}, {self.high:g}]"
        numbers = f" = [{self.low:g}, {self.high:g}]" if self.found else ""
        return f"{self.setting}{numbers}"


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        return ()


def _ascending(numbers: tuple[Any, ...], setting: RangeSetting, rule: str) -> tuple[float, float]:
    are_fine = len(numbers) == 2 and all(map(math.isfinite, numbers))
    if not are_fine or not numbers[0] < numbers[1]:
        shown = list(setting) if isinstance(setting, tuple) else setting
        raise InputError(f"source.range ({shown}) must be two numbers, {rule}; {HOW_TO_GIVE}")
    return float(numbers[0]), float(numbers[1])


def to_8_bit(samples: Samples, value_range: ValueRange) -> NDArray[np.uint8]:
    """Map the values of an image to 8 bits, (H, W, C) uint8, as `map_to_8_bit` does; what is inverted is turned over.

    Raises:
        BadSample: reason is "no-range" for floats without a stated range, or "no-window" for a deeper image than 8 bits
            that states none.
    """
    pixels = map_to_8_bit(samples.array, *bounds_of(samples, value_range))
    return 255 - pixels if samples.is_inverted else pixels


def bounds_of(samples: Samples, value_range: ValueRange) -> tuple[float, float]:
    """Return the values of an image that become black and white, see `to_8_bit`."""
    if value_range.low is not None and value_range.high is not None:
        return value_range.low, value_range.high
    if value_range.kind == WINDOW:
        if samples.window is not None:
            return samples.window
        if samples.array.dtype.itemsize > 1:  # what has 8 bits was made for the eye
            raise BadSample(
                "no-window",
                "it states no window; give source.range as two values, such as [0, 4095] (evaluate, predict: --range "
                "0,4095)",
            )
    return samples.full_range


def map_to_8_bit(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map values of any shape and numeric dtype to uint8: `low` and below to 0, `high` and above to 255, NaN to 0.

    In between to the nearest of the 256 levels, halves up: floor(255 (v - low) / (high - low) + 1/2) in float64. For
    the full range of 16 bits that is (v + 128) // 257, without a division of floats.
    """
    import numpy as np

    if values.dtype == np.uint8 and (low, high) == (0, 255):  # large windows are quicker uncopied
        unchanged: NDArray[np.uint8] = values
        return unchanged
    if values.dtype.kind in "ub" and values.dtype.itemsize <= 2:  # a table of all values there are is quicker
        table = _as_8_bit(np.arange(1 << 8 * values.dtype.itemsize), low, high)
        pixels: NDArray[np.uint8] = table[values.astype(np.uint8) if values.dtype.kind == "b" else values]
        return pixels
    return _as_8_bit(values, low, high)


def _as_8_bit(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    import numpy as np

    scaled = (values.astype(np.float64) - low) * 255.0 / (high - low) + 0.5  # multiplied first, which is exact
    return np.nan_to_num(scaled, nan=0.0).clip(0, 255).astype(np.uint8)
