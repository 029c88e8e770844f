"""What threads that wait for each other should do: spin, sleep at once, or spin for a while and then sleep.

    python benchmarks/sleeping_threads.py --recipe beit_tiny_patch4_32 --img-size 32 --patch-size 4
    python benchmarks/sleeping_threads.py --recipe beit_small_patch16_224 --spins 0 --spins 1000 --spins 10000

One `beit pretrain` on a store of generated photographs for each setting, all started first and then taking turns of
some steps: on the machine as it is, and beside busy processes that stand for a browser or a colleague. What other
programs took of the processors is measured in every turn, and a round in which they took more than `--quiet` on average
is done again, so that the figures hold for an idle machine even if somebody works on this one now and then.

Ratios are medians over rounds of rates of the same round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import psutil

from beit.benchmarks.stores import make_store, write_scenes

SPINNING = "spinning"
"""What libgomp does unasked: threads wait awake for milliseconds."""
IDLE, BUSY = "idle machine", "beside busy processes"
_SETTLE_SECONDS = 0.5
"""After a turn, until threads that wait awake have given up."""


class Contestant:
    """A training in a process of its own, which does a turn of steps when asked to.

    Args:
        name: SPINNING, or how often a waiting thread looks before it sleeps.
        command: Of the worker.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        ours = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        # A training sets its own default where the variable is absent; this is libgomp's.
        count = {} if name == SPINNING else {"GOMP_SPINCOUNT": name}
        policy = {"GOMP_SPINCOUNT": "300000"} if name == SPINNING else count
        self.process = subprocess.Popen(
            command, env=ours | policy, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.rates: dict[str, list[float]] = {IDLE: [], BUSY: []}

    def turn(self) -> tuple[float, float]:
        """Let it do a turn; returns images per second and the processor seconds that it took."""
        assert self.process.stdin is not None and self.process.stdout is not None
        before = self._processor_seconds()
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException("a training ended early; its message is above")
        return float(line), self._processor_seconds() - before

    def _processor_seconds(self) -> float:
        process = psutil.Process(self.process.pid)
        family = [process, *process.children(recursive=True)]
        return sum(sum(member.cpu_times()[:2]) for member in family)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep as many processor cores busy."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def do_round(contestants: Sequence[Contestant], *, condition: str, busy: int) -> tuple[list[float], float]:
    """Let each have a turn; returns the rates, and the cores that programs which do not belong here took."""
    rates, others = [], []
    with busy_processes(busy if condition == BUSY else 0):
        for contestant in contestants:
            time.sleep(_SETTLE_SECONDS)
            started, before = time.monotonic(), psutil.cpu_times()
            rate, own = contestant.turn()
            after, seconds = psutil.cpu_times(), time.monotonic() - started
            worked = sum(getattr(after, name) - getattr(before, name) for name in ("user", "nice", "system"))
            rates.append(rate)
            others.append((worked - own) / seconds)
    return rates, statistics.fmean(others)


@click.command()
@click.option("--recipe", default="beit_tiny_patch4_32", show_default=True, help="Of beit pretrain.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="As for beit pretrain.")
@click.option("--images", "num_images", default=64, show_default=True, help="How many to generate.")
@click.option("--img-size", default=32, show_default=True, metavar="PX", help="Side of a view.")
@click.option("--patch-size", default=4, show_default=True, metavar="PX", help="Side of a patch.")
@click.option(
    "--spins", multiple=True, default=("0", "1000", "10000"), show_default=True, help="Looks before sleeping."
)
@click.option("--busy", default=1, show_default=True, help="Busy processes.")
@click.option("--steps", default=3, show_default=True, help="Optimizer steps in a turn.")
@click.option("--rounds", default=5, show_default=True, help="Rounds in each condition, after one to warm up.")
@click.option("--quiet", default=0.06, show_default=True, help="Cores that other programs may take in a round.")
@click.option("--attempts", default=10, show_default=True, help="Rounds that may be done again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--worker", hidden=True, help="Be a contestant that trains on this store.")
def main(
    recipe: str,
    overrides: Sequence[str],
    num_images: int,
    img_size: int,
    patch_size: int,
    spins: Sequence[str],
    busy: int,
    steps: int,
    rounds: int,
    quiet: float,
    attempts: int,
    as_json: bool,
    worker: str | None,
) -> None:
    """Time trainings under several settings in turns and print images per second and ratios."""
    if worker is not None:
        train_in_turns(Path(worker), recipe, overrides, steps=steps, rounds=2 * (rounds + attempts) + 1)
        return
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        scenes = write_scenes(Path(folder) / "scenes", num_images, side=min(500, 2 * img_size))
        make_store(scenes, Path(folder) / "store", views=1, img_size=img_size, patch_size=patch_size)
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(Path(folder) / "store")]
        contestants = [Contestant(name, command) for name in (SPINNING, *spins)]
        for contestant in contestants:
            running.callback(contestant.process.wait)
            running.callback(contestant.process.kill)
        do_round(contestants, condition=IDLE, busy=busy)
        for _ in range(rounds):
            for condition in (IDLE, BUSY):
                rates, others = do_round(contestants, condition=condition, busy=busy)
                while others - (busy if condition == BUSY else 0) > quiet and attempts > 0:
                    attempts -= 1
                    rates, others = do_round(contestants, condition=condition, busy=busy)
                for contestant, rate in zip(contestants, rates, strict=True):
                    contestant.rates[condition].append(rate)
    result = figures([SPINNING, *spins], contestants)
    click.echo(json.dumps(result) if as_json else as_table(result))


def figures(names: Sequence[str], contestants: Sequence[Contestant]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by condition and setting, images per second and the ratio to spinning."""
    return {
        condition: {
            name: {
                "images_per_second": round(statistics.median(contestant.rates[condition]), 2),
                "ratio": round(
                    statistics.median(
                        rate / spinning
                        for rate, spinning in zip(
                            contestant.rates[condition], contestants[0].rates[condition], strict=True
                        )
                    ),
                    3,
                ),
            }
            for name, contestant in zip(names, contestants, strict=True)
        }
        for condition in (IDLE, BUSY)
    }


def as_table(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """Lay the figures out for reading."""
    lines = []
    for condition, settings in result.items():
        lines.append(condition)
        for name, values in settings.items():
            label = name if name == SPINNING else f"asleep after {name} looks"
            lines.append(f"  {label:<28}{values['images_per_second']:>9.2f} images/s   x{values['ratio']:.2f}")
    return "\n".join(lines)


def train_in_turns(store_path: Path, recipe: str, overrides: Sequence[str], *, steps: int, rounds: int) -> None:
    """Train, and before every turn of steps wait for a line on standard input; print each turn's rate."""
    from beit.benchmarks.pretrain_speed import LoopInTurns, replace_settings
    from beit.common.config import load_config
    from beit.common.processes.distributed import init_distributed
    from beit.common.store import open_store
    from beit.common.training.start import start_run
    from beit.common.training.trainer import fit
    from beit.pretrain.commands import RECIPES
    from beit.pretrain.config import PretrainConfig

    class OnCommand:
        """In place of the others' turns: waits until this one is asked for."""

        def round(self) -> None:
            sys.stdin.readline()

        def add(self, _: str, rate: float) -> None:
            print(rate, flush=True)

    config = load_config(PretrainConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)
    settle = 1 + config.reader.num_workers * (config.reader.prefetch_batches + 1)
    rhythm = {
        "train.steps": rounds * (settle + steps) + 1,
        "train.eval_interval_steps": 10**9,
        "checkpoint.interval_steps": 10**9,
        "held_out.max_images": 1,
        "held_out.train_images": 0,
        "held_out.baseline_views": 1,
    }
    config = replace_settings(config, rhythm)
    world = init_distributed()
    with tempfile.TemporaryDirectory() as folder:
        task = LoopInTurns(config, open_store(store_path), world)
        task.take_turns(OnCommand(), steps=steps, settle=settle, rounds=rounds)  # type: ignore[arg-type]
        run = start_run(task, config, path=Path(folder) / "run", resume="never", world=world)
        fit(task, config, run=run, world=world)


if __name__ == "__main__":
    main()
