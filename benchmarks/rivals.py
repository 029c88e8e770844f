r"""BEiT, DINO and MAE on the same network, images and processor seconds: what are their features worth?

    python benchmarks/rivals.py --train cifar10/train.parquet --val cifar10/test.parquet --out runs/rivals

Each seed pre-trains an encoder by every method, from random weights of its own, and draws labels, the same for all
methods; random weights are held beside them. BEiT is `beit pretrain` by its recipe; DINO and MAE are written from their
papers (`dino.py`, `mae.py`), learn from the images of the same token store, and have had a few short trials of their
rates, nothing more. How many steps the seconds buy is measured on two short runs of each method, once, for all seeds.
Start-up, reading, crops and BEiT's evaluation at its end count; BEiT's tokens, computed once, are told beside.

Everything is then measured by `beit finetune`: k-NN by CLS and by the mean of the patches, a linear probe, and a
fine-tuning at its end. Probes choose their block, and k-NN its k, on the images they are measured on, for all alike.

The script may be stopped or killed at any time and goes on. One thread. Settings of one method are tried alone:

    python benchmarks/rivals.py --train cifar10/train.parquet --val cifar10/test.parquet --out runs/dino-3e-3 \
        --store runs/rivals/store --starts dino --seeds 0 --seconds 300 --finetune-epochs 0 --dino-set learning.lr=3e-3
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from beit.benchmarks.dino import Dino, DinoConfig
from beit.benchmarks.mae import Mae, MaeConfig
from beit.benchmarks.paired_runs import check_paths, run_script
from beit.benchmarks.processor_time import ChildMeter, processor_seconds
from beit.benchmarks.rival_table import BEIT, MEASURES, NAMES, RANDOM, base_folder, read_scores, write_table
from beit.benchmarks.rival_training import Images, Training
from beit.common.config import load_config
from beit.common.errors import require
from beit.common.processes.signals import StopFlag, stop_on_signals
from beit.common.runs.layout import ENCODER, EVALUATION, LAST
from beit.common.storage.documents import read_json, write_json
from beit.common.store import open_store
from beit.common.vit.config import build_vit_config
from beit.common.vit.init import scale_to_width
from beit.common.vit.vit import VisionTransformer
from beit.finetune.worth.plan import budget_of
from beit.finetune.worth.runner import Runner, claim, is_finished, parse_seeds, sets, unless_finished
from beit.pretrain.commands import RECIPES
from beit.pretrain.config import PretrainConfig

SCRIPT = "rivals.py"
IMG_SIZE_PX, PATCH_SIZE_PX = 32, 4
METHODS = tuple(name for name in NAMES if name != RANDOM)
SHORT_RUNS = {BEIT: (10, 110), "dino": (4, 24), "mae": (10, 70)}
"""Steps of the two runs that tell what a method costs to start, and for a step; arbitrary, a minute or less."""
PROBES = {"linear-probe": "linear-probe", "knn-mean": "knn", "knn-cls": "knn"}
"""Of what is measured, the tasks of `beit finetune` that train nothing."""
RECIPE = "cifar10_tiny"
"""Of `beit finetune`."""
TOKENS = "tokens.json"
"""Beside the store, that it is finished; a folder with a file store.json would be taken for a store itself."""
DONE = "done.json"
"""In the folder of whatever is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared, on what; everything but the seeds and what is measured decides the pre-trainings."""

    train: str
    """Labelled images; pre-training does not see the labels."""
    val: str
    """To measure on."""
    out: Path
    """Where everything is."""
    seconds: float
    """Processor time of every pre-training."""
    views: int
    """Of every image in BEiT's store."""
    given_store: str | None
    """A finished store in place of one that is made here."""
    shape: tuple[str, ...]
    """Settings of the network."""
    labels: int
    """Labelled images of a seed."""
    finetune_epochs: float
    """Passes of a fine-tuning over them; 0 leaves it out."""
    recipe: str
    """Of BEiT's pre-training."""
    beit: tuple[str, ...]
    """Further settings of it."""
    dino: DinoConfig
    """Of the rival."""
    mae: MaeConfig
    """Of the rival."""

    @property
    def store(self) -> Path:
        """Where the tokens are, and the images that all learn from."""
        return self.out / "store" if self.given_store is None else Path(self.given_store)

    def build(self, method: str) -> Dino | Mae:
        """Make a rival on BEiT's network and random weights, with a last norm of its own as in its paper."""
        overrides = [*self.shape, *self.beit]
        beits = load_config(PretrainConfig, recipe=self.recipe, overrides=overrides, recipe_dir=RECIPES)
        shape = build_vit_config(beits.model, img_size=IMG_SIZE_PX, patch_size=PATCH_SIZE_PX, use_mask_token=False)
        config = self.dino if method == "dino" else self.mae
        encoder = VisionTransformer(replace(shape, final_norm=True, drop_path=0.0, init_values=config.layer_scale))
        if beits.weights == "scaled":
            scale_to_width(encoder, shape.grid_size)
        return Dino(encoder, config) if isinstance(config, DinoConfig) else Mae(encoder, config)

    def identity(self, method: str) -> dict[str, Any]:
        """Return what decides the pre-trainings of a method besides steps and seed, as plain values."""
        own = {BEIT: {}, "dino": asdict(self.dino), "mae": asdict(self.mae)}[method]
        shared = {"train": self.train, "views": self.views, "store": self.given_store, "shape": self.shape}
        beits = {"recipe": self.recipe, "settings": self.beit}  # they decide the network of all
        plain: dict[str, Any] = json.loads(json.dumps({"method": method, **shared, **beits, "own": own}))
        return plain

    def folder(self, method: str, seed: int) -> Path:
        """Return where the pre-training of a seed is."""
        return base_folder(self.out, method, seed) / "pretrain"

    def encoder(self, method: str, seed: int) -> str:
        """Return what `--encoder` takes."""
        return RANDOM if method == RANDOM else str(self.folder(method, seed) / ENCODER)


@dataclass(kw_only=True)
class Pretrainer:
    """Pre-trains by any method, and says what it cost."""

    plan: Comparison
    runner: Runner
    stop: StopFlag
    _images: Images | None = None
    _reading_seconds: float = 0.0

    def pretrain(self, method: str, folder: Path, *, steps: int, seed: int) -> dict[str, float]:
        """Pre-train for so many steps, unless that is done; return what it took."""
        identity = {**self.plan.identity(method), "steps": steps, "seed": seed}
        file = folder / DONE
        if is_finished(file, identity, option="--out"):
            return dict(read_json(file)["cost"])
        run = self._beit if method == BEIT else self._rival
        cost = run(method, folder, identity)
        write_json(file, {"identity": identity, "cost": cost})
        return cost

    def _beit(self, method: str, folder: Path, identity: dict[str, Any]) -> dict[str, float]:
        steps, seed = identity["steps"], identity["seed"]
        settings = [*self.plan.shape, f"train.steps={steps}", f"train.seed={seed}", "reader.num_workers=0"]
        settings += [f"train.eval_interval_steps={steps}", f"checkpoint.interval_steps={max(1, steps // 4)}"]
        settings += ["train.precision=fp32", *self.plan.beit]
        words = ["pretrain", self.plan.store, folder, "--recipe", self.plan.recipe, *sets(settings)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with ChildMeter(folder.with_name(f"{folder.name}-seconds.json")) as meter:
            self.runner.beit(*words, watch=meter.note)
        _, batch = budget_of(folder / ENCODER)
        return {"steps": steps, "images": steps * (batch or 0), "seconds": meter.seconds}

    def _rival(self, method: str, folder: Path, identity: dict[str, Any]) -> dict[str, float]:
        steps, seed, images = identity["steps"], identity["seed"], self._read_images()
        own = {**identity, "store_sha256": images.index_sha256}
        build = partial(self.plan.build, method)
        run = Training(build=build, images=images, folder=folder, steps=steps, seed=seed, identity=own)
        run.run(self.stop, name=f"{method}, seed {seed}")
        write_json(folder / "losses.json", run.records)
        seen = steps * run.rival.learning.batch_size
        return {"steps": steps, "images": seen, "seconds": run.seconds + self._reading_seconds}

    def _read_images(self) -> Images:
        """Return the images, read once; every run is charged for that."""
        if self._images is None:
            began = processor_seconds()
            self._images = Images(self.plan.store)
            self._reading_seconds = processor_seconds() - began
        return self._images

    def steps_for_budget(self, method: str) -> int:
        """Return how many steps the seconds buy, measured on two short runs, once."""
        file = self.plan.out / f"{method}-budget.json"
        identity = {**self.plan.identity(method), "seconds": self.plan.seconds}
        if is_finished(file, identity, option="--out"):
            return int(read_json(file)["steps"])
        few, more = SHORT_RUNS[method]
        short, longer = (
            self.pretrain(method, self.plan.out / f"{method}-short/{steps}-steps", steps=steps, seed=0)["seconds"]
            for steps in (few, more)
        )
        per_step = (longer - short) / (more - few)
        require(per_step > 0, f"{more} steps of {method} took no longer than {few}; the machine is too busy to measure")
        start = max(0.0, short - few * per_step)
        steps = int((self.plan.seconds - start) / per_step)
        lowest = start + more * per_step
        require(
            steps >= more,
            f"--seconds {self.plan.seconds:g} is too little for {method}, whose {more} steps of measuring alone took "
            f"{lowest:.0f}; give more",
        )
        write_json(file, {"identity": identity, "steps": steps, "start_seconds": start, "step_seconds": per_step})
        return steps


@click.command()
@click.option("--train", required=True, help="Labelled images; pre-training ignores the labels.")
@click.option("--val", required=True, help="Labelled images to measure on.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--seconds", default=1200.0, show_default=True, help="Processor seconds of every pre-training.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Of pre-trainings, labels and fine-tunings.")
@click.option("--labels", default=5000, show_default=True, help="Labelled images of a seed.")
@click.option("--finetune-epochs", default=20.0, show_default=True, help="Passes over them; 0 fine-tunes nothing.")
@click.option("--starts", default=",".join(NAMES), show_default=True, help="What to compare.")
@click.option("--views", default=4, show_default=True, help="Of every image in BEiT's store.")
@click.option("--store", "given_store", help="A finished store of the images; left out, OUT/store is made.")
@click.option(
    "--shape", default="model.embed_dim=128,model.depth=4,model.num_heads=4", show_default=True, help="The network."
)
@click.option("--beit-recipe", "recipe", default="beit_tiny_patch4_32", show_default=True, help="Of BEiT.")
@click.option("--beit-set", "beit", multiple=True, metavar="KEY=VALUE", help="Change one setting of BEiT.")
@click.option("--dino-set", multiple=True, metavar="KEY=VALUE", help="Change one setting of DINO (dino.py).")
@click.option("--mae-set", multiple=True, metavar="KEY=VALUE", help="Change one setting of MAE (mae.py).")
def main(
    seeds: str, starts: str, shape: str, dino_set: tuple[str, ...], mae_set: tuple[str, ...], **values: Any
) -> None:
    """Run what is missing; write OUT/rivals.md, rivals.json and rivals.png of all that is there, after every seed."""
    numbers, wanted = parse_seeds(seeds), starts.split(",")
    require(set(wanted) <= set(NAMES), f"--starts {starts} must be among {','.join(NAMES)}")
    require(values["seconds"] > 0, f"--seconds {values['seconds']:g} must be above 0")
    require(values["views"] > 0, f"--views {values['views']} must be 1 or more: BEiT's tokens are computed once")
    require(values["labels"] > 0, f"--labels {values['labels']} must be 1 or more")
    require(values["finetune_epochs"] >= 0, f"--finetune-epochs {values['finetune_epochs']:g} must be 0 or more")
    out: Path = values["out"]
    check_paths(out, train=values["train"], val=values["val"])
    rivals = {
        "dino": load_config(DinoConfig, recipe=None, overrides=dino_set, recipe_dir=out),
        "mae": load_config(MaeConfig, recipe=None, overrides=mae_set, recipe_dir=out),
    }
    plan = Comparison(shape=tuple(part for part in shape.split(",") if part), **rivals, **values)
    require(all(part.startswith("model.") for part in plan.shape), f"--shape {shape} must be settings model.*=VALUE")
    for method in METHODS:
        plan.build(method)  # so that what is wrong is said before hours of work
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    with claim(out, SCRIPT) as lock, stop_on_signals() as stop:
        runner = Runner(stop=stop, lock=lock, threads=1)
        tokenize(plan, runner)
        pretrainer = Pretrainer(plan=plan, runner=runner, stop=stop)
        budgets = {method: pretrainer.steps_for_budget(method) for method in wanted if method != RANDOM}
        for seed in numbers:
            for method, steps in budgets.items():
                pretrainer.pretrain(method, plan.folder(method, seed), steps=steps, seed=seed)
            for start in wanted:
                measure(plan, start, seed, runner)
            table = write_table(out, read_scores(out, numbers), facts(plan, numbers))
    click.echo(table)


def tokenize(plan: Comparison, runner: Runner) -> None:
    """Compute the tokens, once for all; a store that was given is only looked at."""
    if plan.given_store is not None:
        open_store(plan.given_store)
        return
    identity = {"train": plan.train, "views": plan.views}
    file = plan.out / TOKENS
    if is_finished(file, identity, option="--out"):
        return
    size = ["--img-size", str(IMG_SIZE_PX), "--patch-size", str(PATCH_SIZE_PX), "--workers", "1"]
    with ChildMeter(plan.out / "tokens-seconds.json") as meter:
        words = ["tokenize", plan.train, plan.store, "--tokenizer", "mini", "--views", str(plan.views), *size]
        runner.beit(*words, watch=meter.note)
    write_json(file, {"identity": identity, "seconds": meter.seconds})


def measure(plan: Comparison, start: str, seed: int, runner: Runner) -> None:
    """Probe an encoder, and fine-tune it, on the labels of a seed, unless that is done."""
    for name in MEASURES if plan.finetune_epochs else PROBES:
        folder, settings = base_folder(plan.out, start, seed) / name, measuring_settings(plan, seed, name)
        identity = {"train": plan.train, "val": plan.val, "settings": settings}
        words = [plan.train, folder, "--encoder", plan.encoder(start, seed), "--recipe", RECIPE, *sets(settings)]
        with unless_finished(folder.with_name(f"{name}.json"), identity) as is_to_do:
            if is_to_do and name in PROBES:
                runner.beit("finetune", PROBES[name], *words, "--val", plan.val)
            elif is_to_do:  # nothing is chosen on the images that are measured on: the weights of the last step are
                runner.beit("finetune", "classification", *words)
                runner.beit("evaluate", folder / LAST, plan.val, "--out", folder / EVALUATION)


def measuring_settings(plan: Comparison, seed: int, name: str) -> list[str]:
    """Return the settings of `beit finetune` for a measure."""
    found = [*plan.shape, f"data.num_labels={plan.labels}", f"data.subset_seed={seed}", f"train.seed={seed}"]
    found.append("reader.num_workers=0")
    if name not in PROBES:
        return [*found, f"train.epochs={plan.finetune_epochs:g}", "train.precision=fp32"]
    pooling = name.removeprefix("knn-")
    return found if pooling == name else [*found, f"probe.knn_pooling={pooling}"]


def facts(plan: Comparison, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what is said beside the table; see `write_table`."""
    files = {method: [plan.folder(method, seed) / DONE for seed in seeds] for method in METHODS}
    tokens = plan.out / TOKENS
    return {
        "settings": {**asdict(plan), "out": str(plan.out), "seeds": seeds},
        "costs": {method: [read_json(file)["cost"] for file in own if file.exists()] for method, own in files.items()},
        "token_seconds": read_json(tokens)["seconds"] if tokens.exists() else None,
    }


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_script(main)
