"""The page of a fitness report: one HTML file that needs nothing but itself; its template is `page.html`.

Its figures are here, too: how often words are used, as SVG, and entropy by place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.common.pages.charts import Line, LineChart, line_svg
from beit.common.pages.html_page import render
from beit.common.pages.numbers import short_name
from beit.common.pages.pictures import FAINT, PALETTE, heat_colours
from beit.tokenize.fitness.report import FitnessReport
from beit.tokenize.fitness.rows import shown_rows
from beit.tokenize.fitness.sheet import GROUPS
from beit.tokenize.fitness.tokens import CURVE_POINTS, WordUsage
from beit.tokenize.fitness.verdicts import LEVEL_NAMES

MAP_COLOURS = ((25, 38, 66), (34, 87, 122), (56, 143, 135), (152, 190, 133), (244, 224, 163))
"""From low to high; ordered by lightness, so that it also reads in grey."""
MIN_MAP_RANGE_BITS = 1.0
"""The colours span at least this much, else chance would look like structure; arbitrary."""

_SIZE_PX = (540, 320)
_FLOOR = 2.0**-6
"""Lowest frequency drawn, in fair shares; words below it, and unused ones, lie on this line."""
_POISSON_LIMIT = 1000.0
"""Tokens per word from which chance cannot be seen in the curve, which is drawn flat."""
_NAMES_SHOWN = 100


def page(report: FitnessReport) -> str:
    """Return the whole page."""
    is_single = len(report.fitness) == 1
    by_title = [{verdict.title: verdict for verdict in verdicts} for verdicts in report.verdicts]
    titles = dict.fromkeys(title for found in by_title for title in found)
    verdicts = [report.images_verdict, *(verdict for found in by_title for verdict in found.values())]
    grids = [fitness.tokens.positions for fitness in report.fitness]
    low, high = map_range([grid.bits for grid in grids])
    strips = {group: [row for row in report.sheet if row.group == group] for group in GROUPS}
    return render(
        Path(__file__).with_name("page.html"),
        title=f"Tokenizer report: {report.labels[0]}" if is_single else "Tokenizers compared",
        report=report,
        description=replace(report, source=short_name(report.source)).describe(),
        is_single=is_single,
        level_names=LEVEL_NAMES,
        levels={title: [found[title].level if title in found else None for found in by_title] for title in titles},
        doubts=[
            (label, [verdict for verdict in found if verdict.level != "good"])
            for label, found in zip(report.labels, report.verdicts, strict=True)
        ],
        rules={verdict.title: verdict.rule for verdict in verdicts},
        strips={group: rows for group, rows in strips.items() if rows},
        curve=usage_curve(
            [fitness.tokens.words for fitness in report.fitness],
            [fitness.tokenizer.vocab_size for fitness in report.fitness],
            report.labels,
        ),
        num_colours=len(PALETTE),
        maps=[
            (label, grid, map_pixels(grid.bits, low, high)) for label, grid in zip(report.labels, grids, strict=True)
        ],
        map_range=(low, high),
        map_colours=MAP_COLOURS,
        rows=shown_rows(report.fitness),
        names_shown=_NAMES_SHOWN,
        speed=report.fitness[0].speed,
    )


def map_range(grids: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    """Return the values, in bits, that the first and the last colour stand for, common to all grids."""
    values = [value for grid in grids for row in grid for value in row]
    return min(*values, max(values) - MIN_MAP_RANGE_BITS), max(values)


def map_pixels(grid: Sequence[Sequence[float]], low: float, high: float) -> NDArray[np.uint8]:
    """Colour a grid of bits, one pixel per value, (h, w, 3) uint8."""
    return heat_colours((np.asarray(grid, dtype=np.float64) - low) / (high - low), MAP_COLOURS)


def usage_curve(usages: Sequence[WordUsage], vocab_sizes: Sequence[int], labels: Sequence[str]) -> str:
    """Draw how often each word occurs, from the most to the least frequent, as an SVG element.

    One line per tokenizer; for a single one also the pale line that chance would give equally likely words, and what it
    lies between shows how uneven they really are.
    """
    lines = [
        Line(name=label, points=_points(usage.curve), colour=PALETTE[number % len(PALETTE)])
        for number, (usage, label) in enumerate(zip(usages, labels, strict=True))
    ]
    if len(usages) == 1:
        even = _points(even_curve(usages[0].num_tokens / vocab_sizes[0]))
        lines.insert(0, Line(name="equally frequent words", points=even, colour=FAINT, is_faint=True))
    floor = int(math.log2(_FLOOR))
    top = max(2, math.ceil(math.log2(max(max(usage.curve) for usage in usages))))
    chart = LineChart(
        lines=lines,
        x_name="words, from the most to the least frequent",
        references=[(0.0, "")],
        x_ticks={share: f"{100 * share:.0f} %" for share in (0.0, 0.25, 0.5, 0.75, 1.0)},
        y_ticks={power: f"{2**power}" if power >= 0 else f"1/{2**-power}" for power in range(floor, top + 1, 2)},
        y_range=(floor, top),
    )
    return line_svg(chart, size_px=_SIZE_PX, description="Frequency of words from the most to the least frequent")


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


def _points(curve: Sequence[float]) -> list[tuple[float, float]]:
    """Place a curve over the share of the words, in powers of two."""
    shares = np.linspace(0.0, 1.0, len(curve)).tolist()
    return [(share, math.log2(max(value, _FLOOR))) for share, value in zip(shares, curve, strict=True)]
