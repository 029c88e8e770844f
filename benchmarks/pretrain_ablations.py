"""What masks, objective and number of views are worth: one small pre-training per row, all of the same length.

    python benchmarks/pretrain_ablations.py --train cifar10/train.parquet --val cifar10/test.parquet --out runs/rows

Every row sees the same images in the same order with the same masks, for the same number of steps; only what the row
names differs. Each row is a `beit pretrain` run, then a few fine-tunings of its encoder on few labels. Everything is a
`beit` command that goes on where it stopped, and finished steps are not repeated, so the script may be killed and run
again, with other `--rows` too. A table of what is there is written after every step (OUT/table.md, OUT/table.json).

Views are drawn by (seed, image, number of the view), so a store with K = 1 holds the first of the views of one with
K = 16. Held-out images are always seen under the first one, and under one mask: rows with tokens and blockwise masks
are measured on exactly the same words.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click

from beit.common.processes.signals import LAUNCHER_PID_VARIABLE
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.runs.metrics import read_metrics
from beit.common.sources.index_build import build_index
from beit.common.storage.documents import write_json
from beit.pretrain.signal.verdict import TREND_BITS

HELD_OUT_SHARE = 1 / 6
"""Of the images; many, because the table compares what is measured on them."""
RESUMABLE = 75
"""Exit code of a `beit` command that was stopped and goes on when it is run again."""
NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what differs from the baseline."""

    title: str
    views: int = 16
    """K; 0 draws a fresh view, and computes its tokens, every time."""
    settings: tuple[str, ...] = ()
    """Of `beit pretrain`."""
    is_pretrained: bool = True


ROWS = {
    "blockwise": Row(title="blockwise masks, tokens, K = 16"),
    "scratch": Row(title="no pre-training", is_pretrained=False),
    "views-1": Row(title="K = 1", views=1),
    "online": Row(title="tokens online, a fresh view every time", views=0),
    "random": Row(title="random masks", settings=("mask.mode=random",)),
    "pixels": Row(
        title="pixels instead of tokens",
        settings=("objective.kind=masked_pixels", "objective.normalize_patches=false"),
    ),
    "views-4": Row(title="K = 4", views=4),
    "pixels-normalized": Row(title="pixels, each patch standardised", settings=("objective.kind=masked_pixels",)),
}


@dataclass
class Bench:
    """The folder of one table, and the settings all rows share."""

    out: Path
    train: str
    val: str
    num_images: int
    tokenizer: str
    threads: int
    num_labels: int
    seeds: tuple[int, ...]
    shared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Options of the stages "tokenize", "pretrain" and "finetune" that are the same in every row."""

    @property
    def images(self) -> Path:
        """Where the images of the table lie, in class folders."""
        return self.out / "images"

    def commands(self, name: str) -> dict[str, list[str]]:
        """List the `beit` commands of a row by the name of their step, in order."""
        row, folder = ROWS[name], self.out / name
        commands, encoder = {}, "random"
        if row.is_pretrained:
            store = self.out / f"store-{row.views}"
            commands[store.name] = ["tokenize", str(self.images), str(store), "--views", str(row.views)]
            commands[store.name] += ["--tokenizer", self.tokenizer, *self.shared["tokenize"]]
            online = () if row.views else (f"tokenizer.online={self.tokenizer}",)
            commands[f"{name}/pretrain"] = ["pretrain", str(store), str(folder / "pretrain"), *self.shared["pretrain"]]
            commands[f"{name}/pretrain"] += sets((*row.settings, *online))
            encoder = str(folder / "pretrain/encoder")
        for seed in self.seeds:
            step = f"{name}/labels-{self.num_labels}-seed-{seed}"
            run = self.out / step
            words = ["finetune", "classification", str(self.images), str(run), "--encoder", encoder]
            choice = (f"data.num_labels={self.num_labels}", f"data.subset_seed={seed}", f"train.seed={seed}")
            commands[step] = [*words, *self.shared["finetune"], *sets(choice)]
            commands[f"{step}/evaluation"] = ["evaluate", str(run / "model"), self.val]
            commands[f"{step}/evaluation"] += ["--out", str(run / "evaluation.json")]
        return commands

    def run(self, name: str) -> None:
        """Do what is left of a row.

        Raises:
            CommandError: a command failed.
        """
        for step, words in self.commands(name).items():
            finished = read_finished(self.out)
            entry = finished.setdefault(step, {"command": words, "seconds": 0.0, "is_finished": False})
            if entry["is_finished"] and entry["command"] == words:
                continue
            started = time.monotonic()
            code = run_beit(words, threads=self.threads)
            entry |= {
                "command": words,
                "is_finished": code == 0,
                "seconds": entry["seconds"] + time.monotonic() - started,
            }
            write_json(self.out / "finished.json", finished)
            write_table(self)
            if code:
                raise CommandError(step, code)

    def is_finished(self, step: str) -> bool:
        """Whether a step was done."""
        return bool(read_finished(self.out).get(step, {}).get("is_finished"))


class CommandError(Exception):
    """A `beit` command that did not end well."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"{step} ended with exit code {code}")
        self.code = code


@click.command()
@click.option("--train", required=True, help="Labelled images; pre-training does not look at the labels.")
@click.option("--val", required=True, help="Labelled images to measure on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--rows", default=",".join(ROWS), show_default=True, help="Rows to run, in this order.")
@click.option(
    "--images", default=6000, show_default=True, help="Of --train, without and with labels; a sixth held out."
)
@click.option("--steps", default=3200, show_default=True, help="Steps of every pre-training, of 32 images.")
@click.option("--labels", default=500, show_default=True, help="Labels to fine-tune on.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds of the fine-tunings and their labels.")
@click.option("--tokenizer", default="mini", show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads of every command.")
@click.option("--img-size", default=32, show_default=True, help="Side of the image in pixels.")
@click.option("--patch-size", default=4, show_default=True, help="Side of a patch in pixels.")
@click.option("--model", default="128,4,4", show_default=True, metavar="WIDTH,DEPTH,HEADS", help="Size of the model.")
@click.option("--pretrain-set", multiple=True, metavar="KEY=VALUE", help="Further settings of every pre-training.")
@click.option("--finetune-set", multiple=True, metavar="KEY=VALUE", help="Further settings of every fine-tuning.")
@click.option("--table", "table_only", is_flag=True, help="Run nothing; print the table of what is there.")
def main(**options: Any) -> None:
    """Run the rows and print the table."""
    bench = bench_of(options)
    names = [name for name in options["rows"].split(",") if name]
    if unknown := set(names) - set(ROWS):
        raise click.BadParameter(
            f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}", param_hint="--rows"
        )
    failures = []
    if not options["table_only"]:
        choose_images(bench)
        for name in names:
            try:
                bench.run(name)
            except CommandError as error:
                if error.code == RESUMABLE:
                    click.echo("stopped; the same command goes on")
                    raise click.exceptions.Exit(RESUMABLE) from None
                failures.append(str(error))
                click.echo(f"{error}; the other rows go on", err=True)
    click.echo(write_table(bench))
    for failure in failures:
        click.echo(failure, err=True)
    if failures:
        raise click.exceptions.Exit(1)


def bench_of(options: dict[str, Any]) -> Bench:
    """Make of the options what the rows share."""
    size, patch = options["img_size"], options["patch_size"]
    width, depth, heads = options["model"].split(",")
    model = (f"model.embed_dim={width}", f"model.depth={depth}", f"model.num_heads={heads}")
    steps, out = options["steps"], options["out"]
    pretrain = (
        f"train.steps={steps}",
        "train.global_batch_size=32",
        f"optimizer.warmup_steps={steps // 16}",
        f"train.eval_interval_steps={max(1, steps // 4)}",
        f"checkpoint.interval_steps={max(1, steps // 16)}",
        "reader.num_workers=0",
        f"probe.data={out / 'images'}",
        f"probe.test={options['val']}",
    )
    finetune = ("reader.num_workers=0", "train.eval_interval_steps=100000", f"image.img_size={size}")
    return Bench(
        out=out,
        train=options["train"],
        val=options["val"],
        num_images=options["images"],
        tokenizer=options["tokenizer"],
        threads=options["threads"],
        num_labels=options["labels"],
        seeds=tuple(map(int, options["seeds"].split(","))),
        shared={
            "tokenize": ("--img-size", str(size), "--patch-size", str(patch), "--workers", "1")
            + sets((f"threads={options['threads']}", f"held_out.fraction={HELD_OUT_SHARE:.6f}")),
            "pretrain": ("--recipe", "beit_tiny_patch4_32", *sets((*model, *pretrain, *options["pretrain_set"]))),
            "finetune": (
                *("--recipe", "cifar10_tiny"),
                *sets((*model, *finetune, f"image.patch_size={patch}", *options["finetune_set"])),
            ),
        },
    )


def sets(settings: tuple[str, ...]) -> tuple[str, ...]:
    """Turn KEY=VALUE items into --set options."""
    return tuple(word for setting in settings for word in ("--set", setting))


def choose_images(bench: Bench) -> None:
    """Write the images of the table to class folders, with the class proportions of all."""
    if bench.images.exists():
        return
    index = build_index(bench.train)
    index.require_labels()
    index = index.subset(num_labels=min(bench.num_images, len(index)))
    names = index.class_names or [f"{class_id:03d}" for class_id in range(index.num_classes)]
    dataset, partial = LabelledDataset(index), bench.out / "images.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for shard_id, size in enumerate(index.shard_sizes.tolist()):
        for rank in range(size):
            record = dataset.fetch(shard_id, rank, 0)
            folder = partial / names[record.label]
            folder.mkdir(parents=True, exist_ok=True)
            suffix = "png" if record.image_bytes.startswith(b"\x89PNG") else "jpg"
            (folder / f"{shard_id:05d}-{rank:05d}.{suffix}").write_bytes(record.image_bytes)
    partial.rename(bench.images)  # complete, or not there


def run_beit(words: list[str], *, threads: int) -> int:
    """Run one `beit` command, printed first, and return its exit code; SIGTERM is passed on, so that it saves."""
    click.echo(f"$ beit {shlex.join(words)}")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment[LAUNCHER_PID_VARIABLE] = str(os.getpid())  # killed, the script takes the command with it
    process = subprocess.Popen([sys.executable, "-m", "beit.cli", *words], env=environment)
    # Ctrl-C reaches the command through the terminal; here it must not end the script before the command has saved.
    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
    }
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return RESUMABLE if code in (-signal.SIGTERM, -signal.SIGINT, 130, 143) else code


def read_finished(out: Path) -> dict[str, dict[str, Any]]:
    """Return what was done so far: step -> command, seconds, is_finished."""
    path = out / "finished.json"
    return json.loads(path.read_text()) if path.exists() else {}


def results_of(bench: Bench, name: str) -> dict[str, Any]:
    """Return what is known of a row: the last evaluation of its pre-training, and its accuracies after fine-tuning."""
    results: dict[str, Any] = {"row": name, "title": ROWS[name].title}
    if bench.is_finished(f"{name}/pretrain"):
        records = read_metrics(bench.out / name / "pretrain/metrics.jsonl")
        evaluations = [record for record in records if "held_out_images" in record]
        results["evaluation"], loss = evaluations[-1], "held_out_bits"
        results["epochs"] = max(record["epoch"] for record in records if "epoch" in record)
        if loss in evaluations[-1]:
            best = min(evaluations, key=lambda record: record[loss])
            results["best"] = {"step": best["step"], "bits": best[loss]}
    scores = []
    for seed in bench.seeds:
        step = f"{name}/labels-{bench.num_labels}-seed-{seed}"
        if bench.is_finished(f"{step}/evaluation"):
            scores.append(json.loads((bench.out / step / "evaluation.json").read_text())["top1"])
    finished = read_finished(bench.out)
    seconds = {step: round(entry["seconds"]) for step, entry in finished.items() if step.startswith(f"{name}/")}
    return results | {"top1": scores, "seconds": seconds}


def write_table(bench: Bench) -> str:
    """Write table.md and table.json of what is there, and return the former."""
    rows = {name: results_of(bench, name) for name in ROWS}
    lines = rows["blockwise"].get("evaluation", {})
    header = [
        "| row | each view seen | held-out bits per token (training images) | below unigram | below neighbour "
        f"| masked accuracy (chance) | top-1 with {bench.num_labels} labels | linear probe | k-NN |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    table = "\n".join([*header, *(table_row(row, lines) for row in rows.values())]) + "\n"
    (bench.out / "table.md").write_text(table)
    write_json(bench.out / "table.json", list(rows.values()))
    return table


def table_row(row: dict[str, Any], baseline: dict[str, float]) -> str:
    """Format one row. Rows that predict the words of the baseline are read against its lines, fitted to most views."""
    found, name = row.get("evaluation"), row["row"]
    cells = [NOT_RUN if ROWS[name].is_pretrained else "-"] * 4
    probed, reuse = cells[:2], cells[0]
    if found and "held_out_bits" in found:
        own = not baseline or ROWS[name].settings
        unigram, neighbour = (float((found if own else baseline)[f"{line}_bits"]) for line in ("unigram", "neighbour"))
        bits = found["held_out_bits"]
        cells = [f"{bits:.2f} ({found['train_bits']:.2f})", f"{unigram - bits:.2f}", f"{neighbour - bits:.2f}"]
        if row["best"]["bits"] < bits - TREND_BITS:
            cells[0] += f", was {row['best']['bits']:.2f} at step {row['best']['step']}"
        cells.append(f"{found['held_out_acc']:.1%} ({found['unigram_acc']:.1%})")
    elif found:
        share = found["held_out_mse"] / found["mean_mse"]
        cells = [
            f"squared error {share:.1%} of the mean's ({found['train_mse'] / found['mean_mse']:.1%})",
            "-",
            "-",
            "-",
        ]
    if found:
        views = ROWS[name].views
        reuse = f"{row['epochs'] / views:.1f} times" if views else "once"
        probed = [f"{found['probe_linear_acc']:.1%}", f"{found['probe_knn_acc']:.1%}"]
    return "| " + " | ".join([f"`{name}`: {row['title']}", reuse, *cells, accuracy(row["top1"]), *probed]) + " |"


def accuracy(scores: list[float]) -> str:
    """Format a mean over seeds with its standard deviation."""
    if not scores:
        return NOT_RUN
    spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
    return (
        f"{100 * fmean(scores):.1f}{spread} % ({len(scores)} seeds)" if spread else f"{100 * scores[0]:.1f} % (1 seed)"
    )


if __name__ == "__main__":
    main()
