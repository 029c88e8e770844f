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
    """RGB of what comes into view from outside the image."""
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
    """Read a policy string, timm's spelling.

    Args:
        text: "rand" and then, in any order, m (strength), n (operations per image, 2 if left out), mstd (spread of the
            strength, 0 if left out) and inc1, joined by dashes; or "none".
    Returns:
        The policy; None for "none".
    Raises:
        InputError: it reads otherwise, or a number is out of range.
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
    """Apply randomly drawn operations.

    Args:
        image: RGB.
        policy: Strength and number of the operations.
        rng: Owns all randomness; same state, same result.
        canvas: Of geometric operations.
    Returns:
        RGB image of the same size.
    Source: RandAugment (Cubuk et al. 2019) as timm has it, `timm/data/auto_augment.py`; every operation gives the
        pixels of timm 1.0.31. Differs: random numbers; posterizing to no bit, which recent Pillow refuses in timm, is
        black.
    """
    for _ in range(policy.num_layers):
        operation = OPERATIONS[rng.integers(0, len(OPERATIONS) - 1)]
        is_applied = rng.uniform() < _PROBABILITY
        level = min(max(policy.magnitude + policy.magnitude_std * _normal(rng), 0.0), MAX_LEVEL)
        sign = 1.0 if rng.uniform() < 0.5 else -1.0
        if is_applied:
            image = operation(image, level / MAX_LEVEL, sign, canvas)
    return image


def _normal(rng: CounterRng) -> float:
    radius = math.sqrt(-2.0 * math.log(1.0 - rng.uniform()))
    return radius * math.cos(2.0 * math.pi * rng.uniform())


# Below, `share` is the strength divided by 10 and `sign` is 1 or -1; operations without a direction ignore it.


def auto_contrast(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Stretch every channel to the full range."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Equalise the histogram of every channel."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Turn every value into 255 minus it."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Rotate by up to 30 degrees."""
    return image.rotate(sign * share * _MAX_DEGREES, resample=canvas.resample, fillcolor=canvas.fill)


def posterize(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Keep only the 4 highest bits, down to none at full strength."""
    kept = 4 - int(share * 4)
    mask = 0xFF & ~(0xFF >> kept)
    return image.point([value & mask for value in range(256)] * 3)  # ImageOps.posterize refuses to keep no bit


def solarize(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Invert what is at least as bright as a threshold, from 256 down to 0."""
    return ImageOps.solarize(image, 256 - int(share * 256))


def solarize_add(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Brighten what is darker than 128 by up to 110."""
    added = int(share * _MAX_ADD)
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def color(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Change the saturation."""
    return ImageEnhance.Color(image).enhance(_factor(share, sign))


def contrast(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Change the contrast."""
    return ImageEnhance.Contrast(image).enhance(_factor(share, sign))


def brightness(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Change the brightness."""
    return ImageEnhance.Brightness(image).enhance(_factor(share, sign))


def sharpness(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Blur or sharpen."""
    return ImageEnhance.Sharpness(image).enhance(_factor(share, sign))


def shear_x(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Shear along the rows by up to 0.3."""
    return _affine(image, (1, sign * share * _MAX_SHEAR, 0, 0, 1, 0), canvas)


def shear_y(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Shear along the columns by up to 0.3."""
    return _affine(image, (1, 0, 0, sign * share * _MAX_SHEAR, 1, 0), canvas)


def translate_x(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Shift sideways by up to 0.45 of the width."""
    return _affine(image, (1, 0, sign * share * _MAX_SHIFT * image.width, 0, 1, 0), canvas)


def translate_y(image: Image.Image, share: float, sign: float, canvas: Canvas) -> Image.Image:
    """Shift up or down by up to 0.45 of the height."""
    return _affine(image, (1, 0, 0, 0, 1, sign * share * _MAX_SHIFT * image.height), canvas)


def _factor(share: float, sign: float) -> float:
    """Return an enhancement factor: 1 changes nothing, and both directions grow with the strength."""
    return max(0.1, 1.0 + sign * share * _MAX_ENHANCE)


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=canvas.resample, fillcolor=canvas.fill)


Operation = Callable[[Image.Image, float, float, Canvas], Image.Image]

OPERATIONS: tuple[Operation, ...] = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
"""What is drawn from, all alike; timm's list and order of operations that grow with the strength."""
