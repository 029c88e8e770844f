"""Two small charts in the style of the sheets of `pictures.py`: bars over whole numbers, and dots around a line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.pictures import FAINT, HIGHLIGHT, INK, PAPER, font

_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 56, 12, 30, 44
_GRID = (228, 231, 235)
_DOT = (120, 170, 210)
_TITLE_TEXT_PX, _TEXT_PX = 15, 13


class _Axes:
    """Paper with a title, two scales, and the way from values to pixels."""

    def __init__(self, size_px: tuple[int, int], *, x_range: tuple[float, float], y_max: float) -> None:
        self.image = Image.new("RGB", size_px, PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self._x_range, self._y_max = x_range, y_max or 1.0
        self.bottom = size_px[1] - _BOTTOM_PX

    def x(self, value: float) -> float:
        low, high = self._x_range
        return _LEFT_PX + (value - low) / (high - low) * (self.image.width - _LEFT_PX - _RIGHT_PX)

    def y(self, value: float) -> float:
        return self.bottom - value / self._y_max * (self.bottom - _TOP_PX)

    def label(self, *, title: str, x_name: str, x_ticks: Sequence[int], percent: bool = False) -> None:
        """Write title and scales, with a grid line per tick of the upright one."""
        draw = self.draw
        draw.text((0, 2), title, fill=INK, font=font(_TITLE_TEXT_PX))
        for tick in _ticks(self._y_max):
            height = self.y(tick)
            draw.line((_LEFT_PX, height, self.image.width - _RIGHT_PX, height), fill=_GRID)
            text = f"{100 * tick:.3g} %" if percent else f"{tick:g}"
            draw.text((_LEFT_PX - 8, height), text, fill=FAINT, font=font(_TEXT_PX), anchor="rm")
        for tick in x_ticks:
            draw.text((self.x(tick), self.bottom + 6), f"{tick}", fill=FAINT, font=font(_TEXT_PX), anchor="ma")
        centre = (_LEFT_PX + self.image.width - _RIGHT_PX) / 2
        draw.text((centre, self.image.height - 18), x_name, fill=FAINT, font=font(_TEXT_PX), anchor="ma")


def bar_chart(
    shares: NDArray[np.floating], *, first: int, title: str, x_name: str, size_px: tuple[int, int]
) -> Image.Image:
    """Draw how often each whole number occurred.

    Args:
        shares: (n,), of the numbers `first`, `first` + 1, ...
        first: Smallest number.
        title: Above.
        x_name: Below.
        size_px: Width and height.

    Returns:
        RGB image.
    """
    last = first + len(shares) - 1
    axes = _Axes(size_px, x_range=(first - 0.5, last + 0.5), y_max=float(shares.max()))
    axes.label(title=title, x_name=x_name, x_ticks=_some(range(first, last + 1), 8), percent=True)
    for number, share in zip(range(first, last + 1), shares.tolist(), strict=True):
        if share:
            left, right = axes.x(number - 0.4), max(axes.x(number - 0.4), axes.x(number + 0.4))
            axes.draw.rectangle((left, axes.y(share), right, axes.bottom), fill=HIGHLIGHT)
    axes.draw.line((_LEFT_PX, axes.bottom, size_px[0] - _RIGHT_PX, axes.bottom), fill=FAINT)
    return axes.image


def dot_chart(
    values: NDArray[np.floating],
    *,
    title: str,
    x_name: str,
    size_px: tuple[int, int],
    reference: tuple[float, str] | None = None,
) -> Image.Image:
    """Draw groups of values as dots, and their means as a line.

    Args:
        values: (groups, values of a group), none negative; groups are numbered from 0.
        title: Above.
        x_name: Below.
        size_px: Width and height.
        reference: A value to compare with, and what it is; a grey line.

    Returns:
        RGB image.
    """
    count = len(values)
    largest = max(float(values.max()), reference[0] if reference else 0.0)
    axes = _Axes(size_px, x_range=(-0.5, count - 0.5), y_max=1.1 * largest)
    axes.label(title=title, x_name=x_name, x_ticks=_some(range(count), 24))
    if reference:
        height = axes.y(reference[0])
        axes.draw.line((_LEFT_PX, height, size_px[0] - _RIGHT_PX, height), fill=FAINT, width=1)
        # Not beside the line, where dots are.
        name = f"grey line: {reference[1]}, {reference[0]:.3g}"
        axes.draw.text((size_px[0] - _RIGHT_PX, 4), name, fill=FAINT, font=font(_TEXT_PX), anchor="ra")
    for number, group in enumerate(values.tolist()):
        for value in group:
            _dot(axes, number, value, radius=4, colour=_DOT)
    means = values.mean(axis=1).tolist()
    points = [(axes.x(number), axes.y(mean)) for number, mean in enumerate(means)]
    axes.draw.line(points, fill=HIGHLIGHT, width=2)
    for number, mean in enumerate(means):
        _dot(axes, number, mean, radius=5, colour=HIGHLIGHT)
    axes.draw.line((_LEFT_PX, axes.bottom, size_px[0] - _RIGHT_PX, axes.bottom), fill=FAINT)
    return axes.image


def _dot(axes: _Axes, x: float, y: float, *, radius: int, colour: tuple[int, int, int]) -> None:
    centre = (axes.x(x), axes.y(y))
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    axes.draw.ellipse(box, fill=colour, outline=PAPER)


def _ticks(largest: float) -> list[float]:
    """Return round numbers from 0 up to `largest`, about four."""
    rough = largest / 4
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough)
    return [number * step for number in range(int(largest / step + 1e-9) + 1)]


def _some(numbers: Sequence[int], most: int) -> list[int]:
    """Return evenly spaced numbers, at most about `most`."""
    return list(numbers[:: max(1, -(-len(numbers) // most))])
