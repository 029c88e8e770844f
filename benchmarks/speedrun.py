"""How much does a pre-training learn per processor second? Trials of recipes, and the revised one beside the earlier.

    python benchmarks/speedrun.py trials --train cifar10/train.parquet --val cifar10/test.parquet --out runs/speedrun
    python benchmarks/speedrun.py trials --names earlier,revised --seeds 0,1 --steps 1500 ...  (likewise)
    python benchmarks/speedrun.py race --other /path/to/365d2fa/.venv/bin/python ...  (likewise)

A trial is a store and a pre-training on it; `TRIALS` says what is other in each than in the recipe of 365d2fa, or than
in the revised one. A linear probe and k-NN then measure the frozen features, with 5000 labels that the seed draws; the
seed also decides on weights, order and masks. `race` lets the earlier recipe run its eight passes, on the version whose
interpreter is named, and the revised one for a quarter, half and all of its seconds; with `--tiny` then the recipe's
own network, 192 wide with 6 blocks, fine-tuned on the 5000 labels.

Seconds are those of the processor, user and system, of a command and all that it started, never the wall's, so that
what else the machine does counts little. One command at a time, with one thread. Bits per token compare only where
words and crops are the same; probes always do. What is finished is kept; a command that was stopped starts over, since
not all of its seconds would be known.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from beit.benchmarks.paired_runs import check_paths, run_script
from beit.benchmarks.processor_time import children_seconds
from beit.common.errors import InputError, ResumableStop, RunFailed
from beit.common.processes.signals import die_with_parent
from beit.common.runs.environment import environment
from beit.common.runs.layout import ENCODER, METRICS
from beit.common.runs.metrics import read_metrics
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import write_atomic
from beit.finetune.worth.runner import claim, interval, is_finished, parse_seeds

RECIPE = "beit_tiny_patch4_32"
GEOMETRY = ("--img-size", "32", "--patch-size", "4")
NETWORK = "model.embed_dim=128,model.depth=4,model.num_heads=4"
"""Of docs/results.md: 0.8 M parameters."""
EARLIER_STEPS = 12_375
"""Eight passes over CIFAR-10 in batches of 32."""
SHARES = {"a quarter": 2_500, "half": 5_000, "all": 10_000}
"""Of the earlier recipe's seconds, and the steps that the revised one makes in them: a step costs a seventh more."""
TINY_STEPS, TINY_EPOCHS = 6_000, 30
"""Of the 192 wide network: of pre-training, about 50 processor minutes, and passes over the labels."""

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A store and a pre-training on it."""

    what: str
    """What is other than in the recipe it begins with."""
    recipe: Settings
    """Settings of the pre-training."""
    store: Settings = field(default_factory=dict)
    """Settings of the store, `augment` above all."""
    warmup_share: float | None = None
    """Of the steps; left out, the warm-up is the recipe's. The earlier recipe's, half an epoch, was meant for eight."""
    python: str = sys.executable
    """Interpreter of the version that trains."""


EARLIER: Settings = {
    "weights": "published",
    "position_lr_scale": 1,
    "optimizer.kind": "adamw",
    "optimizer.lr": 2e-3,
}
"""What the recipe said at 365d2fa, where it says something else now; its warm-up is left to `Trial.warmup_share`."""
NATURAL: Settings = {
    "augment.scale": "[0.35, 1.0]",
    "augment.brightness": 0,
    "augment.contrast": 0,
    "augment.saturation": 0,
}
"""Views near to what images of 32 px look like when they are used."""
TRIALS = {
    "earlier": Trial(what="the recipe of 365d2fa, a warm-up of a tenth of the steps", recipe=EARLIER, warmup_share=0.1),
    "earlier-scaled": Trial(
        what="earlier, weights by the width of layers", recipe=EARLIER | {"weights": "scaled"}, warmup_share=0.1
    ),
    "earlier-positions": Trial(
        what="earlier, position tables at ten times the rate",
        recipe=EARLIER | {"position_lr_scale": 10},
        warmup_share=0.1,
    ),
    "earlier-muon": Trial(what="earlier, Muon", recipe=EARLIER | {"optimizer.kind": "muon"}, warmup_share=0.1),
    "revised": Trial(what="the recipe as it is now", recipe={}),
    "not-scaled": Trial(what="revised, published weights", recipe={"weights": "published"}),
    "not-positions": Trial(what="revised, position tables at the common rate", recipe={"position_lr_scale": 1}),
    "not-muon": Trial(what="revised, AdamW", recipe={"optimizer.kind": "adamw"}),
    "lr-2e-3": Trial(what="revised, learning rate 2e-3", recipe={"optimizer.lr": 2e-3}),
    "lr-6e-3": Trial(what="revised, learning rate 6e-3", recipe={"optimizer.lr": 6e-3}),
    "batch-16": Trial(what="revised, batches of 16, twice the steps", recipe={"train.global_batch_size": 16}),
    "batch-64": Trial(what="revised, batches of 64, half the steps", recipe={"train.global_batch_size": 64}),
    "random-masks": Trial(what="revised, random masks", recipe={"mask.mode": "random"}),
    "half-masked": Trial(what="revised, 32 of 64 patches masked", recipe={"mask.num_masked": 32}),
    "no-layer-scale": Trial(what="revised, no layer scale", recipe={"model.init_values": 0}),
    "natural-crops": Trial(what="revised, crops of 0.35 to 1 without colour jitter", recipe={}, store=NATURAL),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Where images and results are, and what all runs have in common."""

    train: str
    """Parquet file of labelled images; pre-training does not see the labels."""
    val: str
    """To measure on."""
    out: Path
    """Folder of everything."""
    shape: Sequence[str]
    """Settings of the network."""
    views: int
    """Of every image in a store."""
    labels: int
    """Of the probes and of fine-tuning."""
    lock: int
    """Descriptor that commands inherit."""

    def measure(self, trial: Trial, *, seed: int, steps: int, folder: Path) -> dict[str, Any]:
        """Make the store of a trial, pre-train and probe, as far as that is not done; return seconds and scores."""
        store = self._store(trial)
        batch = int(trial.recipe.get("train.global_batch_size", 32))
        common = {"train.steps": steps * 32 // batch, "train.seed": seed, "train.precision": "fp32"}
        common |= {"train.eval_interval_steps": common["train.steps"], "held_out.pictures": 0, "reader.num_workers": 0}
        if trial.warmup_share is not None:
            common["optimizer.warmup_steps"] = round(trial.warmup_share * common["train.steps"])
        settings = [*_sets(trial.recipe), *_sets(common), *(word for one in self.shape for word in ("--set", one))]
        run = folder / "pretrain"
        seconds = self.run(run, "pretrain", store["path"], run, "--recipe", RECIPE, *settings, python=trial.python)
        told = [self.train, "--encoder", run / ENCODER, "--val", self.val, "--set", f"data.num_labels={self.labels}"]
        told += ["--set", f"data.subset_seed={seed}", "--set", "reader.num_workers=0"]
        probe = folder / "probe"
        self.run(probe, "finetune", "linear-probe", told[0], probe, *told[1:])
        self.run(probe / "knn.json", "finetune", "knn", told[0], probe, *told[1:])  # with the same features
        bits = [record["held_out_bits"] for record in read_metrics(run / METRICS) if "held_out_bits" in record]
        return {
            "seed": seed,
            "steps": common["train.steps"],
            "seconds": seconds,
            "store_seconds": store["seconds"],
            "bits": bits[-1],
            "probe": read_json(probe / "linear-probe.json")["top1"],
            "knn": read_json(probe / "knn.json")["top1"],
        }

    def _store(self, trial: Trial) -> dict[str, Any]:
        """Return where the store of a trial is, made by its version unless it exists, and what it took."""
        name = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in trial.store.items()) or "default"
        maker = "" if trial.python == sys.executable else "-other"
        path = self.out / "stores" / f"{name}{maker}".translate(str.maketrans({" ": None, "[": None, "]": None}))
        words = ["--tokenizer", "mini", "--views", self.views, *GEOMETRY, "--workers", 1, "--set", "threads=1"]
        seconds = self.run(path, "tokenize", self.train, path, *words, *_sets(trial.store), python=trial.python)
        return {"path": path, "seconds": seconds}

    def tiny(self, trial: Trial, *, seed: int, scale: float) -> dict[str, Any]:
        """Pre-train the recipe's own network and fine-tune it; return seconds and top-1."""
        folder = self.out / "tiny" / f"seed-{seed}"
        own = replace(self, shape=())
        scores = own.measure(trial, seed=seed, steps=max(2, round(TINY_STEPS * scale)), folder=folder)
        settings = {
            "data.num_labels": self.labels,
            "data.subset_seed": seed,
            "train.seed": seed,
            "train.precision": "fp32",
        }
        settings |= {"train.epochs": TINY_EPOCHS * scale, "reader.num_workers": 0, "train.eval_interval_steps": 10**6}
        run, encoder = folder / "finetune", folder / "pretrain" / ENCODER
        told = ["--encoder", encoder, "--val", self.val, "--recipe", "cifar10_tiny", *_sets(settings)]
        tuned = self.run(run, "finetune", "classification", self.train, run, *told)
        result = folder / "evaluation.json"
        self.run(folder / "evaluate", "evaluate", run / "last", self.val, "--out", result)
        return {**scores, "finetune_seconds": tuned, "fine-tuned": read_json(result)["top1"]}

    def run(self, made: Path, *words: Any, python: str = sys.executable) -> float:
        """Run a `beit` command that makes the folder `made`, unless that is done; return its processor seconds."""
        done = made.with_name(f"{made.name}.done.json")
        told = [str(word) for word in words]
        if not is_finished(done, {"command": told}, option="--out"):
            shutil.rmtree(made, ignore_errors=True)  # of a command that was stopped
            made.parent.mkdir(parents=True, exist_ok=True)
            seconds = measured([python, "-m", "beit.cli", *told], lock=self.lock)
            write_json(done, {"identity": {"command": told}, "seconds": seconds})
        found: float = read_json(done)["seconds"]
        return found


def measured(words: Sequence[str], *, lock: int) -> float:
    """Run a command with one thread to its end; return what it and its children took of processors, user and system.

    Raises:
        ResumableStop: Ctrl-C, or SIGTERM in a script that `run_script` runs.
        RunFailed: it failed.
    """
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    before = children_seconds()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        words,
        stdout=sys.stderr.fileno(),
        env=os.environ | threads | {"PYTHONPATH": ""},
        pass_fds=[lock],
        preexec_fn=die_with_parent,
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:  # which the command has got, too, if it was typed; what it has done is not kept
        process.terminate()
        process.wait()
        raise ResumableStop("stopped; start the same command again to go on") from None
    if code:
        raise RunFailed(f"{shlex.join(words[:5])} ... ended with exit code {code}; see its message above")
    return children_seconds() - before


def _sets(settings: Settings) -> list[str]:
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that both modes have."""
    options = [
        click.option("--train", required=True, help="Parquet file of labelled images; pre-training ignores labels."),
        click.option("--val", required=True, help="Labelled images to measure on."),
        click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything."),
        click.option("--views", default=2, show_default=True, help="Of every image in a store."),
        click.option("--labels", default=5000, show_default=True, help="Of the probes and of fine-tuning."),
        click.option("--shape", default=NETWORK, show_default=True, help="The network."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def main() -> None:
    """Measure what recipes learn per processor second."""


@main.command()
@common_options
@click.option("--names", default=",".join(TRIALS), show_default=True, help="Trials, in this order.")
@click.option("--seeds", default="0", show_default=True)
@click.option("--steps", default=1500, show_default=True, help="Of batches of 32 images.")
def trials(names: str, seeds: str, steps: int, out: Path, shape: str, **values: Any) -> None:
    """Run what is missing of the trials; write OUT/trials.md and OUT/trials.json."""
    wanted, numbers = names.split(","), parse_seeds(seeds)
    if steps < 2:
        raise InputError(f"--steps {steps} must be 2 or more")
    if unknown := [name for name in wanted if name not in TRIALS]:
        raise InputError(f"--names {','.join(unknown)}: there is only {', '.join(TRIALS)}")
    check_paths(out, train=values["train"], val=values["val"])
    out.mkdir(parents=True, exist_ok=True)
    with claim(out, "speedrun.py") as lock:
        bench = Bench(out=out, shape=shape.split(","), lock=lock, **values)
        rows = {}
        for name in wanted:
            trial = TRIALS[name]
            folder = out / f"steps-{steps}" / name
            runs = [bench.measure(trial, seed=seed, steps=steps, folder=folder / f"seed-{seed}") for seed in numbers]
            rows[f"`{name}`: {trial.what}"] = runs
            report(rows, out / "trials")
    click.echo((out / "trials.md").read_text())


@main.command()
@common_options
@click.option("--other", required=True, help="Python of a checkout of 365d2fa, which trains the earlier recipe.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Factor on all numbers of steps, to try it.")
@click.option("--shares", default=",".join(SHARES), show_default=True, help="Of the seconds for the revised recipe.")
@click.option("--tiny", is_flag=True, help="Also the recipe's own network, fine-tuned.")
def race(other: str, seeds: str, scale: float, shares: str, tiny: bool, out: Path, shape: str, **values: Any) -> None:
    """Run what is missing of the race; write OUT/race.md and OUT/race.json."""
    numbers, given = parse_seeds(seeds), shares.split(",")
    if unknown := [share for share in given if share not in SHARES]:
        raise InputError(f"--shares {','.join(unknown)}: there is only {', '.join(SHARES)}")
    if not scale > 0:
        raise InputError(f"--scale {scale:g} must be above 0")
    if shutil.which(other) is None:
        raise InputError(f"--other {other} cannot be run; name the Python of a checkout of 365d2fa")
    check_paths(out, train=values["train"], val=values["val"])
    out.mkdir(parents=True, exist_ok=True)
    revised = TRIALS["revised"]
    # That version knows nothing of what the recipe says now: its own recipe is the earlier one.
    earlier = Trial(what="the recipe of 365d2fa", recipe={}, python=other)
    contestants = {"365d2fa": (earlier, EARLIER_STEPS)}
    contestants |= {f"revised, {share} of its seconds": (revised, SHARES[share]) for share in given}
    with claim(out, "speedrun.py") as lock:
        bench = Bench(out=out, shape=shape.split(","), lock=lock, **values)
        rows: dict[str, list[dict[str, Any]]] = {}
        for seed in numbers:
            for name, (trial, steps) in contestants.items():
                folder = out / "race" / name.replace(" ", "-").replace(",", "") / f"seed-{seed}"
                found = bench.measure(trial, seed=seed, steps=max(2, round(steps * scale)), folder=folder)
                rows.setdefault(name, []).append(found)
                report(rows, out / "race")
            if tiny:
                rows.setdefault("192 wide, 6 blocks", []).append(bench.tiny(revised, seed=seed, scale=scale))
                report(rows, out / "race")
    click.echo((out / "race.md").read_text())


def report(rows: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Write what is known so far as JSON and as a table; differences are those of pairs of seeds to the first row."""
    write_json(file.with_suffix(".json"), {"environment": environment(), "rows": rows})
    first = next(iter(rows.values()))
    standard = {run["seed"]: run for run in first}
    heads = ["recipe", "steps", "processor seconds", "of the first", "of the store", "bits", "linear probe"]
    heads += ["to the first", "k-NN", "fine-tuned", "seeds"]
    lines = [f"| {' | '.join(heads)} |", "| --- | " + " | ".join(["---:"] * (len(heads) - 1)) + " |"]
    for name, runs in rows.items():
        pairs = [(run, standard[run["seed"]]) for run in runs if run["seed"] in standard]
        share = interval([run["seconds"] / other["seconds"] for run, other in pairs])
        cells = [name, str(runs[0]["steps"]), _mean(runs, "seconds", "{:.0f}")]
        cells += ["-" if share is None else f"{share['mean']:.2f}"]
        cells += [_mean(runs, "store_seconds", "{:.0f}"), _mean(runs, "bits", "{:.2f}")]
        cells += [_percent([run["probe"] for run in runs])]
        cells += [_percent([run["probe"] - other["probe"] for run, other in pairs], signed=True)]
        cells += [_percent([run["knn"] for run in runs])]
        cells += [_percent([run["fine-tuned"] for run in runs if "fine-tuned" in run]), str(len(runs))]
        lines.append(f"| {' | '.join(cells)} |")
    write_atomic(file.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


def _mean(runs: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    return form.format(sum(run[key] for run in runs) / len(runs))


def _percent(values: Sequence[float], *, signed: bool = False) -> str:
    found = interval(values)
    if found is None:
        return "-"
    half = "" if found["half_width"] is None else f" ± {100 * found['half_width']:.1f}"
    return f"{100 * found['mean']:{'+' if signed else ''}.1f}{half}"


if __name__ == "__main__":
    run_script(main)
