"""How many views per second does a tokenizer encode beside DALL-E's encoder, in one run on one machine?

    python benchmarks/tokenizer_speed.py --tokenizer mini --view-size 112

DALL-E's encoder has random weights here: the arithmetic is the same, and nothing is downloaded. The two take turns, so
that a busy machine slows both; the ratio of the medians is the result.
"""

from __future__ import annotations

import json
import statistics
import time

import click
import numpy as np
import torch

from beit.benchmarks.stores import random_dalle
from beit.common.tokenizer import load_tokenizer


@click.command()
@click.option("--tokenizer", "name", default="mini", show_default=True, help="Name or path of the one to compare.")
@click.option("--view-size", default=112, show_default=True, metavar="PX", help="Side of the views.")
@click.option("--views", default=32, show_default=True, help="Views per batch of the tokenizer.")
@click.option("--dalle-views", default=4, show_default=True, help="Views per batch of DALL-E's encoder.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each, after one to warm up.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(name: str, view_size: int, views: int, dalle_views: int, rounds: int, dtype: str, as_json: bool) -> None:
    """Time both in turns and print views per second and their ratio."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    contestants = {
        name: (load_tokenizer(name, device=device, dtype=dtype, compile_encoder="off"), views),
        "dall-e (random weights)": (random_dalle(device, dtype), dalle_views),
    }
    pixels = np.random.default_rng(0).integers(0, 256, (max(views, dalle_views), view_size, view_size, 3), np.uint8)
    seconds: dict[str, list[float]] = {contestant: [] for contestant in contestants}
    for turn in range(rounds + 1):
        for contestant, (tokenizer, count) in contestants.items():
            started = time.perf_counter()
            tokenizer.encode(pixels[:count]).cpu()  # waits for the device
            if turn:
                seconds[contestant].append((time.perf_counter() - started) / count)
    rates = {contestant: 1.0 / statistics.median(values) for contestant, values in seconds.items()}
    mine, dalle = rates.values()
    result = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": dtype,
        "view_size": view_size,
        "views_per_second": {contestant: round(rate, 2) for contestant, rate in rates.items()},
        "ratio": round(mine / dalle, 1),
    }
    if as_json:
        click.echo(json.dumps(result))
        return
    for contestant, rate in rates.items():
        click.echo(f"{contestant:<26}{rate:>10.2f} views/s")
    click.echo(
        f"{name} is {mine / dalle:.1f} times as fast ({dtype}, {view_size} px, {device}, {result['threads']} threads)"
    )


if __name__ == "__main__":
    main()
