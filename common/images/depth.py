"""What a sample of images says of their values: where percentiles lie, and whether 8 bits of the full range crush them.

Whoever calls draws the sample (`beit.common.sources.glance.few`); here it is read, one image at a time, and of
each as many values, so that large images do not outvote small ones.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, InputError
from beit.common.images.channels import pick_channels
from beit.common.images.decode import read_samples
from beit.common.images.decoding import Decoding
from beit.common.images.jpeg import is_jpeg
from beit.common.images.ranges import DTYPE, ValueRange, map_to_8_bit
from beit.common.images.readers.deep_png import png_bits
from beit.common.images.samples import Samples
from beit.common.rng import CounterRng

logger = logging.getLogger(__name__)

DrawnImages = Iterable[tuple[str, Callable[[], bytes]]]
"""Of each image its path and what reads it."""
NUM_FOR_PERCENTILES = 256
"""Images over which percentiles are found."""
_LOOKED_AT = (8, 32)
"""Fewest and most images by which the use of the range is judged, of 50 images one."""
_VALUES_PER_IMAGE = 16384
_MIDDLE = (0.5, 99.5)
"""Percentiles between which values count as used: a few dead or saturated pixels are not."""
_ALL_VALUES = ValueRange.parse("percentile:0,100")
_CUTS = (0.5, 2.0, 5.0)
"""Percent of the values at either end that a range may clip: labels and dead areas of a detector are more than 0.5."""
_NEARLY = 0.8
"""Of the most levels, with which the range that clips least is taken."""
_CRUSHED = 2.0
"""So many times the levels are to be had where it is worth a word. Measured on photographs (also dark ones, and as 16
bits) 0.9 to 1.2 times, on 16-bit images of detectors 3 to 30 times (docs/images.md)."""
_SHALLOW_SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "mpo", "webp")


def find_range(images: DrawnImages, decoding: Decoding, *, of: str) -> Decoding:
    """Find the values that the percentiles of a range stand for.

    Args:
        images: The sample.
        decoding: Says which percentiles, and which channels they are of.
        of: What the user calls the source.
    Returns:
        The same with the values.
    """
    wanted = decoding.value_range
    assert wanted.percentiles is not None
    values: list[NDArray[Any]] = []
    first_error: BadSample | None = None
    for _, read in images:
        try:
            values.append(some_values(_chosen(read(), decoding), len(values)))
        except BadSample as error:
            first_error = first_error or error
    found = np.concatenate(values) if values else np.empty(0)
    found = found[np.isfinite(found)]
    if not len(found):
        why = f" (first: {first_error})" if first_error else ""
        raise InputError(f"source.range ({wanted.setting}): none of the images of {of} that were tried has values{why}")
    low, high = (float(value) for value in np.percentile(found, wanted.percentiles, method="nearest"))
    if low >= high:
        raise InputError(
            f"source.range ({wanted.setting}): both percentiles of {of} are {low:g}; give two values, such as [0, 4095]"
        )
    logger.info("source.range %s is %g to %g over %d images of %s", wanted.setting, low, high, len(values), of)
    return replace(decoding, value_range=ValueRange.parse(wanted.setting, (low, high)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeUse:
    """How much some images keep of what they show when their full range becomes 8 bits, and what would keep more."""

    bits: int
    """Of a value."""
    full: tuple[float, float]
    """Smallest and largest value of the type."""
    used: tuple[float, float]
    """Between these lie 99 of 100 values."""
    levels: float
    """Of 256 that an image has by default, as `effective_levels` counts them; the mean of all."""
    best_levels: float
    """The same with the range to use instead."""
    ways_out: tuple[str, ...]
    """Settings that have as many, or that help, too, the best first."""

    @property
    def is_crushed(self) -> bool:
        """Whether another range would leave more than twice as many levels: a whole bit of each pixel more."""
        return self.best_levels > _CRUSHED * self.levels

    def warning(self) -> str:
        """Return what users are told."""
        of = f"{self.full[1]:g}" if self.full[0] == 0 else f"{self.full[0]:g} to {self.full[1]:g}"
        kept = max(1, round(self.levels))
        return (
            f"{self.bits}-bit images, of whose values 99 in 100 lie between {self.used[0]:g} and {self.used[1]:g} of "
            f"{of}: about {kept} of 256 grey levels {'are' if kept != 1 else 'is'} left of an image (by entropy), and "
            f"{self.best_levels:.0f} with {' or '.join(self.ways_out)}"
        )


def effective_levels(values: NDArray[Any], low: float, high: float) -> float:
    """Return how many of the 256 grey levels values really have when these two become black and white.

    As many as equally frequent levels would have their entropy: some pixels far from all others count for little.
    """
    counts = np.bincount(map_to_8_bit(values, low, high), minlength=256)
    shares = counts[counts > 0] / len(values)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def range_use(images: DrawnImages, decoding: Decoding) -> RangeUse | None:
    """Judge the full range by a sample, as far as its images have more than 8 bits; None where none has.

    Images that show by name or header that they have no more are not decoded.
    """
    drawn: list[_Drawn] = []
    deepest: Samples | None = None
    for samples in _deep(images, decoding):
        drawn.append(_Drawn(some_values(samples, len(drawn)), samples.full_range, samples.window))
        deepest = samples if deepest is None or samples.full_range[1] > deepest.full_range[1] else deepest
    if deepest is None:
        return None
    found = np.concatenate([one.values for one in drawn])
    low, high = (float(value) for value in np.percentile(found, _MIDDLE, method="nearest"))
    levels = _mean_levels(drawn, [one.full for one in drawn])
    best, ways_out = _ways_out(drawn, found, levels)
    return RangeUse(
        bits=_bits_of(deepest),
        full=deepest.full_range,
        used=(low, high),
        levels=levels,
        best_levels=best,
        ways_out=ways_out,
    )


def _bits_of(samples: Samples) -> int:
    if samples.limits is not None:  # of rescaled values
        return math.ceil(math.log2(samples.limits[1] - samples.limits[0] + 1))
    return samples.bits or 8 * samples.array.dtype.itemsize


class _Drawn(NamedTuple):
    """Values of an image, the full range of its type, and the one that it states."""

    values: NDArray[Any]
    full: tuple[float, float]
    window: tuple[float, float] | None


def _mean_levels(drawn: Sequence[_Drawn], ranges: Sequence[tuple[float, float]]) -> float:
    levels = [effective_levels(one.values, *bounds) for one, bounds in zip(drawn, ranges, strict=True)]
    return float(np.mean(levels))


def _ways_out(drawn: Sequence[_Drawn], found: NDArray[Any], by_default: float) -> tuple[float, tuple[str, ...]]:
    """Return the levels of the percentiles that cut least among those that are nearly the best, and what to set."""
    by_cut: dict[float, tuple[float, tuple[float, float]]] = {}
    for cut in _CUTS:
        low, high = (float(value) for value in np.percentile(found, (cut, 100 - cut), method="nearest"))
        if low < high:
            by_cut[cut] = _mean_levels(drawn, [(low, high)] * len(drawn)), (low, high)
    if not by_cut:
        return 0.0, ()
    most = max(levels for levels, _ in by_cut.values())
    cut, (best, (low, high)) = next(item for item in by_cut.items() if item[1][0] >= _NEARLY * most)
    round_bounds = 0.0, 2.0 ** int(found.max()).bit_length() - 1
    is_round = found.min() >= 0 and 2 * _mean_levels(drawn, [round_bounds] * len(drawn)) >= best
    bounds = round_bounds if is_round else (low, high)
    ways = [f"--set source.range=percentile:{cut:g},{100 - cut:g}", f"--set 'source.range=[{_number(bounds)}]'"]
    windows = [one.window for one in drawn if one.window is not None]
    if len(windows) == len(drawn) and _mean_levels(drawn, windows) > _CRUSHED * by_default:
        ways.append("--set source.range=window, which the files state")
    return best, tuple(ways)


def _number(bounds: tuple[float, float]) -> str:
    return ", ".join(str(int(value)) for value in bounds)


def may_be_deep(path: str) -> bool:
    """Tell by its name whether an image may have more than 8 bits."""
    return not path.lower().endswith(_SHALLOW_SUFFIXES)


def num_looked_at(num_images: int) -> int:
    """Return by how many images the use of their range is judged: few enough not to be felt."""
    return max(_LOOKED_AT[0], min(_LOOKED_AT[1], num_images // 50))


def warn_of_idle_range(images: DrawnImages, decoding: Decoding) -> None:
    """Say it where the full range, which nobody has chosen, leaves little of what deep images show."""
    if decoding.value_range.kind != DTYPE:
        return
    use = range_use(images, decoding)
    if use is not None and use.is_crushed:
        logger.warning("%s", use.warning())


def _deep(images: DrawnImages, decoding: Decoding) -> Iterator[Samples]:
    """Yield what has integers of more than 8 bits."""
    for path, read in images:
        if not may_be_deep(path):
            continue
        with suppress(BadSample):
            data = read()
            if is_jpeg(data) or (png_bits(data) or 16) <= 8:
                continue
            samples = _chosen(data, decoding)
            if samples.array.dtype.itemsize > 1 and samples.array.dtype.kind in "iu":
                yield samples


def _chosen(data: bytes, decoding: Decoding) -> Samples:
    """Return the values of the channels that a model is to see, in full."""
    return pick_channels(read_samples(data, replace(decoding, value_range=_ALL_VALUES)), decoding.channels)


def some_values(samples: Samples, number: int) -> NDArray[Any]:
    """Return values of an image, float64: all, or as many from all over it as of every other."""
    flat = samples.array.reshape(-1)
    if len(flat) > _VALUES_PER_IMAGE:
        # A place in every stretch by chance, so that no pattern of the image falls in step with the choice.
        stride = len(flat) / _VALUES_PER_IMAGE
        shares = CounterRng(0, "values", number).raw(_VALUES_PER_IMAGE) / 2.0**64
        flat = flat[((np.arange(_VALUES_PER_IMAGE) + shares) * stride).astype(np.int64).clip(0, len(flat) - 1)]
    return flat.astype(np.float64)
