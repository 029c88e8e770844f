"""Small charts in the style of the sheets of `pictures.py`: bars over whole numbers, dots around a line, lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.pages.pictures import FAINT, HIGHLIGHT, INK, PAPER, font

_LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 56, 12, 30, 44
_GRID = (228, 231, 235)
_DOT = (120, 170, 210)
_TITLE_TEXT_PX, _TEXT_PX = 15, 13
_STROKE_PX = 2
LINE_COLOURS = (HIGHLIGHT, (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""For lines beside each other; Okabe and Ito's."""
_GRID_PX = 60
"""Smallest distance of grid lines, about."""
_SLOPE_ZOOM = 3
"""Slanted lines are drawn this much larger and shrunk, which smooths them."""


class _Axes:
    """Paper with a title, two scales, and the way from values to pixels; drawn `zoom` times as large as it will be."""

    def __init__(
        self,
        size_px: tuple[int, int],
        *,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        zoom: int = 1,
    ) -> None:
        self._size_px, self.zoom = size_px, zoom
        self.image = Image.new("RGB", (size_px[0] * zoom, size_px[1] * zoom), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self._x_range, self._y_range = x_range, y_range
        self.left, self.right = _LEFT_PX * zoom, (size_px[0] - _RIGHT_PX) * zoom
        self.top, self.bottom = _TOP_PX * zoom, (size_px[1] - _BOTTOM_PX) * zoom

    def x(self, value: float) -> float:
        low, high = self._x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self._y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def text(self, place: tuple[float, float], text: str, *, anchor: str, is_title: bool = False) -> None:
        """Write at a place of the paper."""
        face = font((_TITLE_TEXT_PX if is_title else _TEXT_PX) * self.zoom)
        self.draw.text(place, text, fill=INK if is_title else FAINT, font=face, anchor=anchor)

    def label(self, *, title: str, x_name: str, x_ticks: Mapping[float, str], percent: bool = False) -> None:
        """Write title and scales, with a grid line per tick of the upright one."""
        zoom = self.zoom
        self.text((0, 2 * zoom), title, anchor="la", is_title=True)
        for tick in _ticks(*self._y_range, most=self._size_px[1] // _GRID_PX):
            height = self.y(tick)
            self.draw.line((self.left, height, self.right, height), fill=_GRID, width=zoom)
            self.text((self.left - 8 * zoom, height), f"{100 * tick:.3g} %" if percent else f"{tick:.6g}", anchor="rm")
        for tick, text in x_ticks.items():
            self.text((self.x(tick), self.bottom + 6 * zoom), text, anchor="ma")
        self.text(((self.left + self.right) / 2, self.image.height - 18 * zoom), x_name, anchor="ma")

    def finished(self) -> Image.Image:
        """Return the picture in the size that was asked for, with the line at the bottom."""
        self.draw.line((self.left, self.bottom, self.right, self.bottom), fill=FAINT, width=self.zoom)
        return self.image if self.zoom == 1 else self.image.resize(self._size_px, Image.Resampling.BOX)


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
    axes = _Axes(size_px, x_range=(first - 0.5, last + 0.5), y_range=(0.0, float(shares.max()) or 1.0))
    axes.label(title=title, x_name=x_name, x_ticks=_as_text(_some(range(first, last + 1), 8)), percent=True)
    for number, share in zip(range(first, last + 1), shares.tolist(), strict=True):
        if share:
            left, right = axes.x(number - 0.4), max(axes.x(number - 0.4), axes.x(number + 0.4))
            axes.draw.rectangle((left, axes.y(share), right, axes.bottom), fill=HIGHLIGHT)
    return axes.finished()


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
    axes = _Axes(size_px, x_range=(-0.5, count - 0.5), y_range=(0.0, 1.1 * largest or 1.0))
    axes.label(title=title, x_name=x_name, x_ticks=_as_text(_some(range(count), 24)))
    if reference:
        height = axes.y(reference[0])
        axes.draw.line((_LEFT_PX, height, size_px[0] - _RIGHT_PX, height), fill=FAINT, width=1)
        # Not beside the line, where dots are.
        name = f"grey line: {reference[1]}, {reference[0]:.3g}"
        axes.text((size_px[0] - _RIGHT_PX, 4), name, anchor="ra")
    for number, group in enumerate(values.tolist()):
        for value in group:
            _dot(axes, number, value, radius=4, colour=_DOT)
    means = values.mean(axis=1).tolist()
    points = [(axes.x(number), axes.y(mean)) for number, mean in enumerate(means)]
    axes.draw.line(points, fill=HIGHLIGHT, width=2)
    for number, mean in enumerate(means):
        _dot(axes, number, mean, radius=5, colour=HIGHLIGHT)
    return axes.finished()


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a `line_chart`."""

    name: str
    """For the key."""
    points: Sequence[tuple[float, float]]
    """(x, y) from left to right, at least one."""
    colour: tuple[int, int, int] = HIGHLIGHT
    """RGB."""
    is_faint: bool = False
    """Drawn pale and without dots: what only accompanies another line."""


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    size_px: tuple[int, int],
    references: Sequence[tuple[float, str]] = (),
    x_ticks: Mapping[float, str] | None = None,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
) -> Image.Image:
    """Draw how values develop; what the lines are is told by `line_key`.

    Args:
        lines: At least one.
        title: Above.
        x_name: Below.
        size_px: Width and height.
        references: Values to compare with, and what they are; grey lines.
        x_ticks: Places of the level scale and what to write there; by default round numbers from 0.
        y_range: Ends of the upright scale; by default what lines and references need, which need not begin at 0.
        percent: Write values times 100.

    Returns:
        RGB image.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [value for value, _ in references]
    low, high = min(ys), max(ys)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    left, right = min(xs), max(xs)
    if x_ticks is None:
        left = min(0.0, left)
    else:  # the texts at both ends need room
        left, right = left - 0.08 * (right - left), right + 0.08 * (right - left)
    if left == right:
        left, right = left - 0.5, right + 0.5
    axes = _Axes(
        size_px,
        x_range=(left, right),
        y_range=y_range or (max(0.0, low - margin) if low >= 0 else low - margin, high + margin),
        zoom=_SLOPE_ZOOM,
    )
    ticks = _as_text(_ticks(left, right)) if x_ticks is None else x_ticks
    axes.label(title=title, x_name=x_name, x_ticks=ticks, percent=percent)
    for value, name in references:
        height = axes.y(value)
        axes.draw.line((axes.left, height, axes.right, height), fill=FAINT, width=axes.zoom)
        axes.text((axes.right, height - 2 * axes.zoom), name, anchor="rd")
    for line in sorted(lines, key=lambda line: not line.is_faint):
        _draw_line(axes, line)
    return axes.finished()


def _draw_line(axes: _Axes, line: Line) -> None:
    places = [(axes.x(x), axes.y(y)) for x, y in line.points]
    colour = _shade(line)
    axes.draw.line(places, fill=colour, width=_STROKE_PX * axes.zoom, joint="curve")
    if len(places) == 1 or not line.is_faint:
        for x, y in line.points:
            _dot(axes, x, y, radius=3, colour=colour)


def line_key(lines: Sequence[Line], *, width_px: int) -> Image.Image:
    """Draw what the lines of charts are, in rows of at most `width_px`; RGB without margins."""
    zoom, face, length_px, gap_px, row_px = _SLOPE_ZOOM, font(_TEXT_PX * _SLOPE_ZOOM), 24, 6, 20
    places, left, row = [], 0.0, 0
    for line in lines:
        width = length_px + gap_px + face.getlength(line.name) / zoom + 3 * gap_px
        if left and left + width > width_px:
            left, row = 0.0, row + 1
        places.append((left * zoom, (row + 0.5) * row_px * zoom))
        left += width
    size = (width_px, (row + 1) * row_px)
    image = Image.new("RGB", (size[0] * zoom, size[1] * zoom), PAPER)
    draw = ImageDraw.Draw(image)
    for line, (x, y) in zip(lines, places, strict=True):
        draw.line((x, y, x + length_px * zoom, y), fill=_shade(line), width=_STROKE_PX * zoom)
        draw.text((x + (length_px + gap_px) * zoom, y), line.name, fill=INK, font=face, anchor="lm")
    return image.resize(size, Image.Resampling.BOX)


def _shade(line: Line) -> tuple[int, int, int]:
    red, green, blue = line.colour
    return ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2) if line.is_faint else line.colour


def _dot(axes: _Axes, x: float, y: float, *, radius: int, colour: tuple[int, int, int]) -> None:
    centre = (axes.x(x), axes.y(y))
    radius *= axes.zoom
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    axes.draw.ellipse(box, fill=colour, outline=PAPER)


def _ticks(low: float, high: float, *, most: int = 8) -> list[float]:
    """Return round numbers between two, at most about `most`."""
    rough = (high - low) / max(1, most)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough)
    return [number * step for number in range(math.ceil(low / step - 1e-9), int(high / step + 1e-9) + 1)]


def _as_text(numbers: Iterable[float]) -> dict[float, str]:
    return {number: f"{number:g}" for number in numbers}


def _some(numbers: Sequence[int], most: int) -> list[int]:
    """Return evenly spaced numbers, at most about `most`."""
    return list(numbers[:: max(1, -(-len(numbers) // most))])
