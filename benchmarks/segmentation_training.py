"""How fast is the training of a segmentation, beside its bare step and its reader alone?

    python benchmarks/segmentation_training.py --data streets --recipe segmentation_small --steps 10
    python benchmarks/segmentation_training.py --image-side 480 --set image.img_size=128 --set model.size=tiny

All in one run, in turns of some steps each, with one model, batch, precision and reader:

    bare step       model, loss, clipping and AdamW on one batch that stays on the device; no engine, no reader
    whole loop      `beit finetune segmentation` itself: reader, DeepSpeed, checks, logging
    reader alone    the same reader, with nobody computing

Ratios are medians over rounds of rates of the same round, so other work on the machine cancels out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit.benchmarks.pretrain_speed import BARE, READER, ReaderAlone, autocast, repeat
from beit.benchmarks.turns import LOOP, LoopTurns, Turns
from beit.common.config import load_config
from beit.common.processes.distributed import init_distributed
from beit.common.training.engine import choose_precision
from beit.common.training.start import start_run
from beit.common.training.trainer import fit
from beit.finetune.commands import SEGMENTATION_RECIPES
from beit.finetune.in_force import in_force
from beit.finetune.masks.index import open_training_masks
from beit.finetune.segmentation.artifact import build_segmenter, settled_head
from beit.finetune.segmentation.config import SegmentationConfig
from beit.finetune.train_segmentation import SegmentationTask, scene_starting_point


class SegmentationInTurns(LoopTurns, SegmentationTask):
    """The task of `beit finetune segmentation`, between whose steps the others have their turns."""


class BareStep:
    """One optimizer step of the task's model on a batch that stays where it is."""

    def __init__(self, task: SegmentationTask, batch: Mapping[str, Any]) -> None:
        device = task.world.device
        self._task, self._batch, self._clip_grad = task, batch, task.config.optimizer.clip_grad
        self._model = build_segmenter(task.config, task.start, task.scenes.classes).to(device).train()
        trained = [weight for weight in self._model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self._precision = autocast(choose_precision(task.config.train.precision, task.world), device)

    def __call__(self) -> int:
        """Do one step; returns the images in it."""
        with self._precision():
            loss, _ = self._task.step(self._model, self._batch)
        loss.float().backward()
        if self._clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return len(self._batch["images"])


@click.command()
@click.option("--data", help="Images with masks; generated ones if left out.")
@click.option("--image-side", default=360, show_default=True, metavar="PX", help="Of the generated ones.")
@click.option("--recipe", default="segmentation_small", show_default=True, help="Of beit finetune segmentation.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="As for the command.")
@click.option("--steps", default=5, show_default=True, help="Optimizer steps in a turn.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each, after one to warm up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    data: str | None, image_side: int, recipe: str, overrides: Sequence[str], steps: int, rounds: int, as_json: bool
) -> None:
    """Time everything in turns and print images per second and ratios."""
    with tempfile.TemporaryDirectory() as folder:
        source = data or write_blocks(Path(folder) / "scenes", side=image_side)
        settings = ["encoder=random", *overrides]
        config = load_config(SegmentationConfig, recipe=recipe, overrides=settings, recipe_dir=SEGMENTATION_RECIPES)
        result = measure(config, source, Path(folder) / "run", steps=steps, rounds=rounds)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{result['model']}, {result['head']} head, {result['precision']}")
    for name, rate in result["images_per_second"].items():
        click.echo(f"{name:<44}{rate:>10.2f} images/s")
    for name, ratio in result["ratios"].items():
        click.echo(f"{name:<44}{ratio:>10.3f}")


def measure(config: SegmentationConfig, data: str, run_dir: Path, *, steps: int, rounds: int) -> dict[str, Any]:
    """Run all contestants and return the figures."""
    world = init_distributed()
    settle = 1 + config.reader.num_workers * (config.reader.prefetch_batches + 1)
    train = replace(
        config.train,
        micro_batch_size=config.train.global_batch_size,  # the bare step has the whole batch at once
        steps=rounds * (settle + steps) + 1,
        eval_interval_steps=10**9,
        ema_decay=None,  # which the bare step has not
    )
    config = replace(config, train=train, checkpoint=replace(config.checkpoint, interval_steps=10**9))
    config = replace(config, optimizer=replace(config.optimizer, warmup_steps=0))
    start = scene_starting_point(config)
    config = in_force(config, start.architecture, start.normalization)
    config = replace(config, head=settled_head(config, start))
    scenes = replace(open_training_masks(data, config.data, reading=config.source), val=None)
    task = SegmentationInTurns(config, scenes, start, world)
    reader = ReaderAlone(task)  # type: ignore[arg-type]
    try:
        batch = {name: value.to(world.device) for name, value in reader.next().items() if isinstance(value, Tensor)}
        single: dict[str, Any] = {BARE: BareStep(task, batch), READER: reader}
        turns = Turns({name: repeat(step, steps) for name, step in single.items()}, world.device)
        turns.round(is_warm_up=True)
        task.take_turns(turns, steps=steps, settle=settle, rounds=rounds)
        run = start_run(task, config, path=run_dir, resume="never", world=world)
        fit(task, config, run=run, world=world)
    finally:
        reader.close()
    return {
        "model": start.architecture.name,
        "head": config.head.kind,
        "precision": choose_precision(config.train.precision, world),
        "images_per_second": {name: round(rate, 3) for name, rate in turns.medians().items()},
        "ratios": {
            "whole loop / bare step": round(turns.ratio(LOOP, BARE), 3),
            "whole loop / min(bare step, reader alone)": round(turns.ratio_to_least(LOOP, [BARE, READER]), 3),
        },
    }


def write_blocks(folder: Path, *, side: int, count: int = 24) -> str:
    """Write photographs of coloured blocks with masks and return their folder."""
    generator = np.random.default_rng(0)
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        ids = generator.integers(0, 5, (6, 8), dtype=np.uint8).repeat(side // 6, 0).repeat(side // 6, 1)
        pixels = (40 * ids[..., None] + generator.integers(0, 60, (*ids.shape, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.jpg")
        Image.fromarray(ids).save(folder / f"annotations/{number}.png")
    return str(folder)


if __name__ == "__main__":
    main()
