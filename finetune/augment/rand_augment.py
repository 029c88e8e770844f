"""RandAugment: a few random operations of a common strength on every training image.

The operations are those of timm's policy strings such as `rand-m9-mstd0.5-inc1`, which BEiT fine-tunes with, on Pillow
images; their random numbers are ours, counter-based. Where in the order of a view they stand is `augment.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageOps

from beit.common.errors import InputError, require
from beit.common.rng import CounterRng

MAX_LEVEL = 10.0
"""Strength at which operations reach the end of their range."""
OFF = "none"
"""Policy string of no RandAugment."""

_PROBABILITY = 0.5  # of applying an operation that was drawn; timm's
_MAX_DEGREES, _MAX_SHEAR, _MAX_SHIFT, _MAX_ADD, _MAX_ENHANCE = 30.0, 0.3, 0.45, 110, 0.9
_SECTION = re.compile(r"(mstd|inc|m|n)(\d+(?:\.\d+)?)")

Color = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Canvas:
    """What geometric operations need beside the image."""

    fill: Color
    """Of what comes into view from outside the image, a number for each of its channels."""
    resample: Image.Resampling
    """Filter of rotations, shears and shifts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugmentPolicy:
    """What a policy string says."""

    magnitude: float
    """Mean strength, from 0 to 10."""
    magnitude_std: float
    """Standard deviation of the strength; drawn ones are clipped to [0, 10]."""
    num_layers: int
    """Operations drawn per image, with repetition; each is applied with probability 1/2."""


def parse_policy(text: str) -> RandAugmentPolicy | None:
    """Read a policy string, timm's spelling; None for "none".

    It is "rand" and then, in any order, m (strength), n (operations per image, 2 if left out), mstd (spread of the
    strength, 0 if left out) and inc1, joined by dashes.
    """
    if text == OFF:
        return None
    first, *sections = text.split("-")
    matches = [_SECTION.fullmatch(section) for section in sections]
    found = {match[1]: float(match[2]) for match in matches if match}
    if first != "rand" or len(found) != len(sections) or "m" not in found:
        raise InputError(f"augment.rand_augment ({text!r}) must read like rand-m9-mstd0.5-inc1, or be {OFF!r}")
    require(
        found.get("inc") == 1,
        f"augment.rand_augment ({text!r}) must contain inc1: only operations that grow with the strength are here",
    )
    policy = RandAugmentPolicy(
        magnitude=found["m"], magnitude_std=found.get("mstd", 0.0), num_layers=int(found.get("n", 2))
    )
    require(policy.magnitude <= MAX_LEVEL, f"augment.rand_augment ({text!r}): m must be at most {MAX_LEVEL:g}")
    require(policy.num_layers >= 1, f"augment.rand_augment ({text!r}): n must be at least 1; use {OFF!r} for none")
    return policy


def rand_augment(image: Image.Image, policy: RandAugmentPolicy, rng: CounterRng, canvas: Canvas) -> Image.Image:
    """Apply randomly drawn operations to an RGB or grey image; its size stays. `rng` owns all randomness.

    Operations are the same for grey images, which "color" leaves as they are: it is drawn all the same, so that a grey
    image sees what the same grey in three channels would.

    Source: RandAugment (Cubuk et al. 2019) as timm has it, `timm/data/auto_augment.py`; every operation gives the
        pixels of timm 1.0.31. Differs: random numbers; posterizing to no bit, which recent Pillow refuses in timm, is
        black.
    """
    operations = tuple(OPERATIONS.values())
    for _ in range(policy.num_layers):
        operation = operations[rng.integers(0, len(operations) - 1)]
        is_applied = rng.uniform() < _PROBABILITY
        level = min(max(policy.magnitude + policy.magnitude_std * _normal(rng), 0.0), MAX_LEVEL)
        sign = 1.0 if rng.uniform() < 0.5 else -1.0
        if is_applied:
            image = operation(image, level / MAX_LEVEL, sign, canvas)
    return image


def _normal(rng: CounterRng) -> float:
    radius = math.sqrt(-2.0 * math.log(1.0 - rng.uniform()))
    return radius * math.cos(2.0 * math.pi * rng.uniform())


def _fill(image: Image.Image, canvas: Canvas) -> Color | int:
    """Return the canvas' colour in the form that Pillow has for the mode of an image."""
    return canvas.fill[0] if image.mode == "L" else canvas.fill


Operation = Callable[[Image.Image, float, float, Canvas], Image.Image]
"""Of an image, the strength divided by 10, a sign of 1 or -1, and the canvas; not all look at the last two."""


def _mapped(image: Image.Image, table: list[int]) -> Image.Image:
    """Replace every value of every channel by that of a table."""
    return image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Keep only the 4 highest bits, down to none at full strength."""
    kept = 4 - int(share * 4)
    mask = 0xFF & ~(0xFF >> kept)
    return _mapped(image, [value & mask for value in range(256)])  # ImageOps.posterize refuses to keep no bit


def _solarize_add(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Brighten what is darker than 128 by up to 110."""
    added = int(share * _MAX_ADD)
    return _mapped(image, [min(255, value + added) if value < 128 else value for value in range(256)])


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Return what takes from a property or adds to it; a factor of 1 changes nothing."""
    return lambda image, share, sign, canvas: kind(image).enhance(max(0.1, 1.0 + sign * share * _MAX_ENHANCE))


def _moved(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Operation:
    """Return what moves pixels by an affine matrix, which depends on the signed share and the image's size."""
    affine = Image.Transform.AFFINE
    return lambda image, share, sign, canvas: image.transform(
        image.size, affine, matrix(sign * share, image), resample=canvas.resample, fillcolor=_fill(image, canvas)
    )


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda image, share, sign, canvas: ImageOps.autocontrast(image),
    "equalize": lambda image, share, sign, canvas: ImageOps.equalize(image),
    "invert": lambda image, share, sign, canvas: ImageOps.invert(image),
    "rotate": lambda image, share, sign, canvas: image.rotate(
        sign * share * _MAX_DEGREES, resample=canvas.resample, fillcolor=_fill(image, canvas)
    ),
    "posterize": _posterize,
    "solarize": lambda image, share, sign, canvas: ImageOps.solarize(image, 256 - int(share * 256)),
    "solarize_add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": _moved(lambda share, image: (1, share * _MAX_SHEAR, 0, 0, 1, 0)),
    "shear_y": _moved(lambda share, image: (1, 0, 0, share * _MAX_SHEAR, 1, 0)),
    "translate_x": _moved(lambda share, image: (1, 0, share * _MAX_SHIFT * image.width, 0, 1, 0)),
    "translate_y": _moved(lambda share, image: (1, 0, 0, 0, 1, share * _MAX_SHIFT * image.height)),
}
"""What is drawn from, all alike; timm's list and order of operations that grow with the strength."""
