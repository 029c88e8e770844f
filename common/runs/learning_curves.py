"""How runs learned, as charts and as a picture: what each evaluation measured, run beside run, from metrics.jsonl.

What is drawn follows from what was measured, so that trainings of every stage can be drawn, also while they run. Zero
lines that no training measures are read from what it leaves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from beit.common.errors import InputError, require
from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.numbers import ABSENT, count, percent
from beit.common.pages.pictures import PALETTE, sheet
from beit.common.runs.kinds import command_of
from beit.common.runs.layout import DESCRIPTION, ENCODER, EVALUATION, METRICS, MODEL
from beit.common.runs.metrics import read_metrics
from beit.common.storage.documents import but_is, read_json

_CHART_PX, _MOST_RUNS = (560, 360), 6
_SAME = 1e-6
"""Relative difference below which two runs have the same zero line."""

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    """One chart: a measure, what accompanies it, and what it is compared with."""

    title: str
    """Above it."""
    main: str
    """Metric drawn as a line with dots."""
    faint: str = ""
    """Metric drawn pale beside it."""
    faint_name: str = "training images"
    """What it is, where it stands in words."""
    references: tuple[tuple[str, str], ...] = ()
    """Metrics that do not change in the course of a run, and their names."""
    relative_to: str = ""
    """Metric by which all values are divided."""
    percent: bool = False
    """Whether values are shares."""
    unit: str = ""
    """Of values that are none."""
    is_count: bool = False
    """Whether values are whole numbers."""

    def shown(self, value: float) -> str:
        """Write a value with its unit."""
        if self.percent:
            return percent(value)
        return count(value) if self.is_count else f"{value:.2f} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """A kind of training, known by what it measures."""

    name: str
    """Heading."""
    panels: tuple[_Panel, ...]
    """Those whose measure was taken are drawn; the first tells the kind."""
    legend: str
    """How to read it."""


CHANCE = "chance"
"""Of the main measure; no metric of a training, but known from what it leaves."""


def _classification(name: str, main: str, measure: str) -> _Kind:
    return _Kind(
        name=name,
        panels=(
            _Panel(
                title=f"{measure} on validation images",
                main=main,
                references=((CHANCE, "guessing"),) if main == "val_top1" else (),
                percent=True,
            ),
            _Panel(title="loss on validation images, nats", main="val_loss"),
        ),
        legend="All validation images that were set aside for the course of the run, each once.",
    )


_PROBE = _Panel(
    title="frozen features: linear probe, and pale, k-NN",
    main="probe_linear_acc",
    faint="probe_knn_acc",
    faint_name="k-NN",
    references=(("probe_chance", "commonest class"),),
    percent=True,
)
_BITS = _Panel(
    title="bits per masked token",
    main="held_out_bits",
    faint="train_bits",
    references=(("unigram_bits", "unigram"), ("neighbour_bits", "neighbour")),
    unit="bits",
)
_KINDS = (
    _Kind(
        name="Pre-training on visual tokens",
        panels=(
            _BITS,
            _Panel(
                title="masked tokens right",
                main="held_out_acc",
                faint="train_acc",
                references=(("unigram_acc", "commonest word"),),
                percent=True,
            ),
            _PROBE,
        ),
        legend="Lines with dots: images held out from training, under fixed masks; pale: training images, under the "
        "same. Grey: what is known without looking at the image (unigram: how frequent tokens are), and from the "
        "nearest visible patch alone (neighbour). Below both is learning; held-out that rises while training falls is "
        "memorising.",
    ),
    _Kind(
        name="Pre-training on pixels",
        panels=(
            _Panel(
                title="squared error, as a share of predicting the mean",
                main="held_out_mse",
                faint="train_mse",
                relative_to="mean_mse",
                percent=True,
            ),
            _PROBE,
        ),
        legend="Lines with dots: images held out from training, under fixed masks; pale: training images. 100 % is "
        "what always predicting the mean gives.",
    ),
    _classification("Classification", "val_top1", "top-1"),
    _classification("Classification, several labels per image", "val_map", "mean average precision"),
    _Kind(
        name="Segmentation",
        panels=(
            _Panel(
                title="mean IoU on validation images",
                main="val_miou",
                references=((CHANCE, "commonest class everywhere"),),
                percent=True,
            ),
            _Panel(
                title="pixels right",
                main="val_pixel_accuracy",
                faint="train_pixel_accuracy",
                faint_name="batches of training",
                percent=True,
            ),
        ),
        legend="Lines with dots: validation images that were set aside for the course of the run; pale: the batches of "
        "training, as they were changed for it.",
    ),
    _Kind(
        name="Training of a tokenizer",
        panels=(
            _Panel(
                title="reconstruction (PSNR), dB",
                main="eval_psnr",
                faint="psnr",
                faint_name="batches of training",
                references=(("eval_block_mean_psnr", "mean colour of each square"),),
                unit="dB",
            ),
            _Panel(title="words in use, held-out images", main="eval_words_used", is_count=True),
        ),
        legend="Lines with dots: held-out images; pale: the batches of training.",
    ),
    _Kind(
        name="Distilling a tokenizer",
        panels=(
            _Panel(
                title="cosine of the teacher's features and what words tell of them",
                main="eval_teacher_cosine",
                faint="teacher_cosine",
                faint_name="batches of training",
            ),
            _Panel(title="words in use, held-out images", main="eval_words_used", is_count=True),
            _Panel(
                title="squares that keep their word; pale, by chance",
                main="eval_agreement",
                faint="eval_agreement_by_chance",
                faint_name="by chance",
                percent=True,
            ),
        ),
        legend="Lines with dots: held-out images; pale beside the cosine: the batches of training. A square keeps its "
        "word if it has the same one in mirror image and in other colours.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRun:
    """What one run measured."""

    path: Path
    """Its directory."""
    name: str
    """As short as it can be told from the others."""
    records: Sequence[Record]
    """In the order of the steps."""
    colour: tuple[int, int, int]
    """Of its lines."""
    kept_step: int | None = None
    """Step of the model that the run keeps for use; None where nothing says it."""
    chance: float | None = None
    """Main measure of who does not look at the image; None where nothing says it, or records do."""

    @property
    def epochs_per_step(self) -> float | None:
        """Passes over the images per step; None before the first log entry."""
        ratios = [record["epoch"] / record["step"] for record in self.records if record.get("epoch") and record["step"]]
        return ratios[-1] if ratios else None

    def values(self, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) of all records that have it."""
        return [(record["step"], record[metric]) for record in self.records if record.get(metric) is not None]

    def drawn(self, panel: _Panel, metric: str) -> list[tuple[int, float]]:
        """Return (step, value) as a panel shows them."""
        divisor = (self.last(panel.relative_to) or 1.0) if panel.relative_to else 1.0
        return [(step, value / divisor) for step, value in self.values(metric)]

    def kept(self, panel: _Panel, metric: str) -> tuple[int, float] | None:
        """Return (step, value as a panel shows it) of the model that is kept; None where it was not measured."""
        return next((point for point in self.drawn(panel, metric) if point[0] == self.kept_step), None)

    def last(self, metric: str) -> float | None:
        """Return the newest value; None without one."""
        if metric == CHANCE:
            return self.chance
        values = self.values(metric)
        return values[-1][1] if values else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Once:
    """A measure that each run has one value of, at most: dots, which a table says better."""

    measure: str
    """What it is."""
    values: tuple[str, ...]
    """Of every run, written."""
    compare: str
    """What they are to be held against; empty where nothing is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningCharts:
    """How runs of one kind learned, ready to be drawn."""

    kind: str
    """Heading."""
    charts: tuple[LineChart, ...]
    """One per measure, the main one first."""
    facts: tuple[str, ...]
    """What each run came to."""
    legend: str
    """How to read them."""
    once: tuple[Once | None, ...] = ()
    """For each chart, what it says in words where that is a single evaluation of each run."""
    members: tuple[str, ...] = ()
    """Names of the runs."""


def learning_sheet(runs: Sequence[Path]) -> Image.Image:
    """Draw how runs of one stage, at most six, learned; they may still be at work."""
    require(len(runs) <= _MOST_RUNS, f"{len(runs)} runs are too many for one picture; name at most {_MOST_RUNS}")
    require(len(set(runs)) == len(runs), "the same run is named twice; name each once")
    opened = [
        learning_run(path, name=name, colour=colour)
        for path, name, colour in zip(runs, _short_names(runs), PALETTE, strict=False)
    ]
    kinds = [_kind_of(run) for run in opened]
    for kind, path in zip(kinds, runs, strict=True):
        require(
            kind is kinds[0],
            f"{path} ({kind.name.lower()}) and {runs[0]} ({kinds[0].name.lower()}) measure different things; draw them "
            "into pictures of their own",
        )
    found = _learning(kinds[0], opened)
    return sheet(
        [line_charts(found.charts, chart_px=_CHART_PX, columns=2, key=len(opened) > 1)],
        heading=found.kind,
        facts="\n".join(found.facts),
        legend=f"{found.legend} Ringed: the model that is kept.",
    )


def learning_charts(runs: Sequence[LearningRun]) -> list[LearningCharts]:
    """Return what is to be drawn of runs, kind by kind in the order of the runs; those without evaluation are none."""
    members: dict[str, list[LearningRun]] = {}
    for run in runs:
        if (kind := _find_kind(run)) is not None:
            members.setdefault(kind.name, []).append(run)
    return [_learning(kind, members[kind.name]) for name in members for kind in _KINDS if kind.name == name]


def learning_run(path: Path, *, name: str, colour: tuple[int, int, int]) -> LearningRun:
    """Read what a run measured; it may still be at work."""
    records = _records(path)
    return LearningRun(
        path=path, name=name, records=records, colour=colour, kept_step=_kept_step(path), chance=_chance(path)
    )


def _learning(kind: _Kind, runs: Sequence[LearningRun]) -> LearningCharts:
    panels = [_comparable(panel, runs) for panel in kind.panels if any(run.values(panel.main) for run in runs)]
    return LearningCharts(
        kind=kind.name,
        charts=tuple(_chart(panel, runs) for panel in panels),
        facts=tuple(_facts(run, panels[0]) for run in runs),
        legend=kind.legend,
        once=tuple(_once(panel, runs) for panel in panels),
        members=tuple(run.name for run in runs),
    )


def _once(panel: _Panel, runs: Sequence[LearningRun]) -> Once | None:
    measured = [(run.drawn(panel, panel.main), run.drawn(panel, panel.faint)) for run in runs]
    if any(len(points) > 1 for both in measured for points in both):
        return None
    values = []
    for main, faint in measured:
        beside = f" ({panel.faint_name} {panel.shown(faint[0][1])})" if faint else ""
        values.append(panel.shown(main[0][1]) + beside if main else ABSENT)
    known = "; ".join(name for _, name in _references(panel, runs))
    return Once(measure=re.split("[,;] (?:and )?pale", panel.title)[0], values=tuple(values), compare=known)


def _references(panel: _Panel, runs: Sequence[LearningRun]) -> list[tuple[float, str]]:
    """Return values that all runs are to be held against, and what they are."""
    return [
        (value, f"{name} {panel.shown(value)}")
        for metric, name in panel.references
        if _is_shared(metric, runs) and (value := runs[0].last(metric)) is not None
    ]


def _records(path: Path) -> list[dict[str, Any]]:
    if not (path / METRICS).is_file():
        command = command_of(path)
        found = f" but of {command}, which has no curve" if command is not None else but_is(path)
        raise InputError(
            f"{path} is not the directory of a training run{found} (no {METRICS}); name a RUN of a training"
        )
    return read_metrics(path / METRICS)


def _kept_step(path: Path) -> int | None:
    """Return the step of the model in the folder of a run, or of the encoder, or of the tokenizer that it is itself."""
    for folder, origin in ((path / MODEL, "provenance"), (path / ENCODER, "provenance"), (path, "training")):
        file = folder / DESCRIPTION
        if not file.is_file():
            continue
        try:
            step = read_json(file)[origin]["step"]
        except (InputError, KeyError, TypeError):  # the picture is of the metrics, and is drawn without a mark
            return None
        return step if isinstance(step, int) else None
    return None


def _chance(path: Path) -> float | None:
    """Return what guessing gives a classifier, or what `beit evaluate` found for a segmenter; None where unknown."""
    try:
        names = read_json(path / MODEL / DESCRIPTION).get("class_names")
        found = 1 / len(names) if names else read_json(path / EVALUATION).get(CHANCE)
    except (InputError, OSError, AttributeError, TypeError):
        return None
    return found if isinstance(found, float) else None


def _short_names(runs: Sequence[Path]) -> list[str]:
    """Leave out the folders all runs have in common."""
    if len(runs) == 1:
        return [runs[0].resolve().name]
    absolute = [run.resolve() for run in runs]
    shared = Path(os.path.commonpath([str(path.parent) for path in absolute]))
    return [str(path.relative_to(shared)) for path in absolute]


def _kind_of(run: LearningRun) -> _Kind:
    kind = _find_kind(run)
    if kind is None:
        raise InputError(f"{run.path} has no evaluation yet, or none that is drawn; let it run on to its first one")
    return kind


def _find_kind(run: LearningRun) -> _Kind | None:
    return next((kind for kind in _KINDS if run.values(kind.panels[0].main)), None)


def _comparable(panel: _Panel, runs: Sequence[LearningRun]) -> _Panel:
    """Make of bits what runs with other words can be compared by."""
    if panel is not _BITS or all(_is_shared(name, runs) for name, _ in panel.references):
        return panel
    return _Panel(
        title="bits per masked token, as a share of unigram",
        main=panel.main,
        faint=panel.faint,
        relative_to="unigram_bits",
        percent=True,
    )


def _is_shared(metric: str, runs: Sequence[LearningRun]) -> bool:
    values = [value for run in runs if (value := run.last(metric)) is not None]
    return not values or max(values) - min(values) <= _SAME * abs(max(values))


def _chart(panel: _Panel, runs: Sequence[LearningRun]) -> LineChart:
    by_epoch = all(run.epochs_per_step for run in runs)
    lines = []
    for run in runs:
        for metric, is_faint in ((panel.main, False), (panel.faint, True)):
            scale = (run.epochs_per_step or 1.0) if by_epoch else 1.0
            points = [(step * scale, value) for step, value in run.drawn(panel, metric)]
            if points:
                mark = None if is_faint else _mark(panel, run, scale, is_named=len(runs) == 1)
                lines.append(Line(name=run.name, points=points, colour=run.colour, is_faint=is_faint, mark=mark))
    return LineChart(
        lines=lines,
        title=panel.title,
        x_name="passes over the images" if by_epoch else "steps",
        references=_references(panel, runs),
        percent=panel.percent,
    )


def _mark(panel: _Panel, run: LearningRun, scale: float, *, is_named: bool) -> tuple[float, float, str] | None:
    """Ring the model that is kept; the values of several runs would lie upon each other, and are among the facts."""
    point = run.kept(panel, panel.main)
    if point is None:
        return None
    return point[0] * scale, point[1], f"kept: {panel.shown(point[1])}" if is_named else ""


def _facts(run: LearningRun, panel: _Panel) -> str:
    """Say what the evaluation of the kept model measured, and the last one where that is another."""
    step, value = run.drawn(panel, panel.main)[-1]
    kept, last = run.kept(panel, panel.main), f"{panel.shown(value)} at step {step:,}"
    if kept is None:
        return f"{run.name}: {last}"
    if kept[0] == step:
        return f"{run.name}: kept with {last}, the last measured"
    return f"{run.name}: kept with {panel.shown(kept[1])} at step {kept[0]:,}; last {last}"
