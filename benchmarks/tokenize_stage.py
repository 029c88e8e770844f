"""Does `beit tokenize` keep its tokenizer busy? The whole stage beside its parts, and which of them is the limit.

    OMP_WAIT_POLICY=passive python benchmarks/tokenize_stage.py --tokenizer mini
    OMP_WAIT_POLICY=passive python benchmarks/tokenize_stage.py --tokenizer dall-e-random --images 32 --views 2

`beit` sets that variable itself, so that torch's threads leave their cores to the workers while they wait.

In one run, in turns, on the same images, with the same batch, number format and threads:

    whole stage     `beit tokenize` on a tar of photographs: decode, crop, tokenizer, checksums, files; without start-up
    bare forward    the tokenizer on batches that are in memory already
    supply          the whole stage with a tokenizer that costs nothing: as fast as views can be had

`dall-e-random` is DALL-E's encoder with random weights: the arithmetic is the same, and nothing is downloaded. Ratios
are medians over rounds of rates of the same round. Where the tokenizer has a device of its own, the stage can reach the
lower one of forward and supply. On a CPU both want the same cores: 1 / (1 / forward + 1 / supply) is left to reach.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from beit.benchmarks.stores import NoTokenizer, random_dalle, write_scenes
from beit.benchmarks.turns import wait_for
from beit.common.processes.cores import available_cores
from beit.common.tokenizer import choose_dtype, load_tokenizer
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize
from beit.tokenize.setup import choose_device, torch_threads
from beit.tokenize.summary import TokenizeSummary

STAGE, FORWARD, SUPPLY, SHARED = "whole stage", "bare forward", "supply", "both on the same cores"
RANDOM_DALLE = "dall-e-random"


class Stage:
    """The stage and its parts on one set of images.

    Args:
        config: Settings of beit tokenize; `tokenizer` may be "dall-e-random".
        source: Images, packed in advance so that packing is not measured.
        folder: For the stores, which are removed again.
    """

    def __init__(self, config: TokenizeConfig, source: str, folder: Path) -> None:
        self._config, self._source, self._folder = config, source, folder
        self.device = torch.device(choose_device(config, 0))
        self.threads = config.threads or available_cores()
        self.dtype = choose_dtype(config.dtype, self.device)
        if config.tokenizer == RANDOM_DALLE:
            self._tokenizer = random_dalle(self.device, self.dtype)
        else:
            self._tokenizer = load_tokenizer(
                config.tokenizer, device=self.device, dtype=self.dtype, compile_encoder=config.compile_encoder
            )
        self._side = config.grid_size * self._tokenizer.downsampling
        self.limit = ""

    def whole(self) -> float:
        """Return views per second of the stage; notes what it calls its limit."""
        summary = self._run(self._tokenizer)
        self.limit = summary.limit
        return summary.images_per_second * self._config.views

    def supply(self) -> float:
        """Return views per second of the stage with a tokenizer that costs nothing."""
        return self._run(NoTokenizer()).images_per_second * self._config.views

    def forward(self, batches: int) -> float:
        """Return views per second of the tokenizer alone."""
        size = self._config.micro_batch_size
        pixels = np.random.default_rng(0).integers(0, 256, (size, self._side, self._side, 3), np.uint8)
        with torch_threads(self.threads):
            started = time.perf_counter()
            for _ in range(batches):
                self._tokenizer.encode(pixels).cpu()
            wait_for(self.device)
            return size * batches / (time.perf_counter() - started)

    def _run(self, tokenizer: Any) -> TokenizeSummary:
        store = self._folder / "store"
        summary = run_tokenize(self._config, self._source, store, tokenizer=tokenizer)
        shutil.rmtree(store)
        return summary


@click.command()
@click.option("--tokenizer", default="mini", show_default=True, help="Name or path, or dall-e-random.")
@click.option("--source", help="A tar of images; generated photographs if left out.")
@click.option("--images", "num_images", default=64, show_default=True, help="How many to generate.")
@click.option("--image-side", default=500, show_default=True, metavar="PX", help="Of the generated ones.")
@click.option("--views", default=8, show_default=True, help="Views per image.")
@click.option("--img-size", default=224, show_default=True, metavar="PX", help="Side of the ViT's view.")
@click.option("--patch-size", default=16, show_default=True, metavar="PX", help="Side of a patch.")
@click.option("--batch", default=32, show_default=True, help="Views per forward pass.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option(
    "--worker-processes",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Whether views are made in processes instead of threads.",
)
@click.option("--rounds", default=5, show_default=True, help="Turns of each, after one to warm up.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    tokenizer: str,
    source: str | None,
    num_images: int,
    image_side: int,
    views: int,
    img_size: int,
    patch_size: int,
    batch: int,
    dtype: Any,
    worker_processes: Any,
    rounds: int,
    as_json: bool,
) -> None:
    """Time stage, forward pass and supply in turns and print views per second, ratios and the limit."""
    config = TokenizeConfig(
        tokenizer=tokenizer,
        views=views,
        img_size=img_size,
        patch_size=patch_size,
        micro_batch_size=batch,
        dtype=dtype,
        worker_processes=worker_processes,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = source or packed(folder, num_images, image_side)
        stage = Stage(config, images, folder)
        result = measure(stage, config, rounds)
    click.echo(json.dumps(result) if as_json else as_table(result))


def packed(folder: Path, num_images: int, side: int) -> str:
    """Generate photographs, pack them into one tar and return it."""
    packing = TokenizeConfig(views=0, shard_size=num_images)
    run_tokenize(packing, write_scenes(folder / "scenes", num_images, side=side), folder / "packed")
    (tar,) = (folder / "packed/images").glob("*.tar")
    return str(tar)


def measure(stage: Stage, config: TokenizeConfig, rounds: int) -> dict[str, Any]:
    """Run everything in turns."""
    rates: dict[str, list[float]] = {STAGE: [], FORWARD: [], SUPPLY: []}
    for turn in range(rounds + 1):
        stage_rate = stage.whole()
        batches = max(1, round(stage_rate / config.micro_batch_size))  # a turn of about a second
        measured = {STAGE: stage_rate, FORWARD: stage.forward(batches), SUPPLY: stage.supply()}
        for name, rate in measured.items() if turn else ():
            rates[name].append(rate)
    columns = list(zip(rates[STAGE], rates[FORWARD], rates[SUPPLY], strict=True))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "tokenizer": config.tokenizer,
        "device": str(stage.device),
        "dtype": stage.dtype,
        "threads": stage.threads,
        "views_per_second": {name: round(rate, 2) for name, rate in medians.items()},
        "stage_to_least": round(statistics.median(whole / min(parts) for whole, *parts in columns), 3),
        "stage_to_shared_cores": round(
            statistics.median(whole * (1 / forward + 1 / supply) for whole, forward, supply in columns), 3
        ),
        "limit": FORWARD if medians[FORWARD] <= medians[SUPPLY] else SUPPLY,
        "limit_according_to_the_stage": stage.limit,
    }


def as_table(result: dict[str, Any]) -> str:
    """Lay the figures out for reading."""
    lines = [f"{result['tokenizer']}, {result['dtype']}, {result['device']}, {result['threads']} threads"]
    lines += [f"{name:<44}{rate:>10.2f} views/s" for name, rate in result["views_per_second"].items()]
    lines.append(f"{'whole stage / min(bare forward, supply)':<44}{result['stage_to_least']:>10.3f}")
    if result["device"] == "cpu":
        lines.append(f"{f'whole stage / {SHARED}':<44}{result['stage_to_shared_cores']:>10.3f}")
    lines.append(f"limit: {result['limit']}; the stage itself says: {result['limit_according_to_the_stage']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
