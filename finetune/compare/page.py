"""The page of a comparison: one HTML file that needs nothing but itself; its template is `page.html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit.common.pages.charts import IntervalRow, interval_svg
from beit.common.pages.html_page import render
from beit.common.pages.numbers import count, percent_range, run_name, short_names
from beit.common.runs.starts import command_text, when
from beit.finetune.compare.compare import (
    Comparison,
    Group,
    best_labels,
    chance_text,
    image_interval,
    is_share,
    metric_name,
    place_text,
    readings_over_images,
    task_name,
)
from beit.finetune.compare.intervals import mean_interval
from beit.finetune.compare.rows import LEGEND, TITLES, interval_text, row_cells, sections, settings_text, value_text
from beit.finetune.compare.runs import RunRecord

_SHOWN_SETTINGS = 2
"""Up to so many settings name an experiment in its row; more stand in the table of them; arbitrary."""
_CHART_PX = (640, 40)
"""Width of a chart, and height of a row of it."""


def comparison_page(comparison: Comparison) -> str:
    """Return the whole page."""
    groups = comparison.groups
    runs = [run for group in groups for run in group.runs]
    names = _run_names([*(run.path for run in runs), *comparison.left_out])
    found = [_section(*key, members, comparison, names) for key, members in sections(comparison).items()]
    shown = {f"{section['task']}: {section['chance']}" for section in found}
    chances = {f"{task_name(group.task)}: {text}" for group in groups if (text := chance_text(group))}
    notes = [*comparison.notes, *sorted(chances - shown), *readings_over_images(groups)]
    for path in sorted(names, key=len, reverse=True):
        notes = [note.replace(path, names[path]) for note in notes]
    settings = list(dict.fromkeys(name for group in groups for name in group.differing))
    return render(
        Path(__file__).with_name("page.html"),
        title=f"Comparison of {names[runs[0].path]}" if len(runs) == 1 else f"Comparison of {len(runs)} runs",
        lead=f"{count(len(groups), 'experiment')}, {count(len(runs), 'run')}; runs that differ by their seeds alone "
        "are one experiment",
        titles=[title for title in TITLES if title not in ("", "task", "metric")],
        sections=found,
        legend=LEGEND,
        notes=notes,
        settings=settings,
        differing=[(group.label, [_setting(group, name) for name in settings]) for group in groups],
        runs=[_run_row(group, run, names) for group in groups for run in group.runs],
        commands=[(names[run.path], command_text(run.start.get("command", ()))) for run in runs],
    )


def _section(
    task: str, metric: str, groups: Sequence[Group], comparison: Comparison, names: Mapping[str, str]
) -> dict[str, Any]:
    best = best_labels(comparison.groups)
    rows = []
    for group in groups:
        cells = dict(zip(TITLES, row_cells(group, comparison.groups), strict=True))
        limits = image_interval(group) if len(group.runs) == 1 else None
        rows.append(
            {
                "label": group.label,
                "name": _experiment(group, names),
                "is_best": group.label in best,
                "note": "" if limits is None else f"one run; its images alone: {percent_range(*limits)}",
                "cells": {
                    title: cell.rstrip("* ") for title, cell in cells.items() if title not in ("", "task", "metric")
                },
            }
        )
    chances = set(map(chance_text, groups))
    return {
        "task": task_name(task),
        "title": f"{task_name(task)}: {metric_name(metric)}",
        "chance": chances.pop() if len(chances) == 1 else "",
        "rows": rows,
        "chart": _chart(groups, metric) if len(groups) > 1 else "",
    }


def _chart(groups: Sequence[Group], metric: str) -> str:
    chance = groups[0].runs[0].chance
    is_common = len(set(map(chance_text, groups))) == 1 and bool(chance_text(groups[0]))
    return interval_svg(
        [
            IntervalRow(
                name=group.label,
                values=[run.metrics[metric] for run in group.runs],
                mean=group.interval.mean,
                half_width=group.interval.half_width,
            )
            for group in groups
        ],
        reference=(chance[0], "chance") if chance is not None and is_common else None,
        percent=is_share(metric),
        x_name=metric_name(metric),
        size_px=(_CHART_PX[0], 70 + _CHART_PX[1] * len(groups)),
        description=f"{metric_name(metric)} of every experiment: runs as dots, their mean, and its 95 % interval",
    )


def _experiment(group: Group, names: Mapping[str, str]) -> str:
    """Name an experiment by what differs, where that is little, else by its runs."""
    if 0 < len(group.differing) <= _SHOWN_SETTINGS:
        return settings_text(group)
    return ", ".join(names[run.path] for run in group.runs[:3]) + (", ..." if len(group.runs) > 3 else "")


def _setting(group: Group, name: str) -> str:
    return value_text(group.differing[name]) if name in group.differing else ""


def _run_row(group: Group, run: RunRecord, names: Mapping[str, str]) -> dict[str, str]:
    """Return what the table of runs says of one, by title."""
    value = interval_text(mean_interval([run.metrics[group.metric]]), group.metric)
    return {
        "run": names[run.path],
        "row": group.label,
        "seed": "/".join(map(str, run.seed if run.seed[1] else run.seed[:1])),
        "result": f"{value} {metric_name(group.metric)}" if not value.endswith("%") else value,
        "from": run.encoder,
        "measured on": place_text(run, short_names([run.measured_data])),
        "trained": when(run.start),
    }


def _run_names(paths: Sequence[str]) -> dict[str, str]:
    """Name runs by their folder where that tells them apart, else by more of their paths."""
    shortest = {path: run_name(path) for path in paths}
    return shortest if len(set(shortest.values())) == len(shortest) else short_names(paths)
