"""What a sample of images says of their values: where percentiles lie, and whether most of the range lies idle.

Whoever calls draws the sample (`beit.common.sources.opening.draw_images`); here it is read, one image at a time, and of
each as many values, so that large images do not outvote small ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

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
_IDLE_SHARE = 1 / 8
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
            values.append(_some_values(_chosen(read(), decoding), len(values)))
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
    """How much of the range of their type some images use."""

    bits: int
    """Of a value."""
    full: tuple[float, float]
    """Smallest and largest value of the type."""
    used: tuple[float, float]
    """Between these lie 99 of 100 values."""
    largest: float
    """That was seen."""
    levels: int
    """Of the 256 that are left of the used part."""

    @property
    def is_small(self) -> bool:
        """Whether it is less than an eighth."""
        return self.used[1] - self.used[0] < _IDLE_SHARE * (self.full[1] - self.full[0])

    def warning(self) -> str:
        """Return what users are told."""
        of = f"{self.full[1]:g}" if self.full[0] == 0 else f"{self.full[0]:g} to {self.full[1]:g}"
        bounds = f"source.range=[0, {(1 << max(1, int(self.largest).bit_length())) - 1}]"
        bounds = f"--set '{bounds}' or " if self.used[0] >= 0 else ""
        return (
            f"{self.bits}-bit images, of whose values 99 in 100 lie between {self.used[0]:g} and {self.used[1]:g} of "
            f"{of}: {self.levels} grey level{'s are' if self.levels != 1 else ' is'} left of 256; give {bounds}"
            f"--set source.range=percentile:{_MIDDLE[0]:g},{_MIDDLE[1]:g}"
        )


def range_use(images: DrawnImages, decoding: Decoding) -> RangeUse | None:
    """Judge the use of the range by a sample, as far as its images have more than 8 bits; None where none has.

    Images that show by name or header that they have no more are not decoded.
    """
    values: list[NDArray[Any]] = []
    deepest: Samples | None = None
    for samples in _deep(images, decoding):
        values.append(_some_values(samples, len(values)))
        deepest = samples if deepest is None or samples.full_range[1] > deepest.full_range[1] else deepest
    if deepest is None:
        return None
    found = np.concatenate(values)
    low, high = (float(value) for value in np.percentile(found, _MIDDLE, method="nearest"))
    darkest, brightest = map_to_8_bit(np.array([low, high]), *deepest.full_range).tolist()
    return RangeUse(
        bits=deepest.bits or 8 * deepest.array.dtype.itemsize,
        full=deepest.full_range,
        used=(low, high),
        largest=float(found.max()),
        levels=brightest - darkest + 1,
    )


def may_be_deep(path: str) -> bool:
    """Tell by its name whether an image may have more than 8 bits."""
    return not path.lower().endswith(_SHALLOW_SUFFIXES)


def num_looked_at(num_images: int) -> int:
    """Return by how many images the use of their range is judged: few enough not to be felt."""
    return max(_LOOKED_AT[0], min(_LOOKED_AT[1], num_images // 50))


def warn_of_idle_range(images: DrawnImages, decoding: Decoding) -> None:
    """Say it where deep images use little of their range, which nobody has chosen."""
    if decoding.value_range.kind != DTYPE:
        return
    use = range_use(images, decoding)
    if use is not None and use.is_small:
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


def _some_values(samples: Samples, number: int) -> NDArray[Any]:
    """Return values of an image, float64: all, or as many from all over it as of every other."""
    flat = samples.array.reshape(-1)
    if len(flat) > _VALUES_PER_IMAGE:
        # A place in every stretch by chance, so that no pattern of the image falls in step with the choice.
        stride = len(flat) / _VALUES_PER_IMAGE
        shares = CounterRng(0, "values", number).raw(_VALUES_PER_IMAGE) / 2.0**64
        flat = flat[((np.arange(_VALUES_PER_IMAGE) + shares) * stride).astype(np.int64).clip(0, len(flat) - 1)]
    return flat.astype(np.float64)
