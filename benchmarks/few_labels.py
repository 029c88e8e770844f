"""Does pre-training help when labels are few? An encoder against random weights, on some of the labels of a data set.

    python benchmarks/few_labels.py --train cifar10/train.parquet --val cifar10/test.parquet \
        --encoder runs/tiny/encoder --out runs/few_labels > table.md

Each row takes so many labels, fine-tunes both with the same recipe, and measures the frozen features of both. Every
seed draws other labels, the same for both, so that their difference is that of pairs. In the end a run is measured on
all validation images, with the weights of its last step: nothing is chosen on them.

Every run is a `beit` command with a folder of its own. The script may be stopped or killed at any time: started
again, it keeps what is finished and goes on with what is not. Rows that `--rows` leaves out are shown as far as
they are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from beit.benchmarks.paired_runs import (
    NAMES,
    STARTS,
    Runner,
    cell,
    claim,
    interval,
    parse_seeds,
    run_script,
    sets,
    unless_finished,
)
from beit.common.config import load_config
from beit.common.errors import InputError
from beit.common.pages.charts import Line, LineChart, line_charts
from beit.common.pages.pictures import PALETTE, save_png, sheet
from beit.common.processes.signals import stop_on_signals
from beit.common.runs.environment import environment
from beit.common.sources.index_build import build_index
from beit.common.storage.documents import write_json
from beit.common.storage.files import sha256_file
from beit.common.vit.description import WEIGHTS_FILE, find_encoder
from beit.finetune.commands import RECIPES
from beit.finetune.compare.runs import RunRecord, read_runs
from beit.finetune.config import FinetuneConfig

SCRIPT = "few_labels.py"
ALL = "all"
MEASURES = {
    "finetune": {"fine-tuned": "classification"},
    "probe": {"linear probe": "linear-probe", "k-NN": "knn"},
}
"""What each kind of run measures, and what `beit compare` calls that."""
CHART_PX = (380, 300)
EVALUATIONS = 4
"""In the course of a run; arbitrary."""
RESULT_FILE = "few_labels.json"
"""In the folder of a finished run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One number of labels and one kind of run."""

    kind: str
    """finetune or probe."""
    labels: str
    """Number of labels, or all."""
    num_labels: int
    """The same as a number."""
    epochs: float
    """Passes of the fine-tuning."""

    @property
    def name(self) -> str:
        """As `--rows` spells it."""
        return f"{self.kind}-{self.labels}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared, on what."""

    train: str
    """Labelled images."""
    val: str
    """To measure on."""
    out: Path
    """Where the runs are."""
    encoder: str
    """The pre-trained one."""
    recipe: str
    """Of the fine-tuning."""
    settings: tuple[str, ...]
    """Changes to it, KEY=VALUE."""
    random_settings: tuple[str, ...]
    """Changes for random weights only."""
    val_images: int | None
    """To measure on in the course of a run."""

    def run_folder(self, row: Row, start: str, seed: int) -> Path:
        """Return where a run is."""
        return self.out / f"{row.name}-{start}-seed{seed}"

    def options(self, row: Row, start: str, seed: int) -> list[str]:
        """Return the options of the `beit finetune` command of a run."""
        chosen = [*self.settings, *(self.random_settings if start == "random" else ()), f"train.seed={seed}"]
        if row.labels != ALL:
            chosen += [f"data.num_labels={row.num_labels}", f"data.subset_seed={seed}"]
        if row.kind == "finetune":
            base = load_config(FinetuneConfig, recipe=self.recipe, overrides=chosen, recipe_dir=RECIPES)
            steps = int(row.epochs * row.num_labels) // base.train.global_batch_size
            chosen += [f"train.epochs={row.epochs:g}", f"train.eval_interval_steps={max(1, steps // EVALUATIONS)}"]
            chosen += [] if self.val_images is None else [f"data.num_val_images={self.val_images}"]
        encoder = self.encoder if start == "pre-trained" else "random"
        return ["--encoder", encoder, "--val", self.val, "--recipe", self.recipe, *sets(chosen)]


@click.command()
@click.option("--train", required=True, help="Labelled images to take the labels from.")
@click.option("--val", required=True, help="Labelled images to measure on.")
@click.option("--encoder", required=True, help="The pre-trained encoder, or its run directory.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for runs, table.json and table.png."
)
@click.option(
    "--labels",
    default="500:40,5000:8,all:2",
    show_default=True,
    metavar="N:EPOCHS,...",
    help="Numbers of labels, and for how many passes over them is fine-tuned.",
)
@click.option(
    "--rows", default=None, help="What to run, such as finetune-500,probe-500. [default: all but those of all labels]"
)
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Seeds; rows of all labels take the first.")
@click.option("--recipe", default="cifar10_tiny", show_default=True, help="Of the fine-tuning.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Changes to the recipe.")
@click.option("--random-set", "random_settings", multiple=True, metavar="KEY=VALUE", help="Only for random weights.")
@click.option("--val-images", default=2000, show_default=True, help="Measured on while training; 0 takes all.")
@click.option("--threads", default=1, show_default=True, help="Processor threads of a run.")
def main(labels: str, rows: str | None, seeds: str, threads: int, val_images: int, **paths: Any) -> None:
    """Run what is missing; write the table to the terminal as Markdown, to OUT/table.json, and as a picture."""
    comparison = Comparison(val_images=val_images or None, **paths)
    comparison.out.mkdir(parents=True, exist_ok=True)
    known = parse_rows(labels, total=len(build_index(comparison.train)))
    chosen = choose_rows(known, rows)
    encoder_sha256 = sha256_file(find_encoder(comparison.encoder) / WEIGHTS_FILE)
    numbers = parse_seeds(seeds)
    with claim(comparison.out, SCRIPT) as lock, stop_on_signals() as stop:
        runner = Runner(stop=stop, lock=lock, threads=threads)
        for seed in numbers:
            for row in (row for row in chosen if seed in seeds_of(row, numbers)):
                for start in STARTS:
                    ensure(comparison, row, start, seed, encoder_sha256=encoder_sha256, runner=runner)
    found = [
        summarize(comparison, row, measure, seeds=seeds_of(row, numbers))
        for row in known
        for measure in MEASURES[row.kind]
    ]
    settings = {**paths, "out": str(comparison.out), "val_images": val_images, "threads": threads}
    document = {"settings": settings, "encoder_sha256": encoder_sha256, "environment": environment(), "rows": found}
    write_json(comparison.out / "table.json", document)
    if any(None not in row["top1"].values() for row in found):
        save_png(picture(found), comparison.out / "table.png")
    click.echo(markdown(found, total=len(build_index(comparison.train))))


def parse_rows(labels: str, *, total: int) -> list[Row]:
    """Return the rows of `--labels`.

    Args:
        labels: N:EPOCHS, separated by commas.
        total: Labelled images there are.
    """
    rows = []
    for part in labels.split(","):
        number, _, epochs = part.partition(":")
        if not epochs or not (number == ALL or number.isdigit()):
            raise InputError(f"--labels {part!r} must be NUMBER:EPOCHS, such as 500:40, or {ALL}:EPOCHS")
        count = total if number == ALL else int(number)
        rows += [Row(kind=kind, labels=number, num_labels=count, epochs=float(epochs)) for kind in MEASURES]
    return rows


def choose_rows(known: Sequence[Row], names: str | None) -> list[Row]:
    """Return the rows to run; by default all but those of all labels."""
    if names is None:
        return [row for row in known if row.labels != ALL]
    by_name = {row.name: row for row in known}
    for name in names.split(","):
        if name not in by_name:
            raise InputError(f"--rows {name!r} must be among {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",")]


def seeds_of(row: Row, seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds of a row: of all labels there is only one subset, and its runs are long."""
    return seeds[:1] if row.labels == ALL else seeds


def ensure(comparison: Comparison, row: Row, start: str, seed: int, *, encoder_sha256: str, runner: Runner) -> None:
    """Do a run, or the rest of it, unless it is finished.

    Raises:
        InputError: the finished one had other settings, or another encoder.
    """
    folder, options = comparison.run_folder(row, start, seed), comparison.options(row, start, seed)
    identity = {"train": comparison.train, "options": options}
    identity |= {"encoder_sha256": encoder_sha256} if start == "pre-trained" else {}
    with unless_finished(folder / RESULT_FILE, identity) as is_to_do:
        if not is_to_do:
            return
        if row.kind == "finetune":
            runner.beit("finetune", "classification", comparison.train, folder, *options)
            runner.beit("evaluate", folder / "last", comparison.val, "--out", folder / "evaluation.json")
        else:
            runner.beit("finetune", "linear-probe", comparison.train, folder, *options)
            runner.beit("finetune", "knn", comparison.train, folder, *options)


def finished_runs(comparison: Comparison, row: Row, start: str, measure: str, seeds: Sequence[int]) -> list[RunRecord]:
    """Return what the finished runs of one start measured, seed by seed."""
    folders = [comparison.run_folder(row, start, seed) for seed in seeds]
    records = [record for folder in folders if (folder / RESULT_FILE).exists() for record in read_runs(folder)]
    return [record for record in records if record.task == MEASURES[row.kind][measure]]


def summarize(comparison: Comparison, row: Row, measure: str, *, seeds: Sequence[int]) -> dict[str, Any]:
    """Return one line of the table as plain values; unfinished runs are missing in it."""
    ours, random = (finished_runs(comparison, row, start, measure, seeds) for start in STARTS)
    pairs = [(one.metrics["top1"], other.metrics["top1"]) for one in ours for other in random if one.seed == other.seed]
    return {
        "labels": row.num_labels,
        "measure": measure,
        "epochs": row.epochs if row.kind == "finetune" else None,
        "wanted_seeds": len(seeds),
        "runs": {
            start: [
                {"seed": list(run.seed), **run.metrics, "device_seconds": run.budget.device_seconds} for run in runs
            ]
            for start, runs in zip(STARTS, (ours, random), strict=True)
        },
        "top1": {
            start: interval([run.metrics["top1"] for run in runs])
            for start, runs in zip(STARTS, (ours, random), strict=True)
        },
        "difference": interval([one - other for one, other in pairs]),
        "wins": sum(one > other for one, other in pairs),
    }


def markdown(rows: Sequence[Mapping[str, Any]], *, total: int) -> str:
    """Return the table for reading."""
    lines = [
        "| labels | measured | pre-trained, top-1 | random weights, top-1 | difference in points | seeds | wins |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        epochs = row["epochs"]
        passes = "" if epochs is None else f", {epochs:g} epoch{'' if epochs == 1 else 's'}"
        counts = [len(row["runs"][start]) for start in STARTS]
        pairs = row["difference"]["num_values"] if row["difference"] else 0
        done = str(pairs) if min(counts) == row["wanted_seeds"] else f"{pairs} of {row['wanted_seeds']}"
        cells = [
            f"{row['labels']} ({100 * row['labels'] / total:.3g} %)",
            row["measure"] + passes,
            *(cell(row["top1"][start], " %") for start in STARTS),
            cell(row["difference"], "", signed=True),
            done,
            f"{row['wins']} of {pairs}" if pairs else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "Mean over the seeds and its 95 % interval (Student's t); every seed draws other labels, the same for both "
        "starts, and the difference is that of these pairs."
    )
    return "\n".join([*lines, "", note])


def picture(rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Draw the means of the table over the number of labels, one chart per measure; unfinished rows are left out."""
    means = [mean["mean"] for row in rows for mean in row["top1"].values() if mean is not None]
    y_range = (max(0.0, min(means) - 0.03), max(means) + 0.03)  # one for all, so that the charts compare
    charts = []
    for measure in (measure for kind in MEASURES.values() for measure in kind):
        finished = [row for row in rows if row["measure"] == measure and None not in row["top1"].values()]
        lines = [
            Line(
                name=NAMES[start],
                points=[(math.log10(row["labels"]), row["top1"][start]["mean"]) for row in finished],
                colour=colour,
            )
            for start, colour in zip(STARTS, PALETTE, strict=False)
        ]
        if finished:
            ticks = {math.log10(row["labels"]): f"{row['labels']}" for row in finished}
            named = {"title": f"{measure}, top-1", "x_name": "labels", "x_ticks": ticks}
            charts.append(LineChart(lines=lines, y_range=y_range, percent=True, **named))
    drawn = line_charts(charts, chart_px=CHART_PX, columns=len(charts), key=True)
    return sheet([drawn], heading="What pre-training is worth")


if __name__ == "__main__":
    run_script(main)
