"""How fast is pre-training, beside a bare step, the reader alone, the same step with DALL-E online, and Hugging Face?

    python benchmarks/pretrain_speed.py --recipe demo --img-size 32 --patch-size 4 --steps 10
    python benchmarks/pretrain_speed.py --set train.global_batch_size=4 --set reader.num_workers=1 --steps 2 --rounds 3

All in one run, in turns of some steps each, with one recipe's model, batch, precision and reader:

    bare step       model, loss, clipping and AdamW on one batch that stays on the device; no engine, no reader
    whole loop      `beit pretrain` itself on a store of generated photographs: reader, DeepSpeed, checks, logging
    reader alone    the same reader, with nobody computing
    DALL-E online   the bare step behind DALL-E's encoder (random weights: the same arithmetic), as in the released code
    Hugging Face    BeitForMaskedImageModeling of the same shape, same optimizer

Ratios are medians over rounds of rates of the same round, so other work on the machine cancels out. MFU is relative to
a large matrix product, measured in every round.
"""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from beit.benchmarks.stores import make_store, random_dalle, write_scenes
from beit.benchmarks.turns import LOOP, LoopTurns, Turns, matrix_product
from beit.common.config import load_config
from beit.common.processes.distributed import init_distributed
from beit.common.shards.token_store import TokenStore
from beit.common.training.engine import choose_precision
from beit.common.training.speed import apply_speed
from beit.common.training.start import start_run
from beit.common.training.trainer import fit
from beit.common.vit.transform import normalize_images
from beit.pretrain.commands import RECIPES
from beit.pretrain.config import PretrainConfig
from beit.pretrain.objective import build_model, build_step
from beit.pretrain.train import PretrainTask

BARE, READER, ONLINE, HUGGING_FACE = "bare step", "reader alone", "DALL-E online", "Hugging Face"
MATMUL = "matrix product"


class BareStep:
    """One optimizer step of the task's model on a batch that stays where it is.

    Args:
        task: Whose model, objective and data.
        batch: One micro-batch on the device.
    """

    def __init__(self, task: PretrainTask, batch: Mapping[str, Any]) -> None:
        config, device = task.config, task.world.device
        self.batch, self._clip_grad = batch, config.optimizer.clip_grad
        self.model = build_model(config, task.vit, task.tokens).to(device).train()
        apply_speed(self.model, config.speed, device=device, zero_stage=0)
        self._step = build_step(config, task.tokens, patch_size=task.vit.patch_size)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self._precision = autocast(choose_precision(config.train.precision, task.world), device)

    def __call__(self, token_ids: Tensor | None = None) -> int:
        """Do one step, with other tokens if they are given; returns the images in it."""
        batch = self.batch if token_ids is None else {**self.batch, "token_ids": token_ids}
        with self._precision():
            loss, _ = self._step(self.model, batch, 0)
        loss.float().backward()
        if self._clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return len(batch["images"])


class OnlineStep:
    """The bare step behind DALL-E's encoder: float32 on a CPU and float16 on a GPU, as the official code does."""

    def __init__(self, bare: BareStep, task: PretrainTask) -> None:
        device, side = task.world.device, task.vit.grid_size[0]
        self._bare = bare
        self._tokenizer = random_dalle(device, "float32" if device.type == "cpu" else "float16")
        shape = (len(bare.batch["images"]), 3, side * 8, side * 8)
        self._views = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def __call__(self) -> int:
        """Do one step."""
        # Turns are taken in the middle of the loop's own step, whose precision is not the tokenizer's.
        with torch.autocast(self._views.device.type, enabled=False):
            token_ids = self._tokenizer.encode(self._views).flatten(1).clone()
        return self._bare(token_ids)


class HuggingFaceStep:
    """One step of transformers' model of the same shape, which predicts from all patches and then picks the masked."""

    def __init__(self, task: PretrainTask, batch: Mapping[str, Any]) -> None:
        import transformers

        vit, config, device = task.vit, task.config, task.world.device
        shape = transformers.BeitConfig(
            vocab_size=task.store.info.tokenizer.vocab_size,
            hidden_size=vit.embed_dim,
            num_hidden_layers=vit.depth,
            num_attention_heads=vit.num_heads,
            intermediate_size=vit.mlp_dim,
            image_size=vit.img_size,
            patch_size=vit.patch_size,
            drop_path_rate=vit.drop_path,
            layer_scale_init_value=vit.init_values,
            use_shared_relative_position_bias=vit.pos_bias == "shared",
            use_relative_position_bias=vit.pos_bias == "per_block",
            use_absolute_position_embeddings=vit.use_abs_pos_emb,
            use_mask_token=True,
        )
        self._model = transformers.BeitForMaskedImageModeling(shape).to(device).train()
        if config.speed.compile:
            self._model.compile()
        self._batch, self._clip_grad = batch, config.optimizer.clip_grad
        self._mean, self._std = config.data.mean, config.data.std
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4, fused=True)
        self._precision = autocast(choose_precision(config.train.precision, task.world), device)

    def __call__(self) -> int:
        """Do one step."""
        images, mask = normalize_images(self._batch["images"], self._mean, self._std), self._batch["bool_masked_pos"]
        with self._precision():
            labels = self._batch["token_ids"][mask]  # the loss wants those of masked patches, one after the other
            loss = self._model(pixel_values=images, bool_masked_pos=mask, labels=labels).loss
        loss.float().backward()
        if self._clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return len(images)


class ReaderAlone:
    """The reader of the task with nobody computing; it begins anew where it ends."""

    def __init__(self, task: PretrainTask) -> None:
        self._task = task
        self._batches = iter(task.data.micro_batches(0))

    def next(self) -> Mapping[str, Any]:
        """Return the next micro-batch, in host memory."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._task.data.micro_batches(0))
            batch = next(self._batches)
        return batch

    def __call__(self) -> int:
        """Read a micro-batch; returns the images in it."""
        return len(self.next()["images"])

    def close(self) -> None:
        """End the workers, which this process would wait for at its exit."""
        self._batches.close()  # type: ignore[attr-defined]


class LoopInTurns(LoopTurns, PretrainTask):
    """The task of `beit pretrain`, between whose steps the others have their turns."""


def autocast(precision: str, device: torch.device) -> Any:
    """Return what makes the context of forward passes."""

    @contextmanager
    def context() -> Iterator[None]:
        if precision != "bf16":
            yield
            return
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
        # Below the loop's own context torch would keep the halved weights, and take those of the step before.
        torch.clear_autocast_cache()

    return context


@click.command()
@click.option("--recipe", help="Of beit pretrain; left out, its defaults: ViT-B/16.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="As for beit pretrain.")
@click.option("--source", help="Images, in any form that beit tokenize takes; generated photographs if left out.")
@click.option("--images", "num_images", default=64, show_default=True, help="How many to generate.")
@click.option("--image-side", default=0, metavar="PX", help="Of the generated ones; left out, 500 or twice the view.")
@click.option("--img-size", default=224, show_default=True, metavar="PX", help="Side of a view.")
@click.option("--patch-size", default=16, show_default=True, metavar="PX", help="Side of a patch.")
@click.option("--steps", default=5, show_default=True, help="Optimizer steps in a turn.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each, after one to warm up.")
@click.option("--without", multiple=True, type=click.Choice([ONLINE, HUGGING_FACE]), help="Leave a contestant out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    recipe: str | None,
    overrides: Sequence[str],
    source: str | None,
    num_images: int,
    image_side: int,
    img_size: int,
    patch_size: int,
    steps: int,
    rounds: int,
    without: Sequence[str],
    as_json: bool,
) -> None:
    """Time everything in turns and print images per second, ratios, MFU and memory."""
    with tempfile.TemporaryDirectory() as folder:
        side = image_side or min(500, 2 * img_size)
        images = source or write_scenes(Path(folder) / "scenes", num_images, side=side)
        store = make_store(images, Path(folder) / "store", views=1, img_size=img_size, patch_size=patch_size)
        config = load_config(PretrainConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)
        result = measure(config, store, Path(folder) / "run", steps=steps, rounds=rounds, without=without)
    click.echo(json.dumps(result) if as_json else as_table(result))


def measure(
    config: PretrainConfig, store: TokenStore, run_dir: Path, *, steps: int, rounds: int, without: Sequence[str]
) -> dict[str, Any]:
    """Run all contestants and return the figures."""
    world = init_distributed()
    settle = 1 + config.reader.num_workers * (config.reader.prefetch_batches + 1)
    rhythm = {
        # The bare step has the whole batch at once, so the loop does, too.
        "train.micro_batch_size": config.train.micro_batch_size or config.train.global_batch_size,
        "train.steps": rounds * (settle + steps) + 1,
        "train.eval_interval_steps": 10**9,
        "checkpoint.interval_steps": 10**9,
        "held_out.max_images": 1,
        "held_out.train_images": 0,
        "held_out.baseline_views": 1,
    }
    config = replace_settings(config, rhythm)
    task = LoopInTurns(config, store, world)
    precision = choose_precision(config.train.precision, world)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    reader = ReaderAlone(task)
    try:
        turn_takers = {**contestants(task, reader, steps, without), MATMUL: matrix_product(world.device, dtype)}
        turns = Turns(turn_takers, world.device)
        turns.round(is_warm_up=True)
        task.take_turns(turns, steps=steps, settle=settle, rounds=rounds)
        run = start_run(task, config, path=run_dir, resume="never", world=world)
        fit(task, config, run=run, world=world)
    finally:
        reader.close()
    return figures(task, turns, precision)


def contestants(task: LoopInTurns, reader: ReaderAlone, steps: int, without: Sequence[str]) -> dict[str, Any]:
    """Return what takes turns with the loop; each does the steps of a turn and returns the images in them."""
    device = task.world.device
    batch = {name: value.to(device) for name, value in reader.next().items() if isinstance(value, Tensor)}
    bare = BareStep(task, batch)
    single: dict[str, Any] = {BARE: bare, READER: reader}
    if ONLINE not in without:
        single[ONLINE] = OnlineStep(bare, task)
    if HUGGING_FACE not in without:
        single[HUGGING_FACE] = HuggingFaceStep(task, batch)
    return {name: repeat(step, steps) for name, step in single.items()}


def repeat(step: Any, steps: int) -> Any:
    """Return a turn of several steps."""
    return lambda: sum(step() for _ in range(steps))


def replace_settings(config: PretrainConfig, values: Mapping[str, object]) -> PretrainConfig:
    """Return the settings with some of them replaced."""
    from beit.common.config import config_from_dict, config_to_dict

    nested = config_to_dict(config)
    for name, value in values.items():
        section, key = name.split(".")
        nested[section][key] = value
    return config_from_dict(PretrainConfig, nested)


def figures(task: LoopInTurns, turns: Turns, precision: str) -> dict[str, Any]:
    """Put together what was measured."""
    rates, flops = turns.medians(), task.flops_per_sample()
    matmul_flops = rates.pop(MATMUL)
    device = task.world.device
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 1024 * _peak_rss_kib()
    ratios = {
        "whole loop / bare step": turns.ratio(LOOP, BARE),
        "whole loop / min(bare step, reader alone)": turns.ratio_to_least(LOOP, [BARE, READER]),
    }
    for name in (ONLINE, HUGGING_FACE):
        if name in rates:
            ratios[f"bare step / {name}"] = turns.ratio(BARE, name)
            ratios[f"whole loop / {name}"] = turns.ratio(LOOP, name)
    return {
        "model": task.vit.name,
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "micro_batch_size": task.data.plan.micro_batch_size,
        "precision": precision,
        "compile": task.config.speed.compile,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "workers": task.config.reader.num_workers,
        "images_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "mfu_of_matrix_product": {name: round(turns.ratio(name, MATMUL) * flops, 3) for name in (BARE, LOOP)},
        "matrix_product_tflops": round(matmul_flops / 1e12, 3),
        "peak_memory_gb": round(peak / 1e9, 2),
    }


def _peak_rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def as_table(result: Mapping[str, Any]) -> str:
    """Lay the figures out for reading."""
    lines = [
        f"{result['model']}, {result['parameters'] / 1e6:.1f} M parameters, batch {result['micro_batch_size']}, "
        f"{result['precision']}{', compiled' if result['compile'] else ''}, {result['device']}, "
        f"{result['threads']} threads, {result['workers']} workers"
    ]
    lines += [f"{name:<44}{rate:>10.2f} images/s" for name, rate in result["images_per_second"].items()]
    lines += [f"{name:<44}{ratio:>10.3f}" for name, ratio in result["ratios"].items()]
    for name, share in result["mfu_of_matrix_product"].items():
        lines.append(f"MFU of the {name:<33}{share:>10.1%} of {result['matrix_product_tflops']} TFLOPS measured")
    lines.append(f"{'peak memory of the process, everything in it':<44}{result['peak_memory_gb']:>10.2f} GB")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
