"""What the finished runs of a comparison measured: means, their intervals, and the differences of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from beit.finetune.compare.intervals import Interval, mean_interval
from beit.finetune.compare.runs import read_runs
from beit.finetune.worth.comparison import Labels, Matrix, Run

RESULT_FILE = "worth.json"
"""In the folder of whatever is finished."""
_ALIKE = 1e-9
"""Half widths below are rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One start held against another, over the seeds that both have."""

    better: str
    """The start whose number is first."""
    than: str
    """The one it is subtracted from."""
    interval: Interval
    """Of the differences of pairs, shares."""
    wins: int
    """Pairs in which the first is larger."""

    @property
    def is_alike(self) -> bool:
        """Whether several pairs differ by the same."""
        return self.interval.half_width is not None and self.interval.half_width <= _ALIKE

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves out 0. Pairs that all differ alike say nothing about their spread."""
        half_width = self.interval.half_width
        return half_width is not None and _ALIKE < half_width < abs(self.interval.mean)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one task measured with one number of labels."""

    labels: Labels
    """How many."""
    task: str
    """As `beit finetune` calls it."""
    wanted: int
    """Seeds there are to be."""
    values: Mapping[str, Mapping[int, float]]
    """By start and seed: a share, top-1 or mAP; unfinished runs are missing."""
    metric: str = "top1"
    """Which."""
    differences: tuple[Difference, ...] = field(default=())
    """Of the pairs that are compared; those without a seed in common are missing."""

    def mean(self, start: str) -> Interval | None:
        """Return the mean of a start over its seeds; None where none is finished."""
        found = list(self.values[start].values())
        return mean_interval(found) if found else None

    @property
    def is_finished(self) -> bool:
        """Whether all its runs are there."""
        return all(len(found) == self.wanted for found in self.values.values())

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        means = {start: self.mean(start) for start in self.values}
        return {
            "labels": self.labels.number,
            "all_labels": self.labels.is_all,
            "epochs": self.labels.epochs,
            "task": self.task,
            "metric": self.metric,
            "seeds": self.wanted,
            "runs": {
                start: [{"seed": seed, self.metric: value} for seed, value in found.items()]
                for start, found in self.values.items()
            },
            "means": {start: None if mean is None else asdict(mean) for start, mean in means.items()},
            "differences": [
                {"start": one.better, "than": one.than, "wins": one.wins, "is_shown": one.is_shown}
                | asdict(one.interval)
                for one in self.differences
            ],
        }


def read_rows(matrix: Matrix, out: Path) -> list[Row]:
    """Return the lines of the table, number of labels after number of labels."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    metric = "top1"
    for run in matrix.runs():
        for task, (name, value) in measured(run, out).items():
            found.setdefault((run.labels.text, task, run.start), {})[run.seed] = value
            metric = name
    return [
        make_row(
            matrix,
            labels,
            task,
            {start: found.get((labels.text, task, start), {}) for start in matrix.starts},
            metric=metric,
        )
        for labels in matrix.labels
        for task in matrix.tasks
    ]


def make_row(
    matrix: Matrix, labels: Labels, task: str, values: Mapping[str, Mapping[int, float]], *, metric: str = "top1"
) -> Row:
    """Return one line of the table from what its runs measured, by start and seed."""
    wanted = len(matrix.seeds_of(labels, task))
    found = []
    for better, than in matrix.pairs():
        pairs = [value - values[than][seed] for seed, value in values[better].items() if seed in values[than]]
        if pairs:
            wins = sum(pair > 0 for pair in pairs)
            found.append(Difference(better=better, than=than, interval=mean_interval(pairs), wins=wins))
    return Row(labels=labels, task=task, wanted=wanted, values=values, metric=metric, differences=tuple(found))


def measured(run: Run, out: Path) -> dict[str, tuple[str, float]]:
    """Return metric and value by task of a finished run; nothing of another."""
    folder = run.folder(out)
    if not (folder / RESULT_FILE).exists():
        return {}
    records = [record for record in read_runs(folder) if record.task in run.tasks]
    return {record.task: (record.main_metric, record.metrics[record.main_metric]) for record in records}
