"""Does it pay to continue an encoder on other images? Textile photographs and CIFAR-10, each way, by `beit worth`.

    python benchmarks/continuing.py --cifar cifar10/ --out runs/continuing

Each direction is a process: an encoder is pre-trained on one of the two data sets, stands for public weights, and is
held against itself continued on the other one's training images, a pre-training from scratch on these, and random
weights. The photographs are those of conformal-clip-data 0.1.4 (MIT licence; 2000 simulated ones in three classes),
written into OUT; nothing else is fetched. The script may be stopped or killed at any time and goes on.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from beit.benchmarks.paired_runs import run_script
from beit.common.errors import EXIT_RESUMABLE, InputError, ResumableStop, RunFailed
from beit.common.processes.signals import die_with_parent, stop_on_signals
from beit.common.rng import CounterRng
from beit.finetune.worth.runner import Runner, claim, sets, unless_finished

PACKAGE = "conformal_clip_data"
SCRIPT = "continuing.py"
DIRECTIONS = ("cifar-to-textile", "textile-to-cifar")
TEST_OF_CLASS = 3
"""Every third photograph of a class is measured on; arbitrary."""
SIZE = ["--img-size", "64", "--patch-size", "8"]
SHAPE = ["reader.num_workers=0"]


@click.command()
@click.option("--cifar", required=True, type=click.Path(path_type=Path), help="Folder of train.parquet, test.parquet.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for everything.")
@click.option("--steps", default=2000, show_default=True, help="Of every pre-training.")
@click.option("--passes", default=40, show_default=True, help="Over 150 labels; more over fewer, fewer over more.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--cifar-images", default=5000, show_default=True, help="Pre-trained on, of CIFAR-10; 1000 measured on.")
@click.option("--direction", type=click.Choice(DIRECTIONS), help="One of them, in this process; default: both at once.")
def main(cifar: Path, out: Path, direction: str | None, **options: object) -> None:
    """Run what is missing; each direction leaves worth.md, worth.json and worth.png in OUT/DIRECTION/worth."""
    out.mkdir(parents=True, exist_ok=True)
    if direction is not None:
        with claim(out / direction, SCRIPT) as lock, stop_on_signals() as stop:
            one_direction(out, direction, Runner(stop=stop, lock=lock, threads=1), **options)  # type: ignore[arg-type]
        return
    with claim(out, SCRIPT):
        write_textile(out / "textile")
        write_cifar(cifar, out / "cifar", int(str(options["cifar_images"])))
    for name in DIRECTIONS:
        (out / name).mkdir(exist_ok=True)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    own = [sys.executable, sys.argv[0], "--cifar", str(cifar), "--out", str(out), *words]
    both([[*own, "--direction", name] for name in DIRECTIONS])


def both(commands: Sequence[Sequence[str]]) -> None:
    """Run commands at once and wait for all; a request to stop goes to each."""
    with stop_on_signals() as stop:
        running = [
            subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent) for command in commands
        ]
        is_told = False
        while any(process.poll() is None for process in running):
            if stop.is_set() and not is_told:
                is_told = True
                for process in running:
                    process.send_signal(signal.SIGTERM)
            try:
                next(process for process in running if process.poll() is None).wait(timeout=0.5)
            except (subprocess.TimeoutExpired, StopIteration):
                continue
    codes = [process.returncode for process in running]
    if stop.is_set() or EXIT_RESUMABLE in codes:
        raise ResumableStop("stopped; start the same command again to go on")
    if any(codes):
        raise RunFailed(f"exit codes {codes}; see the messages above")


def one_direction(out: Path, direction: str, runner: Runner, *, steps: int, passes: int, seeds: str, **_: int) -> None:
    """Pre-train on one data set, then compare on the other."""
    first, second = direction.split("-to-")
    folder = out / direction
    for name in (first, second):
        views = ["--views", "8" if name == "textile" else "2", "--set", "augment.scale=[0.2,1.0]"]
        with unless_finished(folder / f"store-{name}.json", {"views": views}) as is_to_do:
            if is_to_do:
                photos = out / name / "train"
                runner.beit("tokenize", photos, folder / f"store-{name}", *SIZE, "--materialize", *views)
    settings = [f"train.steps={steps}", *SHAPE]
    with unless_finished(folder / "weights.json", {"settings": settings}) as is_to_do:
        if is_to_do:
            words = [folder / f"store-{first}", folder / "weights", "--recipe", "beit_mini_patch8_64"]
            runner.beit("pretrain", *words, *sets(settings))
    # So that every fine-tuning has some hundred steps, whatever the number of labels.
    few, more = 3 * passes, max(1, passes // 2)
    labels = f"30:{few},150:{passes}" if second == "textile" else f"100:{few},500:{more}"
    data, weights = out / second, folder / "weights"
    options = ["--val", data / "test", "--weights", weights, "--store", folder / f"store-{second}"]
    options += ["--labels", labels, "--seeds", seeds, "--steps", str(steps), "--threads", "1"]
    options += ["--continue-recipe", "beit_mini_patch8_64", "--continue-set", "optimizer.lr=5e-4"]
    options += sets(SHAPE) + [word for setting in SHAPE for word in ("--pretrain-set", setting)]
    runner.beit("worth", data / "train", folder / "worth", *options)


def write_textile(folder: Path) -> None:
    """Link the photographs as folders of classes to learn from and to measure on."""
    if (folder / "done").exists():
        return
    try:
        root = importlib.import_module(PACKAGE).textile_simulated_root()
    except ImportError:
        raise InputError("the photographs are a package: pip install conformal-clip-data==0.1.4") from None
    for place in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        photos = sorted(place.glob("*.jpg"))
        order = CounterRng(0, "textile", place.name).permutation(len(photos))
        for number, position in enumerate(order):
            part = "test" if number % TEST_OF_CLASS == 0 else "train"
            target = folder / part / place.name / photos[position].name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(photos[position], target) if _same_disk(photos[position], target) else target.write_bytes(
                photos[position].read_bytes()
            )
    (folder / "done").touch()


def _same_disk(first: Path, second: Path) -> bool:
    return first.stat().st_dev == second.parent.stat().st_dev


def write_cifar(source: Path, folder: Path, count: int) -> None:
    """Write some images of CIFAR-10 as folders of classes: `count` to learn from, 1000 to measure on."""
    if (folder / "done").exists():
        return
    from beit.common.sources.index_build import open_labelled

    for part, wanted in (("train", count), ("test", 1000)):
        index = open_labelled(str(source / f"{part}.parquet"), class_names=None, label_column=None, settings=None)
        chosen = index.subset(num_labels=wanted) if wanted < len(index) else index
        for position in range(len(chosen)):
            shard, rank = chosen.locate(position)
            ref = chosen.ref(shard, rank)
            with chosen.shards[shard].open() as reader:
                content = reader.read(ref)
            target = folder / part / str((chosen.class_names or [])[int(ref.label or 0)]) / f"{position:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    (folder / "done").touch()


if __name__ == "__main__":
    run_script(main)
