"""How a comparison is said: one sentence per number of labels, tables for the terminal and as Markdown, a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.numbers import count
from beit.common.pages.pictures import PALETTE, sheet
from beit.common.pages.tables import aligned, folded
from beit.finetune.compare.intervals import Interval
from beit.finetune.worth.comparison import CONTINUED, NAMES, RANDOM, SCRATCH, TASKS, WEIGHTS
from beit.finetune.worth.results import Difference, Row

_SUBJECTS = {**NAMES, WEIGHTS: "starting from the weights as they are"}
_OBJECTS = {**NAMES, CONTINUED: "the continued encoder", SCRATCH: "the one from scratch"}
"""Starts as the first and the second of a pair."""
_SHORT = {RANDOM: "random", WEIGHTS: "as they are", CONTINUED: "continued", SCRATCH: "scratch"}
_METRICS = {"top1": "top-1", "map": "mAP"}
_COLOURS = {WEIGHTS: PALETTE[0], CONTINUED: PALETTE[1], SCRATCH: PALETTE[2], RANDOM: (110, 117, 125)}
_SAID = 3
"""Pairs in a sentence at most: those that come first say most."""
_CHART_PX = (400, 290)
_ASIDE, _LEAST_SPAN = 0.016, 0.5
"""Of two lines beside each other: a share of the width of a chart, and its least width in powers of ten; arbitrary."""
ABSENT = "-"


def sentences(rows: Sequence[Row]) -> list[str]:
    """Say what each start is worth, a line per number of labels, for the first task that is measured."""
    return [sentence(row) for row in rows if row.task == rows[0].task]


def sentence(row: Row) -> str:
    """Say what one line of the table shows, and what it does not."""
    head = f"With {count(row.labels.number, 'label')} ({TASKS[row.task]})"
    if not row.differences:
        return f"{head}, no pair of runs is finished yet."
    parts = "; ".join(_said(difference) for difference in row.differences[:_SAID])
    tail = "" if row.is_finished else " Runs are missing."
    return f"{head}, {parts}.{tail}"


def _said(difference: Difference) -> str:
    first, second = _SUBJECTS[difference.better], _OBJECTS[difference.than]
    mean, half_width = difference.interval.mean, difference.interval.half_width
    if difference.is_shown:
        assert half_width is not None
        verb = "is worth" if mean > 0 else "costs"
        against = "over" if mean > 0 else "against"
        return f"{first} {verb} {_digits(abs(mean))} ± {_digits(half_width)} points {against} {second}"
    if half_width is None:
        why = f"one pair says {_signed(mean)} points, and nothing about chance"
    elif difference.is_alike:
        pairs = "both" if difference.interval.num_values == 2 else f"all {difference.interval.num_values}"
        why = f"{pairs} pairs say {_signed(mean)}, too much alike to tell their spread"
    else:
        why = f"{_signed(mean)} ± {_digits(half_width)} points"
    return f"no difference between {_as_noun(difference.better)} and {second} is shown ({why})"


def _as_noun(start: str) -> str:
    return NAMES[start]


def as_text(rows: Sequence[Row], *, notes: Sequence[str]) -> str:
    """Return the result for a terminal: sentences, means, differences, notes."""
    starts = list(rows[0].values)
    named = ["labels", "measured"]
    means = [[*_head(row, rows), *(_cell(row.mean(start)) for start in starts), _seeds(row)] for row in rows]
    first = aligned([[*named, *(_SHORT[start] for start in starts), "seeds"], *means], align="><>")
    pairs = _pairs(rows)
    differences = [[*_head(row, rows), *(_pair_cell(row, pair) for pair in pairs)] for row in rows]
    # Two short lines, since the names of pairs are wider than their numbers.
    heads = [
        [*named, *(_SHORT[better] for better, _ in pairs)],
        ["", "", *(f"- {_SHORT[than]}" for _, than in pairs)],
    ]
    second = aligned([*heads, *differences], align="><>")
    said = [folded(line, indent="  ") for line in (*sentences(rows), *notes)]
    count_said = len(sentences(rows))
    return "\n\n".join(
        [
            "\n".join(said[:count_said]),
            f"{_metric(rows)} in %\n{first}",
            f"Differences in points (* the interval leaves out 0)\n{second}" if pairs else "",
            "\n".join(said[count_said:]),
        ]
    )


def as_markdown(rows: Sequence[Row], *, notes: Sequence[str]) -> str:
    """Return the result for a page: what an interval shows is bold."""
    starts, pairs = list(rows[0].values), _pairs(rows)
    titles = ["labels", f"measured, {_metric(rows)}", *(f"{_SHORT[start]}, %" for start in starts)]
    titles += [f"{_SHORT[better]} - {_SHORT[than]}, points" for better, than in pairs]
    titles.append("seeds")
    lines = [f"| {' | '.join(titles)} |", f"| ---: | --- |{' ---: |' * (len(titles) - 2)}"]
    for row in rows:
        cells = [_labels(row), _measured(row), *(_cell(row.mean(start)) for start in starts)]
        for pair in pairs:
            text = _pair_cell(row, pair)
            cells.append(f"**{text.removesuffix('*')}**" if text.endswith("*") else text)
        lines.append(f"| {' | '.join([*cells, _seeds(row)])} |")
    said = "\n".join(f"- {line}" for line in sentences(rows))
    return "\n".join([said, "", *lines, "", *notes, ""])


def picture(rows: Sequence[Row], *, facts: str) -> Image.Image | None:
    """Draw means, and below them the differences of pairs, over the number of labels; None where nothing is finished.

    One chart per task; vertical strokes are 95 % intervals.
    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    upper = [_means_chart([row for row in rows if row.task == task], task) for task in tasks]
    lower = [_differences_chart([row for row in rows if row.task == task]) for task in tasks]
    drawn = []
    for charts in (upper, lower):
        there = [chart for chart in charts if chart is not None]
        if len(there) < len(tasks):
            continue
        ends = _range(there)
        same = [replace(chart, y_range=ends) for chart in there]
        drawn.append(line_charts(same, chart_px=_CHART_PX, columns=len(same), key=True))
    if not drawn:
        return None
    said = " ".join(sentences(rows))
    legend = "Dots are means over seeds, strokes their 95 % intervals (Student's t); differences are those of pairs."
    return sheet(drawn, heading="What pre-training is worth", facts=f"{said} {facts}".strip(), legend=legend)


def _means_chart(rows: Sequence[Row], task: str) -> LineChart | None:
    lines = []
    places = _places(rows, len(rows[0].values))
    for start, place in zip(rows[0].values, places, strict=True):
        means = [(row.labels.number, mean) for row in rows if (mean := row.mean(start)) is not None]
        if means:
            lines.append(_line(_SHORT[start], means, _COLOURS[start], place))
    return _chart(rows, lines, title=f"{TASKS[task]}, {_metric(rows)}")


def _differences_chart(rows: Sequence[Row]) -> LineChart | None:
    lines = []
    pairs = _pairs(rows)
    for number, ((better, than), place) in enumerate(zip(pairs, _places(rows, len(pairs)), strict=True)):
        found = [
            (row.labels.number, one.interval)
            for row in rows
            for one in row.differences
            if (one.better, one.than) == (better, than)
        ]
        colour = PALETTE[(number + 3) % len(PALETTE)]
        lines.append(_line(f"{_SHORT[better]} - {_SHORT[than]}", found, colour, place, scale=100))
    chart = _chart(rows, lines, title="difference in points")
    return chart


def _places(rows: Sequence[Row], count_lines: int) -> list[float]:
    """Return how far each line stands aside of the number of labels, so that no stroke hides another."""
    numbers = [math.log10(row.labels.number) for row in rows]
    step = _ASIDE * max(max(numbers) - min(numbers), _LEAST_SPAN)
    return [step * (place - (count_lines - 1) / 2) for place in range(count_lines)]


def _line(
    name: str, found: Sequence[tuple[int, Interval]], colour: tuple[int, int, int], place: float, *, scale: float = 1.0
) -> Line:
    points = [(math.log10(number) + place, scale * interval.mean) for number, interval in found]
    widths = [interval.half_width for _, interval in found]
    half_widths = [None if width is None else scale * width for width in widths]
    return Line(name=name, points=points, colour=colour, half_widths=half_widths)


def _chart(rows: Sequence[Row], lines: Sequence[Line], *, title: str) -> LineChart | None:
    if not lines:
        return None
    ticks = {math.log10(row.labels.number): f"{row.labels.number:,}" for row in rows}
    is_difference = title.startswith("difference")
    references = [(0.0, "")] if is_difference else []
    # Of one number of labels, or of near ones, lines stand beside it and not at the edges.
    middle, is_narrow = (min(ticks) + max(ticks)) / 2, max(ticks) - min(ticks) < _LEAST_SPAN
    return LineChart(
        lines=lines,
        title=title,
        x_name="labels",
        x_ticks=ticks,
        x_range=(middle - 0.54 * _LEAST_SPAN, middle + 0.54 * _LEAST_SPAN) if is_narrow else None,
        references=references,
        percent=not is_difference,
    )


def _range(charts: Sequence[LineChart]) -> tuple[float, float]:
    """Return ends of the upright scale that show everything of several charts."""
    ends = [value for chart in charts for value, _ in chart.references]
    for line in (line for chart in charts for line in chart.lines):
        for (_, y), half_width in zip(line.points, line.half_widths, strict=True):
            ends += [y - (half_width or 0.0), y + (half_width or 0.0)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.01
    lowest, highest = min(ends) - margin, max(ends) + margin
    if charts[0].percent:  # shares; an interval of two seeds may leave them
        lowest, highest = max(lowest, 0.0), min(highest, 1.0)
    return lowest, highest


def _pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.better, one.than) for row in rows for one in row.differences))


def _head(row: Row, rows: Sequence[Row]) -> list[str]:
    """Return the first cells of a line; the number of labels stands once."""
    is_first = row.task == rows[0].task
    return [_labels(row) if is_first else "", TASKS[row.task]]


def _labels(row: Row) -> str:
    return f"all {row.labels.number}" if row.labels.is_all else str(row.labels.number)


def _measured(row: Row) -> str:
    epochs = row.labels.epochs
    return TASKS[row.task] + (f", {epochs:g} epochs" if epochs is not None and row.task == "classification" else "")


def _metric(rows: Sequence[Row]) -> str:
    return _METRICS.get(rows[0].metric, rows[0].metric)


def _cell(mean: Interval | None) -> str:
    if mean is None:
        return ABSENT
    return _digits(mean.mean) + ("" if mean.half_width is None else f" ± {_digits(mean.half_width)}")


def _pair_cell(row: Row, pair: tuple[str, str]) -> str:
    found = next((one for one in row.differences if (one.better, one.than) == pair), None)
    if found is None:
        return ABSENT
    half_width = found.interval.half_width
    text = _signed(found.interval.mean) + ("" if half_width is None else f" ± {_digits(half_width)}")
    return f"{text}*" if found.is_shown else text


def _seeds(row: Row) -> str:
    done = min(len(found) for found in row.values.values())
    return str(done) if done == row.wanted else f"{done} of {row.wanted}"


def _digits(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"
