"""Pictures of a fitness report, ready to stand in a page: inline SVG, and pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from beit.tokenize.fitness.tokens import CURVE_POINTS, WordUsage

MAP_COLOURS = ((25, 38, 66), (34, 87, 122), (56, 143, 135), (152, 190, 133), (244, 224, 163))
"""From low to high; ordered by lightness, so that it also reads in grey."""
LINE_COLOURS = 6
"""Colours of lines in the style sheet; more tokenizers share them in turn."""
MIN_MAP_RANGE_BITS = 1.0
"""The colours span at least this much, else chance would look like structure; arbitrary."""

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 44
_FLOOR = 2.0**-6
"""Lowest frequency drawn, in fair shares; words below it, and unused ones, lie on this line."""
_POISSON_LIMIT = 1000.0
"""Tokens per word from which chance cannot be seen in the curve, which is drawn flat."""


def map_range(grids: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    """Return the values, in bits, that the first and the last colour stand for, common to all grids."""
    values = [value for grid in grids for row in grid for value in row]
    return min(*values, max(values) - MIN_MAP_RANGE_BITS), max(values)


def map_pixels(grid: Sequence[Sequence[float]], low: float, high: float) -> NDArray[np.uint8]:
    """Colour a grid of bits, one pixel per value, (h, w, 3) uint8."""
    place = (np.asarray(grid, dtype=np.float64) - low) / (high - low)
    stops = np.linspace(0.0, 1.0, len(MAP_COLOURS))
    channels = [np.interp(place, stops, [colour[channel] for colour in MAP_COLOURS]) for channel in range(3)]
    return np.asarray(np.stack(channels, axis=-1).round(), dtype=np.uint8)


def usage_curve(usages: Sequence[WordUsage], vocab_sizes: Sequence[int], labels: Sequence[str]) -> str:
    """Draw how often each word occurs, from the most to the least frequent, as an SVG element.

    One line per tokenizer, coloured by the classes line0, line1, ...; for a single one also the line that chance would
    give equally likely words, and what it lies between shows how uneven they really are.
    """
    top = max(4.0, 2.0 ** math.ceil(math.log2(max(max(usage.curve) for usage in usages))))
    parts = [_axes(top)]
    if len(usages) == 1:
        even = even_curve(usages[0].num_tokens / vocab_sizes[0])
        parts.append(f'<polyline class="even" points="{_points(even, top)}"/>')
    for number, (usage, label) in enumerate(zip(usages, labels, strict=True)):
        points = _points(usage.curve, top)
        name = f"<title>{escape(label)}</title>"
        parts.append(f'<polyline class="line line{number % LINE_COLOURS}" points="{points}">{name}</polyline>')
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="Frequency of words from the most to the least frequent">{"".join(parts)}</svg>'
    )


def even_curve(tokens_per_word: float) -> list[float]:
    """Return the usage curve that equally likely words have on average, `CURVE_POINTS` values in fair shares.

    Counts of a word are then Poisson; the curve is their quantiles, from the largest down.
    """
    if tokens_per_word > _POISSON_LIMIT:
        return [1.0] * CURVE_POINTS
    counts = np.arange(int(tokens_per_word + 12.0 * math.sqrt(tokens_per_word) + 24.0))
    log_factorials = np.array([math.lgamma(count + 1.0) for count in counts])
    share_up_to = np.cumsum(np.exp(counts * math.log(tokens_per_word) - tokens_per_word - log_factorials))
    ranks = (np.arange(CURVE_POINTS) + 0.5) / CURVE_POINTS
    places = np.minimum(np.searchsorted(share_up_to, 1.0 - ranks), len(counts) - 1)
    return [float(value) for value in counts[places] / tokens_per_word]


def _points(curve: Sequence[float], top: float) -> str:
    xs = np.linspace(_LEFT, _WIDTH - _RIGHT, len(curve))
    return " ".join(f"{x:.1f},{_y(value, top):.1f}" for x, value in zip(xs, curve, strict=True))


def _y(value: float, top: float) -> float:
    low, high = math.log2(_FLOOR), math.log2(top)
    share = (math.log2(max(value, _FLOOR)) - low) / (high - low)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _axes(top: float) -> str:
    parts = []
    exponent = int(math.log2(_FLOOR))
    while exponent <= math.log2(top):
        y = _y(2.0**exponent, top)
        name = f"{2**exponent}" if exponent >= 0 else f"1/{2**-exponent}"
        kind = "fair" if exponent == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        exponent += 2
    for quarter in range(5):
        x = _LEFT + quarter / 4 * (_WIDTH - _LEFT - _RIGHT)
        anchor = "end" if quarter == 4 else ("start" if quarter == 0 else "middle")
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="{anchor}">{25 * quarter} %</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">words, from the most to the least frequent</text>'
    )
    return "".join(parts)
