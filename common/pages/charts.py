"""Charts, by matplotlib, in the colours of the sheets of `pictures.py`: lines, bars, dots.

They are pictures, and lines also SVG that stands in a page and follows its light and dark colours. Only what draws
imports this module, and only when it draws: matplotlib takes half a second.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray
from PIL import Image

from beit.common.pages.fonts import fitted, text_px
from beit.common.pages.pictures import FAINT, HIGHLIGHT, INK, PALETTE, PAPER
from beit.common.pages.svg import GRID, hex_colour, silent_about_letters, svg_element
from beit.common.pages.ticks import tick_values

Colour = tuple[int, int, int]
_DOT = (120, 170, 210)
_TEXT_PX, _TITLE_PX, _KEY_LINE_PX = 13, 15, 20
_MOST_DOTS = 60
_RING_PX = 10
"""From a point that is ringed to what is written beside it."""
_FARTHER_PX = (0, 8, 16)
"""Besides, where lines are in the way; farther it would not be seen whose name it is."""
_PLACES = 9
"""Along a grey line where its name may stand, from right to left; arbitrary."""
_DENSE = 400
"""Points of a line that are kept free of text; closer than letters are wide."""
_TICK_STEPS = (1, 2, 2.5, 5, 10)


_STYLE = {
    "figure.dpi": 72,  # one point is one pixel
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.wspace": 0.06,
    "figure.constrained_layout.hspace": 0.04,
    "text.hinting": "none",  # letters where they belong, rather than on whole pixels
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that charts are the same everywhere
    "font.size": _TEXT_PX,
    "axes.titlesize": _TITLE_PX,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.titlecolor": hex_colour(INK),
    "axes.labelcolor": hex_colour(FAINT),
    "axes.labelsize": _TEXT_PX,
    "axes.labelpad": 9,  # room for the larger letters of a page on a phone
    "axes.edgecolor": hex_colour(FAINT),
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": hex_colour(GRID),
    "grid.linewidth": 1,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.labelcolor": hex_colour(INK),
    "svg.fonttype": "none",
    "svg.hashsalt": "beit",
} | {
    f"{axis}tick.{name}": value
    for axis in "xy"
    for name, value in {"labelcolor": hex_colour(FAINT), "labelsize": _TEXT_PX, "major.size": 0, "major.pad": 6}.items()
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    """For the key."""
    points: Sequence[tuple[float, float]]
    """(x, y) from left to right, at least one."""
    colour: Colour = HIGHLIGHT
    """RGB."""
    is_faint: bool = False
    """Drawn pale and without dots: what only accompanies another line."""
    is_dotted: bool = True
    """Whether few points are marked: measurements, not what is known all the time."""
    mark: tuple[float, float, str] | None = None
    """(x, y) of a point that is ringed, and what to write beside it."""
    half_widths: Sequence[float | None] = ()
    """Of the interval around each point, drawn as an upright stroke; None where there is none."""

    @property
    def has_dots(self) -> bool:
        """Whether its points are marked; many would hide the line."""
        is_marked = self.is_dotted and not self.is_faint
        return len(self.points) == 1 or is_marked and len(self.points) <= _MOST_DOTS


@dataclass(frozen=True, kw_only=True, slots=True)
class LineChart:
    """Lines over a common scale."""

    lines: Sequence[Line]
    """At least one."""
    title: str = ""
    """Above."""
    x_name: str
    """Below."""
    references: Sequence[tuple[float, str]] = ()
    """Values to compare with, and what they are; grey lines."""
    x_ticks: Mapping[float, str] | None = None
    """Places of the level scale and what to write there; by default round numbers from 0."""
    x_range: tuple[float, float] | None = None
    """Ends of the level scale; by default what lines need."""
    y_ticks: Mapping[float, str] | None = None
    """The same of the upright scale."""
    y_range: tuple[float, float] | None = None
    """Ends of the upright scale; by default what lines and references need, which need not begin at 0."""
    percent: bool = False
    """Write values times 100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalRow:
    """Values of repetitions in a row of a chart, and what they come to."""

    name: str
    """On its left."""
    values: Sequence[float]
    """One or more."""
    mean: float
    """Of them."""
    half_width: float | None
    """The interval is mean +- this; None where there is none."""


def line_charts(charts: Sequence[LineChart], *, chart_px: tuple[int, int], columns: int, key: bool) -> Image.Image:
    """Draw how values develop, in several charts.

    Args:
        charts: Row after row.
        chart_px: Width and height of each.
        columns: Charts in a row, at most.
        key: Say at the top what the lines are, those that are not faint.

    Returns:
        RGB image.
    """
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    width_px, height_px = columns * chart_px[0], rows * chart_px[1]
    names = {line.name: line.colour for chart in charts for line in chart.lines if not line.is_faint} if key else {}
    if names:
        key_columns = max(1, min(len(names), int(width_px / (max(text_px(name, _TEXT_PX) for name in names) + 60))))
        height_px += _KEY_LINE_PX * (1 - (-len(names) // key_columns))
        names = {fitted(name, width_px - 80, _TEXT_PX): colour for name, colour in names.items()}
    with _figure((width_px, height_px)) as figure:
        if names:
            handles = [Line2D([], [], color=hex_colour(colour), label=name) for name, colour in names.items()]
            figure.legend(handles=handles, loc="outside upper left", ncols=key_columns)
        drawn = [figure.add_subplot(rows, columns, number + 1) for number in range(len(charts))]
        for axes, chart in zip(drawn, charts, strict=True):
            _draw_lines(axes, chart)
        figure.draw_without_rendering()
        for axes, chart in zip(drawn, charts, strict=True):
            _write_names(axes, chart)
        return _image(figure)


def line_svg(chart: LineChart, *, size_px: tuple[int, int], description: str) -> str:
    """Draw one chart as an SVG element in the colours of the style of pages."""
    with _figure(size_px) as figure:
        axes = figure.add_subplot()
        _draw_lines(axes, chart, markers=False)
        figure.draw_without_rendering()
        _draw_circles(axes, chart.lines)
        _write_names(axes, chart)
        for text in axes.texts:  # letters with an outline would be shapes; the style of pages outlines them
            text.set_path_effects([])
        return svg_element(figure, size_px, description, [line.name for line in chart.lines])


def interval_svg(
    rows: Sequence[IntervalRow],
    *,
    reference: tuple[float, str] | None,
    percent: bool,
    x_name: str,
    size_px: tuple[int, int],
    description: str,
) -> str:
    """Draw repeated values row by row, with their means and intervals, as an SVG element; the first row is on top.

    Args:
        rows: One or more.
        reference: A value to compare with, and what it is; a grey line.
        percent: Write values times 100.
        x_name: Below.
        size_px: Width and height.
        description: For those who do not see it.
    """
    with _figure(size_px) as figure:
        axes = figure.add_subplot()
        for place, row in enumerate(rows):
            colour = hex_colour(PALETTE[place % len(PALETTE)])
            for value in row.values:  # strokes: dots would be references, which pages do without
                axes.plot([value] * 2, [place - 0.13, place + 0.13], color=colour, alpha=0.6, linewidth=2)
            axes.plot([row.mean] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=4)
            if row.half_width is not None:
                ends = [row.mean - row.half_width, row.mean + row.half_width]
                axes.plot(ends, [place, place], color=colour, linewidth=3)
        _label(axes, title="", x_name=x_name)
        axes.grid(False)
        axes.grid(True, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.xaxis.set_major_formatter(tick_values(percent))
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.tick_params(axis="y", labelcolor=hex_colour(INK))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.06)
        if reference is not None:
            axes.axvline(reference[0], color=hex_colour(FAINT), linewidth=1, zorder=1)
            axes.annotate(
                reference[1],
                (reference[0], -0.5),
                (0, 2),
                textcoords="offset points",
                horizontalalignment="center",
                verticalalignment="bottom",
                color=hex_colour(FAINT),
                annotation_clip=False,
            )
        return svg_element(figure, size_px, description)


def _draw_lines(axes: Axes, chart: LineChart, *, markers: bool = True) -> None:
    for number, line in enumerate(chart.lines):
        axes.plot(
            *zip(*line.points, strict=True),
            color=hex_colour(line.colour),
            alpha=0.5 if line.is_faint else 1.0,
            zorder=2.1 if line.is_faint else 2.2,
            clip_on=False,
            marker="o" if markers and line.has_dots else "",
            markersize=7,
            markeredgecolor=hex_colour(PAPER),
            gid=f"series{number}",
        )
        for (x, y), half_width in zip(line.points, line.half_widths, strict=False):
            if half_width is not None:
                ends = np.clip([y - half_width, y + half_width], *(chart.y_range or (-np.inf, np.inf)))
                axes.plot(
                    [x, x], ends, color=hex_colour(line.colour), alpha=0.55, linewidth=5, zorder=2.1, clip_on=False
                )
    _set_ranges(axes, chart)
    for value, _ in chart.references:
        axes.axhline(value, color=hex_colour(FAINT), linewidth=1)
    for line in chart.lines if markers else ():
        _draw_mark(axes, line)
    _label(axes, title=chart.title, x_name=chart.x_name, percent=chart.percent)
    if chart.x_ticks is not None:
        axes.set_xticks(list(chart.x_ticks), list(chart.x_ticks.values()))
    if chart.y_ticks is not None:
        axes.set_yticks(list(chart.y_ticks), list(chart.y_ticks.values()))


def _write_names(axes: Axes, chart: LineChart) -> None:
    """Write what is ringed and what the grey lines are, each where the fewest lines and no other text are.

    The layout must be final, since places are pixels.
    """
    lines_px = [_dense(axes.transData.transform(np.asarray(line.points, np.float64))) for line in chart.lines]
    levels = [axes.transData.transform((0, value))[1] for value, _ in chart.references]
    between = np.linspace(axes.bbox.x0, axes.bbox.x1, _DENSE)
    lines_px += [np.column_stack([between, np.full(_DENSE, level)]) for level in levels]
    hidden = np.concatenate(lines_px)  # (n, 2) places that a text would hide
    rings = [axes.transData.transform(line.mark[:2]) for line in chart.lines if line.mark is not None]
    taken = [_Box(x - _RING_PX, y - _RING_PX, x + _RING_PX, y + _RING_PX) for x, y in rings]
    for line in chart.lines:
        if line.mark is None or not line.mark[2]:
            continue
        x, y = axes.transData.transform(line.mark[:2])
        wide = text_px(line.mark[2], _TEXT_PX)
        starts = [x - wide / 2, x, x - wide, x + _RING_PX, x - wide - _RING_PX]
        starts = [start for start in starts if axes.bbox.x0 <= start <= axes.bbox.x1 - wide] or [axes.bbox.x1 - wide]
        tops = [
            top
            for far in _FARTHER_PX
            for top in (y + _RING_PX + _TEXT_PX + far, y - _RING_PX - far)
            if axes.bbox.y0 + _TEXT_PX <= top <= axes.bbox.y1 + _TEXT_PX
        ]
        boxes = [_Box(start, top - _TEXT_PX, start + wide, top) for top in tops for start in starts]
        _write(axes, line.mark[2], INK, boxes, hidden, taken)
    for level, (_, name) in zip(levels, chart.references, strict=True):
        wide = text_px(name, _TEXT_PX)
        starts = np.linspace(axes.bbox.x1 - wide, axes.bbox.x0 + 2, _PLACES).tolist()
        tops = [level + 3 + _TEXT_PX, level - 4]
        boxes = [_Box(start, top - _TEXT_PX, start + wide, top) for start in starts for top in tops]
        if name:
            _write(axes, name, FAINT, boxes, hidden, taken)


class _Box(NamedTuple):
    """A rectangle, in pixels from the lower left."""

    left: float
    bottom: float
    right: float
    top: float

    def holds(self, points: NDArray[np.float64]) -> int:
        """Count the points, (n, 2), inside."""
        inside = (points > (self.left, self.bottom)) & (points < (self.right, self.top))
        return int(inside.all(axis=1).sum())

    @property
    def roomier(self) -> _Box:
        """The same with room around: letters are larger on a phone, by a sixth, and should not touch a line."""
        aside = 6 + (self.right - self.left) / 6
        return _Box(self.left - aside, self.bottom - 2, self.right + aside, self.top + 3)

    def meets(self, other: _Box) -> bool:
        """Tell whether two overlap."""
        return min(self.right, other.right) > max(self.left, other.left) and min(self.top, other.top) > max(
            self.bottom, other.bottom
        )


def _write(
    axes: Axes, text: str, colour: Colour, boxes: Sequence[_Box], hidden: NDArray[np.float64], taken: list[_Box]
) -> None:
    """Write a text into the first of the best boxes."""
    best = min(boxes, key=lambda box: (sum(map(box.meets, taken)), box.holds(hidden), box.roomier.holds(hidden)))
    taken.append(best)
    # Anchored where larger letters, as those of a page on a phone, do not grow out of the chart.
    is_right = best.left + best.right > axes.bbox.x0 + axes.bbox.x1
    axes.annotate(
        text,
        (best.right if is_right else best.left, best.bottom + 3),  # letters reach below their line
        xycoords="figure pixels",
        horizontalalignment="right" if is_right else "left",
        color=hex_colour(colour),
        path_effects=[withStroke(linewidth=3, foreground=hex_colour(PAPER))],
        zorder=2.4,
        annotation_clip=False,
    )


def _dense(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return many points, (n, 2), of the line through a few."""
    between = np.linspace(0, len(points) - 1, _DENSE)
    return np.column_stack([np.interp(between, range(len(points)), column) for column in points.T])


def _draw_mark(axes: Axes, line: Line) -> None:
    """Ring a point of a line."""
    if line.mark is not None:
        axes.plot(
            line.mark[:1],
            line.mark[1:2],
            "o",
            markersize=15,
            markerfacecolor="none",
            markeredgecolor=hex_colour(line.colour),
            markeredgewidth=2,
            clip_on=False,
            zorder=2.3,
        )


def _circle(axes: Axes, place: Sequence[float], radius_px: float, **looks: Any) -> Circle:
    x, y = axes.transData.transform((place[0], place[1]))
    return Circle((float(x), float(y)), radius_px, **looks)


def _draw_circles(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw dots and rings as shapes: the markers of an SVG are references, which pages do without.

    The layout must be final, since places are pixels.
    """
    for line in lines:
        colour = hex_colour(line.colour)
        dots = [_circle(axes, dot, 3.5, color=colour) for dot in line.points if line.has_dots]
        ring = [] if line.mark is None else [_circle(axes, line.mark[:2], 7.5, fill=False)]
        for circle in [*dots, *ring]:
            axes.add_artist(circle)
            circle.set(transform=IdentityTransform(), clip_on=False, zorder=2.3, edgecolor=colour)
            circle.set_alpha(0.5 if line.is_faint else 1.0)
            circle.set_linewidth(2 if circle in ring else 0)


def _set_ranges(axes: Axes, chart: LineChart) -> None:
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points] + [value for value, _ in chart.references]
    for line in chart.lines:
        found = [(y, half) for (_, y), half in zip(line.points, line.half_widths, strict=False) if half is not None]
        ys += [end for y, half in found for end in (y - half, y + half)]
    left, right = min(xs) if chart.x_ticks else min(0.0, *xs), max(xs)
    margin = 0.04 * (right - left) or 0.5
    axes.set_xlim(chart.x_range or (left - margin if chart.x_ticks or left == right else left, right + margin))
    share = 0.18 if any(line.mark for line in chart.lines) else 0.08  # room for what is written beside a mark
    margin = share * (max(ys) - min(ys)) or 0.05 * abs(max(ys)) or 1.0
    lowest = min(ys) - margin
    axes.set_ylim(chart.y_range or (max(0.0, lowest) if min(ys) >= 0 else lowest, max(ys) + margin))


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
    with _figure(size_px) as figure:
        axes = figure.add_subplot()
        axes.bar(np.arange(first, first + len(shares)), shares, color=hex_colour(HIGHLIGHT))
        axes.margins(x=0.01)
        _label(axes, title=title, x_name=x_name, percent=True)
        return _image(figure)


def dot_chart(
    values: NDArray[np.floating], *, title: str, x_name: str, size_px: tuple[int, int], reference: tuple[float, str]
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
    groups = np.arange(len(values))
    with _figure(size_px) as figure:
        axes = figure.add_subplot()
        axes.plot(groups, values, "o", color=hex_colour(_DOT), markersize=8, markeredgecolor=hex_colour(PAPER))
        means = values.mean(axis=1)
        axes.plot(groups, means, "o-", color=hex_colour(HIGHLIGHT), markersize=10, markeredgecolor=hex_colour(PAPER))
        axes.axhline(reference[0], color=hex_colour(FAINT), linewidth=1, zorder=1)
        # Its name is not beside the line, where dots are.
        name = f"grey line: {reference[1]}, {reference[0]:.3g}"
        axes.set_title(name, loc="right", fontsize=_TEXT_PX, color=hex_colour(FAINT))
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_ylim(0, 1.1 * max(float(values.max()), reference[0]) or 1.0)
        _label(axes, title=title, x_name=x_name)
        return _image(figure)


def _label(axes: Axes, *, title: str, x_name: str, percent: bool = False) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_name)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=_TICK_STEPS))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
    axes.yaxis.set_major_formatter(tick_values(percent))


@contextmanager
def _figure(size_px: tuple[int, int]) -> Iterator[Figure]:
    """Give a figure in our style, whatever the user's matplotlibrc says; it is to be drawn inside the context."""
    with matplotlib.style.context(_STYLE, after_reset=True):
        # A tenth of a pixel more, because the canvas rounds down.
        yield Figure(figsize=((size_px[0] + 0.1) / 72, (size_px[1] + 0.1) / 72))


def _image(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    with silent_about_letters():
        figure.savefig(file, format="png", pil_kwargs={"compress_level": 0})
    return Image.open(file).convert("RGB")
