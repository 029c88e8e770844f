"""The cells of a comparison: how its numbers and settings are written, whatever it is written to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beit.common.pages.numbers import short_names
from beit.finetune.compare.compare import Comparison, Group, best_labels, is_share, metric_name, task_name
from beit.finetune.compare.intervals import Interval

LEGEND = (
    "+-: 95 % interval of the mean over seeds (Student's t). Differences, of shares in points, are to the first row, "
    "over pairs with the same seeds. One run has no interval, one pair no difference: repeat them with --set "
    "train.seed=1. *: the best mean, where all have an interval. Device time is that of training in one run, over all "
    "its ranks."
)
TITLES = ("", "task", "metric", "mean", "difference", "seeds", "steps", "images", "device time")
NUMBERS = ("mean", "difference", "seeds", "steps", "images", "device time")


def sections(comparison: Comparison) -> dict[tuple[str, str], list[Group]]:
    """Return the groups by task and metric, each of which is a table of its own to read."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in comparison.groups:
        found.setdefault((group.task, group.metric), []).append(group)
    return found


def row_cells(group: Group, groups: Sequence[Group]) -> list[str]:
    """Return one row of the table, under `TITLES`; the best mean is starred."""
    budgets = [run.budget for run in group.runs]
    steps = [budget.steps for budget in budgets if budget.steps is not None]
    star = "*" if group.label in best_labels(groups) else " "
    return [
        group.label,
        task_name(group.task),
        metric_name(group.metric),
        interval_text(group.interval, group.metric) + star,
        _difference_text(group),
        str(len({run.seed for run in group.runs})),
        _span(steps),
        _span([budget.images for budget in budgets]),
        "" if group.device_seconds is None else duration(group.device_seconds),
    ]


def _difference_text(group: Group) -> str:
    """Return the difference with its interval; one pair of runs has none, and a bare number would read as a verdict."""
    if group.difference is None:
        return ""
    if group.difference.half_width is None:
        return "one pair"
    return interval_text(group.difference, group.metric, signed=True)


def interval_text(interval: Interval, metric: str, *, signed: bool = False) -> str:
    """Format a mean and its interval; shares in percent, their differences in points."""
    scale, digits = (100, 1) if is_share(metric) else (1, 4)
    mean = f"{scale * interval.mean:{'+' if signed else ''}.{digits}f}"
    half = "" if interval.half_width is None else f" +- {scale * interval.half_width:.{digits}f}"
    return mean + half + (" %" if is_share(metric) and not signed else "")


def duration(seconds: float) -> str:
    """Format the training time of a mean run."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def settings_text(group: Group) -> str:
    """Name the settings in which a group differs from the others, and its runs where there are none."""
    shown = [f"{name}={value_text(value)}" for name, value in group.differing.items()]
    return ", ".join(shown) or ", ".join(short_names(run.path for run in group.runs).values())


def value_text(value: Any) -> str:
    """Write the value of a setting; of absolute paths the end."""
    return "none" if value is None else short_names([value])[value] if isinstance(value, str) else str(value)


def _span(values: Sequence[int]) -> str:
    if not values:
        return ""
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,}-{max(values):,}"
