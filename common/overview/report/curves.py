"""Charts of a report: how runs learned, how fast they were and what they waited for, and what each block is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section, charts, heading, keys, table, text
from beit.common.pages.charts import Line, LineChart, line_svg
from beit.common.pages.html_page import Html
from beit.common.pages.numbers import ABSENT, percent
from beit.common.runs.layout import MASK_PROBE
from beit.common.runs.learning_curves import Once, learning_charts

_SIZE_PX = (480, 300)
"""Of a chart; two stand beside each other where there is room."""
_MOST_POINTS = 400
"""Of a line; more cannot be told apart, and make the page large."""
_LEAST_SPAN = 0.05
"""Of the shares of blocks that a chart shows; a standard error of 400 images is half of it."""
_PROBES = {"linear-probe": "linear probe", "knn": "k-NN", MASK_PROBE: "linear probe of patches"}

Figure = tuple[str, str, str]
"""Title, SVG element and what is to be said of it."""


def learning_section(runs: Sequence[RunFiles]) -> Section:
    """Return what evaluations measured in the course of training, and the loss of the batches, kind by kind."""
    parts: list[Html] = list(keys([run for run in runs if run.records]))
    groups = learning_charts([run.learning for run in runs if run.learning is not None])
    for group in groups:
        parts += [heading(group.kind)] if len(groups) > 1 else []
        figures = [_figure(chart) for chart, once in zip(group.charts, group.once, strict=True) if once is None]
        legend = [group.legend, "Ringed: the model that is kept."] if figures else []
        members = [run for run in runs if run.learning is not None and run.learning.name in group.members]
        recorded, lone = _recorded(members, _LEARNED, by_pass=True)
        parts += _shown([*figures, *recorded], [*(once for once in group.once if once is not None), *lone], members)
        parts += [text(" ".join([*legend, *(f"{fact}." for fact in group.facts)]))]
    others = [run for run in runs if run.records and not any(run.name in group.members for group in groups)]
    if others:
        shown = _shown(*_recorded(others, _LEARNED), others)
        whose = "" if len(runs) == 1 else f"{', '.join(run.name for run in others)}: "
        parts += [text(whose + _without_evaluation(others)), *shown] if shown else []
    return Section(
        title="How it learned" if len(runs) == 1 else "How they learned", anchor="learning", parts=tuple(parts)
    )


def _without_evaluation(runs: Sequence[RunFiles]) -> str:
    is_measured = any("evaluation_seconds" in record for run in runs for record in run.records)
    found = "No evaluation came to a finite value" if is_measured else "No evaluation yet"
    if not any(_values(run, "loss", 1.0) for run in runs):
        return f"{found}, and no loss of a training batch was finite."
    return f"{found}; the loss of the training batches is all there is."


def _shown(figures: Sequence[Figure], lone: Sequence[Once], runs: Sequence[RunFiles]) -> list[Html]:
    """Return charts, and before them as a table what would be charts of one dot per run."""
    parts = []
    if lone:
        names = ["once measured"] if len(runs) == 1 else [run.name for run in runs]
        rows = [[once.measure, *once.values, once.compare or ABSENT] for once in lone]
        parts.append(table("Measured once", ["measure", *names, "to compare with"], rows))
    return [*parts, charts(figures)] if figures else parts


def speed_section(runs: Sequence[RunFiles]) -> Section:
    """Return rate, waiting for data and memory in the course of training."""
    measured = [run for run in runs if any("images_per_second" in record for record in run.records)]
    shown = _shown(*_recorded(measured, _SPEED), measured)
    parts = (*keys(measured), *shown, text(_SPEED_LEGEND)) if shown else ()
    return Section(title="Rate, waiting and memory", anchor="speed", parts=parts)


def probe_section(runs: Sequence[RunFiles]) -> Section:
    """Return what the features of every block are worth, as probes of them measured it."""
    figures: list[Figure] = []
    for task, name in _PROBES.items():
        members = [run for run in runs if task in run.probes]
        lines = [line for run in members if (line := _block_line(run, task)) is not None]
        if not lines:
            continue
        blocks = sorted({x for line in lines for x, _ in line.points})
        measure = "mean IoU" if task == MASK_PROBE else "top-1"
        chart = LineChart(
            lines=lines,
            x_name="block",
            x_ticks={block: f"{block:g}" for block in blocks} if len(blocks) <= 12 else None,
            references=_chances(members, task),
            percent=True,
            y_range=_least_span([y for line in lines for _, y in line.points], _chances(members, task)),
        )
        figures.append(_figure(chart, f"{name}, {measure}"))
    says = text("Features of each block, frozen, counted from the input on; ringed: the best block.")
    parts = (*keys([run for run in runs if run.probes]), charts(figures), says) if figures else ()
    return Section(title="What each block is worth", anchor="probe", parts=parts)


def _least_span(values: Sequence[float], references: Sequence[tuple[float, str]]) -> tuple[float, float] | None:
    """Return ends of the upright scale where blocks hardly differ: a tenth of a point is not to look like a cliff."""
    shown = [*values, *(value for value, _ in references)]
    low, high = min(shown), max(shown)
    if high - low >= _LEAST_SPAN:
        return None
    bottom = max(0.0, (low + high - 1.4 * _LEAST_SPAN) / 2)
    return bottom, bottom + 1.4 * _LEAST_SPAN


def _block_line(run: RunFiles, task: str) -> Line | None:
    found = run.probes[task]
    points: list[tuple[float, float]] = []
    for row in found.get("blocks") or ():
        if isinstance(row, dict) and (value := _block_value(row, found)) is not None:
            points.append((float(row.get("block", len(points))), value))
    if not points:
        return None
    named = [point for point in points if point[0] == found.get("best_block")]
    best = named[0] if named else max(points, key=lambda point: point[1])
    mark = (*best, f"{100 * best[1]:.1f}\u00a0%")
    return Line(name=run.name, points=points, colour=run.colour, mark=mark)


def _block_value(row: Mapping[str, Any], found: Mapping[str, Any]) -> float | None:
    """Return top-1 or mean IoU of a block; k-NN has one for each k, of which the best k counts."""
    value = row.get("miou", row.get("top1"))
    if isinstance(value, dict):
        value = value.get(str(found.get("best_k")))
    return float(value) if isinstance(value, int | float) else None


def _chances(runs: Sequence[RunFiles], task: str) -> tuple[tuple[float, str], ...]:
    """Return what guessing gives, where all runs have as many classes."""
    numbers = {run.probes[task].get("num_classes") for run in runs}
    number = next(iter(numbers))
    if task == MASK_PROBE or len(numbers) > 1 or not isinstance(number, int) or number < 1:
        return ()
    return ((1 / number, f"guessing {100 / number:.1f}\u00a0%"),)


_LEARNED: tuple[tuple[str, str, float, bool], ...] = (
    ("loss of the training batches", "loss", 1.0, False),
    ("learning rate", "lr", 1.0, False),
)
_SPEED: tuple[tuple[str, str, float, bool], ...] = (
    ("images per second", "images_per_second", 1.0, False),
    ("share of the time spent waiting for data", "data_wait", 1.0, True),
    ("peak memory of rank 0, GB", "peak_memory_bytes", 1e-9, False),
)
_SPEED_LEGEND = (
    "Each value is of the steps since the one before, evaluations and saving left out. Waiting for data that stays "
    "above a few percent says that reading is the bottleneck: `reader.num_workers`, and docs/long-runs.md."
)


def _recorded(
    runs: Sequence[RunFiles], measures: Sequence[tuple[str, str, float, bool]], *, by_pass: bool = False
) -> tuple[list[Figure], list[Once]]:
    """Draw metrics of training steps over steps or passes over the images, and tell those that were recorded once."""
    passes = {run.name: run.learning.epochs_per_step if by_pass and run.learning else None for run in runs}
    scales = {name: found or 1.0 for name, found in passes.items()} if all(passes.values()) else {}
    figures, lone = [], []
    for title, metric, scale, is_share in measures:
        lines = [
            Line(name=run.name, points=_thinned(points, scale), colour=run.colour, is_dotted=False)
            for run in runs
            if (points := _values(run, metric, scales.get(run.name, 1.0)))
        ]
        if lines and all(len(line.points) == 1 for line in lines):
            found = {line.name: line.points[0][1] for line in lines}
            written = {name: percent(value) if is_share else f"{value:,.3g}" for name, value in found.items()}
            values = tuple(written.get(run.name, ABSENT) for run in runs)
            lone.append(Once(measure=title, values=values, compare=""))
        elif lines:
            top = max(y for line in lines for _, y in line.points)
            low = min(0.0, *(y for line in lines for _, y in line.points))
            is_loss = metric == "loss"
            chart = LineChart(
                lines=lines,
                x_name="passes over the images" if scales else "steps",
                percent=is_share,
                y_range=None if is_loss else (low, 1.08 * top or 1.0),
            )
            figures.append(_figure(chart, title))
    return figures, lone


def _values(run: RunFiles, metric: str, scale: float) -> list[tuple[float, float]]:
    values = [(scale * record["step"], record.get(metric)) for record in run.records]
    return [(x, y) for x, y in values if y is not None and math.isfinite(y)]


def _thinned(points: Sequence[tuple[float, float]], scale: float) -> list[tuple[float, float]]:
    """Take means of neighbours where there are too many points to tell apart."""
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[place : place + size] for place in range(0, len(points), size)]
    return [(group[-1][0], scale * sum(y for _, y in group) / len(group)) for group in groups]


def _figure(chart: LineChart, title: str = "") -> Figure:
    title = title or chart.title
    names = ", ".join(dict.fromkeys(line.name for line in chart.lines))
    shown = replace(chart, title="", lines=[_thin(line) for line in chart.lines])
    return title, line_svg(shown, size_px=_SIZE_PX, description=f"{title}: {names}, over {chart.x_name}"), ""


def _thin(line: Line) -> Line:
    is_short = len(line.points) <= _MOST_POINTS
    return line if is_short else replace(line, points=_thinned(line.points, 1.0), half_widths=())
