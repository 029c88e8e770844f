"""`beit compare`: runs that differ only by their seeds become one row, with mean, interval and budget.

Reading a run is `runs.py`, how a comparison is written down is `report.py`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, did_you_mean
from beit.common.pages.intervals import share_interval
from beit.common.pages.numbers import percent, percent_range, short_names
from beit.finetune.compare.intervals import Interval, mean_interval
from beit.finetune.compare.runs import RunRecord, read_runs
from beit.finetune.compare.segmentation import ALSO_CALLED, MAIN, NAMES, difference_over_images

_LOWER_IS_BETTER = ("loss", "bits", "mse", "error")
"""Last words of the names of metrics where less is better."""
_ALSO_CALLED = {name: "top1" for name in ("acc", "acc1", "accuracy", "top_1")} | {
    "f1": "macro_f1",
    "top_5": "top5",
    **ALSO_CALLED,
}
"""Metrics by what people call them."""
_METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "map": "mAP",
    "macro_f1": "macro-F1",
    "held_out_bits": "held-out bits per token",
    "held_out_mse": "held-out squared error",
    "held_out_acc": "held-out tokens right",
    **NAMES,
}
_TASK_NAMES = {
    "linear-probe": "linear probe",
    "knn": "k-NN",
    "segmentation-probe": "segmentation probe",
    "pretrain": "pre-training",
}
_BUDGET_TOLERANCE = 0.01
"""Budgets that differ by less count as equal: epochs of other data sizes round to other steps; arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Repetitions of one experiment: runs that differ by their seeds only."""

    label: str
    """A, B, ... in the order in which the user named the first run of each."""
    task: str
    """As of its runs."""
    metric: str
    """What is compared."""
    runs: list[RunRecord]
    """One or more."""
    differing: dict[str, Any]
    """Settings in which groups of the same task differ; None where a setting is off or unknown."""
    interval: Interval
    """Of the metric over the runs."""
    difference: Interval | None = None
    """To the first group of the same task and metric, over the seeds that both have; None for that group itself."""

    @property
    def device_seconds(self) -> float | None:
        """Mean over its runs, as of `Budget`; None where nothing recorded it."""
        seconds = [run.budget.device_seconds for run in self.runs if run.budget.device_seconds is not None]
        return sum(seconds) / len(seconds) if seconds else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All rows of one table, and what has to be known to read it."""

    groups: list[Group]
    """In the order in which the user named them."""
    notes: list[str] = field(default_factory=list)
    """One line each."""
    left_out: list[str] = field(default_factory=list)
    """Paths of runs that are not finished."""


def is_lower_better(metric: str) -> bool:
    """Tell whether less of a metric is better, from the last word of its name."""
    return metric.split("/")[0].rpartition("_")[2] in _LOWER_IS_BETTER


def compare_runs(paths: Sequence[Path], *, metric: str | None = None) -> Comparison:
    """Read run directories and put those together that differ only by their seeds.

    They are compared by a metric that all runs have; left out, by each task's main one.
    """
    known = [path.resolve() for path in paths]
    for path, resolved in zip(paths, known, strict=True):
        if known.count(resolved) > 1:
            raise InputError(f"{path} is given twice")
    found = [record for path in paths for record in read_runs(path)]
    done = [record for record in found if not record.missing_steps]
    notes = [
        f"left out, because it is not finished: {record.path} ({record.missing_steps} steps to go)"
        for record in found
        if record.missing_steps
    ]
    if not done:
        raise InputError(f"no run is finished: {'; '.join(notes)}")
    _require_like(done)
    groups = _group(done, metric)
    left_out = [record.path for record in found if record.missing_steps]
    return Comparison(groups=groups, notes=[*notes, *_notes(groups)], left_out=left_out)


def paired_difference(first: Sequence[RunRecord], second: Sequence[RunRecord], metric: str) -> Interval | None:
    """Return the mean of second minus first over the seeds that both have; None without such a seed."""
    values = {run.seed: run.metrics[metric] for run in first}
    differences = [run.metrics[metric] - values[run.seed] for run in second if run.seed in values]
    return mean_interval(differences) if differences else None


def _require_like(records: Sequence[RunRecord]) -> None:
    """Refuse segmenters among others: no number is of both."""
    segmenters = [record for record in records if record.main_metric == MAIN]
    others = [record for record in records if record.main_metric != MAIN]
    if segmenters and others:
        first, second = segmenters[0], others[0]
        raise InputError(
            f"{first.path} is of {task_name(first.task)} and {second.path} of {task_name(second.task)}, which have no "
            "number in common; compare them in two commands"
        )


def _group(records: Sequence[RunRecord], metric: str | None) -> list[Group]:
    members: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        name = metric or record.main_metric
        if name not in record.metrics:
            hint = did_you_mean(name, record.metrics, _ALSO_CALLED)
            raise InputError(f"{record.path} has no metric {name!r}{hint}; it has {', '.join(sorted(record.metrics))}")
        identity = (record.task, name, *sorted((key, repr(value)) for key, value in record.settings.items()))
        members.setdefault(identity, []).append(record)
    groups: list[Group] = []
    for (task, name, *_), runs in members.items():
        first = next((group.runs for group in groups if (group.task, group.metric) == (task, name)), None)
        group = Group(
            label=_letters(len(groups)),
            task=task,
            metric=name,
            runs=runs,
            differing=_differing(runs[0], [other[0] for other in members.values() if other[0].task == task]),
            interval=mean_interval([run.metrics[name] for run in runs]),
            difference=None if first is None else paired_difference(first, runs, name),
        )
        groups.append(group)
    return groups


def _differing(run: RunRecord, others: Sequence[RunRecord]) -> dict[str, Any]:
    names = sorted({name for other in others for name in other.settings})
    return {
        name: run.settings.get(name) for name in names if len({repr(other.settings.get(name)) for other in others}) > 1
    }


def _notes(groups: Sequence[Group]) -> list[str]:
    """Say what was measured on, and what makes a comparison unfair or an interval too narrow, in a line each."""
    notes = []
    for task in dict.fromkeys(group.task for group in groups):
        of_task = [group for group in groups if group.task == task]
        runs = [run for group in of_task for run in group.runs]
        images = [run.budget.images for run in runs]
        if max(images) - min(images) > _BUDGET_TOLERANCE * max(images):
            notes.append(f"{task_name(task)}: budgets differ, {min(images):,} to {max(images):,} images seen")
        names = short_names(run.measured_data for run in runs)
        places = list(dict.fromkeys(run.measured_on for run in runs))
        shown = list(dict.fromkeys(place_text(run, names) for run in runs))
        if any(_are_several(run.measured_sha256 for run in runs if run.measured_on == place) for place in places):
            notes.append(f"{task_name(task)}: measured images were edited between the runs, which no interval covers")
        if any(
            _are_several(run.source_sha256 for run in runs if repr(run.settings.get("data")) == data)
            for data in {repr(run.settings.get("data")) for run in runs}
        ):
            notes.append(f"{task_name(task)}: training images were edited between the runs, which no interval covers")
        if len(places) > 1:
            notes.append(
                f"{task_name(task)}: measured on different images, which no interval covers: {'; '.join(shown)}"
            )
        else:
            notes.append(f"{task_name(task)}: measured on {shown[0]}")
    for group in groups:
        seeds = [run.seed for run in group.runs]
        if len(set(seeds)) < len(seeds):
            notes.append(f"{group.label}: several runs of one seed; its interval is too narrow")
    return notes


def readings(groups: Sequence[Group]) -> list[str]:
    """Say what chance gives, and how far a single run is known, in a line each."""
    lines = dict.fromkeys(f"{task_name(group.task)}: {text}" for group in groups if (text := chance_text(group)))
    for group in groups:
        if len(group.runs) == 1 and (limits := image_interval(group)) is not None:
            images = f"{group.runs[0].metrics['num_images']:,.0f} images"
            lines[
                f"{group.label}: one run; its {images} alone let {metric_name(group.metric)} be "
                f"{percent_range(*limits)} (95 %, {'bootstrap' if group.metric == MAIN else 'Wilson'})"
            ] = None
    return [*lines, *readings_over_images(groups)]


def readings_over_images(groups: Sequence[Group]) -> list[str]:
    """Say how far single segmenters differ from the first one over the same images, in a line each."""
    single = [group for group in groups if group.metric == MAIN and len(group.runs) == 1]
    lines = []
    for group in single[1:]:
        limits = difference_over_images(single[0].runs[0].images, group.runs[0].images)
        if limits is not None:
            low, high = (f"{100 * limit:+.1f}" for limit in limits)
            lines.append(
                f"{group.label} - {single[0].label}: {low} to {high} points of {metric_name(MAIN)} over the same "
                "images (95 %, bootstrap); other seeds may differ otherwise"
            )
    return lines


def chance_text(group: Group) -> str:
    """Say what the metric of a group is without looking at an image; empty where that is not known."""
    run = group.runs[0]
    if run.chance is None or group.metric != run.main_metric:
        return ""
    value, how = run.chance
    return f"chance ({how}) is {percent(value) if is_share(group.metric) else f'{value:.4f}'}"


def image_interval(group: Group) -> tuple[float, float] | None:
    """Return the 95 % interval that the number of images leaves to the share of the first run; None for other metrics.

    It says nothing about other seeds.
    """
    metrics, images = group.runs[0].metrics, group.runs[0].images
    if group.metric == MAIN:
        return None if images is None else images.interval
    if group.metric not in ("top1", "top5") or not metrics.get("num_images"):
        return None
    return share_interval(metrics[group.metric], int(metrics["num_images"]))


def place_text(run: RunRecord, names: Mapping[str, str]) -> str:
    """Say what a run was measured on; `names` are short ones by place."""
    place = run.measured_data
    return run.measured_on.replace(place, names[place]) if place else run.measured_on


def _are_several(identities: Iterable[str | None]) -> bool:
    return len({repr(identity) for identity in identities if identity is not None}) > 1


def _letters(number: int) -> str:
    """Name rows A, B, ..., Z, AA, AB, ..."""
    letters = string.ascii_uppercase
    prefix = _letters(number // len(letters) - 1) if number >= len(letters) else ""
    return prefix + letters[number % len(letters)]


def metric_name(metric: str) -> str:
    """Name a metric as readers do."""
    first, slash, rest = metric.partition("/")
    return _METRIC_NAMES.get(first, first.replace("_", " ")) + slash + rest


def task_name(task: str) -> str:
    """Name a task as readers do."""
    return _TASK_NAMES.get(task, task)


def is_share(metric: str) -> bool:
    """Tell whether a metric lies in [0, 1] and is shown in percent."""
    first = metric.split("/")[0]
    known = ("top1", "top5", "map", "macro_f1", "calibration_error", *NAMES)
    return first in known or first.rpartition("_")[2] == "acc"


def best_labels(groups: Sequence[Group]) -> set[str]:
    """Return the labels of the best mean of every task and metric that has several groups, all with an interval.

    One seed says nothing about the spread, and so not which of two is better.
    """
    best = set()
    for key in {(group.task, group.metric) for group in groups}:
        rivals = [group for group in groups if (group.task, group.metric) == key]
        sign = -1 if is_lower_better(key[1]) else 1
        finite = [group for group in rivals if math.isfinite(group.interval.mean)]
        if len(rivals) > 1 and finite and all(group.interval.half_width is not None for group in rivals):
            best.add(max(finite, key=lambda group, sign=sign: sign * group.interval.mean).label)  # type: ignore[misc]
    return best
