"""Whether a range of values lies beside what images hold, so that they become nearly black or white, in silence.

A range that was found over, or given for, the images of one instrument clips or flattens those of another, and 8-bit
pictures with it. How many grey levels an image keeps is counted as where the full range is judged (`depth.py`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample
from beit.common.images.channels import pick_channels
from beit.common.images.decode import read_samples, size_of_image
from beit.common.images.decoding import Decoding
from beit.common.images.depth import effective_levels, some_values
from beit.common.images.jpeg import is_jpeg
from beit.common.images.samples import Samples

logger = logging.getLogger(__name__)

_FEW = 4.0
"""Levels below which an image is nearly one colour."""
_MANY = 8.0
"""So many times as many an image has by a range of its own that is missed. A first guess, held against photographs,
simulated cells and X-rays, and empty fields."""
_SPREAD = 0.2
"""Of the distance from zero, that values of an image lie apart at least, else it shows nothing: white of a slide; and
what a camera says of an empty field is noise around one value, and has many levels by a range of its own."""
_NOISE = 0.5
"""Squared differences of neighbouring pixels, as a share of those of any two: 1 for noise, and less where there is
something to see. Noise around a black level of 0 has no other sign."""
_OWN = (0.5, 99.5)
"""Percentiles that are an image's own range where it has more than 8 bits."""
_SIDE_PX = 256
"""That the short side of a JPEG keeps: less is decoded of a large one."""
_MOST_PIXELS = 25_000_000
"""Of images that are decoded for that, after reduction; those of slides and scenes would take long, and much memory."""
_NAMED_CLASSES = 3


RangeOption = Literal["--set", "--range", ""]
"""How a range is set: by a setting, by the option of commands without settings, or not for these images alone, as of
validation images, whose range is that of the training images."""


class Drawn(NamedTuple):
    """An image that is looked at."""

    path: str
    """For messages."""
    read: Callable[[], bytes]
    """Returns the file."""
    label: str | None = None
    """Name of its class, where it has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MissedImage:
    """One image that a range misses."""

    path: str
    levels: float
    """Of 256, by the range."""
    own_levels: float
    """By its own range."""
    values: tuple[float, float]
    """Between these lie 99 of 100 of its values."""
    own: tuple[float, float]
    """Range that shows it: of 8 bits the full one, of more these values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missed:
    """What a range misses of some images."""

    value_range: tuple[float, float]
    num_looked_at: int
    images: tuple[MissedImage, ...]
    whole_classes: tuple[tuple[str, int], ...] = ()
    """Classes all of whose images that were looked at are missed, at least two of each, and how many; empty where all
    classes are."""

    def warning(self, *, option: RangeOption) -> str:
        """Return what users are told."""
        low, high = self.value_range
        num, every = len(self.images), len(self.images) == self.num_looked_at
        least, most = min(one.values[0] for one in self.images), max(one.values[1] for one in self.images)
        which = f"{num} of {self.num_looked_at} image{'s' if self.num_looked_at > 1 else ''} looked at"
        first = self.images[0]
        words = [
            f"{which} {'is' if num == 1 else 'are'} nearly one colour by the range {low:g} to {high:g}: "
            f"{'its' if num == 1 else 'their'} values lie between {least:g} and {most:g} (first: "
            f"{first.path}, {max(1, round(first.levels))} of 256 grey levels, and {first.own_levels:.0f} by its own)"
        ]
        if self.whole_classes:
            named = [f"{name!r} ({count} of {count})" for name, count in self.whole_classes[:_NAMED_CLASSES]]
            rest = len(self.whole_classes) - len(named)
            named += [f"{rest} more"] if rest > 0 else []
            kind = "class" if len(self.whole_classes) == 1 else "classes"
            words.append(f"they are all that was seen of the {kind} {', '.join(named)}, which a model can tell by that")
        words.append(self._way_out(option, every=every))
        return "; ".join(words)

    def _way_out(self, option: RangeOption, *, every: bool) -> str:
        if not option:
            return "scale their values to those of the images that the range was made for"
        ends = f"{min(one.own[0] for one in self.images):g},{max(one.own[1] for one in self.images):g}"
        setting = f"--range {ends}" if option == "--range" else f"--set 'source.range=[{ends.replace(',', ', ')}]'"
        if every:
            return f"{setting} shows them"
        return f"no one range fits all: scale their values to those of the others, or take them apart, with {setting}"


def missed_by(images: Iterable[Drawn], decoding: Decoding) -> Missed | None:
    """Look at images through a range of given or found values; None where it misses none, or is no such range.

    Images that cannot be read are passed over: they are met where images are used.
    """
    wanted = decoding.value_range
    if not wanted.needs_values or wanted.low is None or wanted.high is None:
        return None
    missed: list[MissedImage] = []
    of_class: dict[str, list[bool]] = defaultdict(list)
    num_looked_at = 0
    for one in images:
        num_looked_at += 1
        with suppress(BadSample):
            found = look(one.path, one.read(), decoding)
            missed += [found] if found else []
            if one.label is not None:
                of_class[one.label].append(found is not None)
    if not missed:
        return None
    whole = tuple((name, len(are)) for name, are in of_class.items() if len(are) > 1 and all(are))
    return Missed(
        value_range=(wanted.low, wanted.high),
        num_looked_at=num_looked_at,
        images=tuple(missed),
        whole_classes=whole if any(not all(are) for are in of_class.values()) else (),
    )


def look(path: str, data: bytes, decoding: Decoding) -> MissedImage | None:
    """Return what a range makes of an image that it misses; None where it does not.

    Raises:
        BadSample: it cannot be read.
    """
    low, high = decoding.value_range.low, decoding.value_range.high
    assert low is not None and high is not None
    reduction = _reduction(data)
    small = replace(decoding, max_pixels=min(decoding.max_pixels, _MOST_PIXELS * reduction**2))
    samples = pick_channels(read_samples(data, small, reduction=reduction), decoding.channels)
    values = some_values(samples, 0)
    values = values[np.isfinite(values)]
    levels = effective_levels(values, low, high) if len(values) else 256.0
    if levels >= _FEW:
        return None
    least, most = (float(value) for value in np.percentile(values, _OWN, method="nearest"))
    if least >= most:
        return None
    is_shallow = samples.array.dtype.kind in "bu" and samples.array.dtype.itemsize == 1
    own = samples.full_range if is_shallow else (least, most)
    own_levels = effective_levels(values, *own)
    if own_levels < _MANY * levels or not _shows_something(samples, least, most):
        return None
    return MissedImage(path=path, levels=levels, own_levels=own_levels, values=(least, most), own=own)


def _shows_something(samples: Samples, least: float, most: float) -> bool:
    """Tell an image from an empty field, which is noise around a value."""
    if most - least < _SPREAD * max(abs(least), abs(most)):
        return False
    return _roughness(samples.array[..., 0].astype(np.float64).clip(least, most)) < _NOISE


def _roughness(pixels: NDArray[np.float64]) -> float:
    """Return the mean squared difference of neighbours over that of any two pixels; 0 where all are equal."""
    spread = 2 * float(np.nanvar(pixels))
    steps = [np.diff(pixels, axis=axis) ** 2 for axis in (0, 1) if pixels.shape[axis] > 1]
    if not spread or not steps:
        return 0.0
    return float(np.mean([np.nanmean(step) for step in steps])) / spread


def _reduction(data: bytes) -> int:
    """Return at which part of its size a JPEG is decoded."""
    found = size_of_image(data) if is_jpeg(data) else None
    if found is None:
        return 1
    return next((part for part in (8, 4, 2) if min(found[0]) >= part * _SIDE_PX), 1)
