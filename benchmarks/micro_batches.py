"""What do automatic micro-batches save, and cost: peak memory and speed of one pre-training beside an earlier version.

    python benchmarks/micro_batches.py --other /path/to/an/earlier/version/.venv/bin/python
    python benchmarks/micro_batches.py --micro-batch 4,8,16,32,64 --recipe beit_tiny_patch8_64 --batch 64

The contestants are whole commands, `beit pretrain` on generated photographs with the recipe as it is, for a few steps:
this version, which chooses; this version at sizes that are named; and with `--other` the beit of that interpreter,
which takes the whole batch at once. Each version makes a store of its own, of the same images. They take turns, one
process at a time; a process's rate is that of its steps after the first, its memory what the kernel says it had at
most, evaluation and checkpoint included. Rates are medians, ratios medians over rounds. The whole batch of the default
takes 14 GB.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from beit.benchmarks.stores import write_scenes
from beit.common.config import load_config
from beit.pretrain.commands import RECIPES
from beit.pretrain.config import PretrainConfig

OURS, OTHER = "this version", "the other version"


class Contestant:
    """One version of beit with some settings.

    Args:
        python: Its interpreter.
        store: Where it makes its store.
        command: What follows store and run in `beit pretrain`.
    """

    def __init__(self, python: str, store: Path, command: Sequence[str]) -> None:
        self._python, self.store, self._command = python, store, list(command)
        self.rates: list[float] = []
        self.peaks: list[int] = []

    def make_store(self, images: str, geometry: Sequence[str]) -> None:
        """Tokenise the images, unless that is done."""
        if not self.store.exists():
            self._run("tokenize", images, str(self.store), "--tokenizer", "mini", "--views", "1", *geometry)

    def turn(self, run: Path) -> None:
        """Train, and note rate and peak memory."""
        self.peaks.append(self._run("pretrain", str(self.store), str(run), *self._command))
        lines = (run / "metrics.jsonl").read_text().splitlines()
        rates = [record["images_per_second"] for record in map(json.loads, lines) if "images_per_second" in record]
        self.rates.append(statistics.harmonic_mean(rates[1:]))

    def _run(self, *arguments: str) -> int:
        """Run a command of beit to its end and return the most memory it had, in bytes."""
        environment = os.environ | {"PYTHONPATH": ""}
        words = [self._python, "-m", "beit.cli", *arguments]
        process = subprocess.Popen(words, env=environment, cwd="/", stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise click.ClickException(f"beit {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@click.command()
@click.option("--recipe", default="beit_small_patch16_224", show_default=True)
@click.option("--batch", default=None, type=int, help="Global batch.  [default: the recipe's]")
@click.option("--images", default=300, show_default=True, help="Generated photographs.")
@click.option("--steps", default=3, show_default=True, help="Per turn; the first is not counted.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--micro-batch", "sizes", default="", help="Sizes to try beside the chosen one, such as 8,16,32.")
@click.option("--other", default=None, help="Python of another checkout, to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    recipe: str, batch: int | None, images: int, steps: int, rounds: int, sizes: str, other: str | None, as_json: bool
) -> None:
    """Let the versions train in turns; print rates, peaks and ratios."""
    settings = [f"train.steps={steps}", "train.log_interval_steps=1", f"train.eval_interval_steps={steps}"]
    settings += [f"checkpoint.interval_steps={steps}", "held_out.train_images=0", "optimizer.warmup_steps=1"]
    settings += [f"train.global_batch_size={batch}"] if batch else []
    command = ["--recipe", recipe, *(word for setting in settings for word in ("--set", setting))]
    made_for = load_config(PretrainConfig, recipe=recipe, overrides=[], recipe_dir=RECIPES).data.made_for or (64, 8)
    geometry = ["--img-size", str(made_for[0]), "--patch-size", str(made_for[1])]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        scenes = write_scenes(folder / "images", images)
        contestants = {OURS: Contestant(sys.executable, folder / "ours", command)}
        for size in filter(None, sizes.split(",")):
            fixed = [*command, "--set", f"train.micro_batch_size={size}"]
            contestants[f"{OURS}, {size}"] = Contestant(sys.executable, folder / "ours", fixed)
        if other is not None:
            contestants[OTHER] = Contestant(other, folder / "other", command)
        for contestant in contestants.values():
            contestant.make_store(scenes, geometry)
        for turn in range(rounds):
            for number, contestant in enumerate(contestants.values()):
                contestant.turn(folder / f"run-{turn}-{number}")
    _report(contestants, standard=OTHER if other is not None else OURS, as_json=as_json)


def _report(contestants: dict[str, Contestant], *, standard: str, as_json: bool) -> None:
    base = contestants[standard]
    rows = {
        name: {
            "images_per_second": statistics.median(one.rates),
            "speed_ratio": statistics.median(a / b for a, b in zip(one.rates, base.rates, strict=True)),
            "peak_bytes": max(one.peaks),
            "peak_ratio": max(one.peaks) / max(base.peaks),
        }
        for name, one in contestants.items()
    }
    if as_json:
        click.echo(json.dumps({"standard": standard, "contestants": rows}))
        return
    click.echo(f"{'':24} images/s  of {standard}   peak memory  of it")
    for name, row in rows.items():
        click.echo(
            f"{name:24} {row['images_per_second']:8.2f} {row['speed_ratio']:20.3f} {row['peak_bytes'] / 1e9:10.2f} GB "
            f"{row['peak_ratio']:6.2f}"
        )


if __name__ == "__main__":
    main()
