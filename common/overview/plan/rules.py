"""Rules that only a plan can check, because they need all stages or another machine; the others are the stages' own."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from beit.common.forecast.hardware import Hardware, data_sheet
from beit.common.forecast.rules import Problem
from beit.common.forecast.training import TrainingForecast
from beit.common.forecast.words import in_gb
from beit.common.pages.numbers import count


def disk_problem(needed: float, folder: Path) -> Problem | None:
    """Say so where a disk has no room for all stages together."""
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return None
    return Problem(
        what=f"store and runs need {in_gb(needed)} of disk, and here are {in_gb(free)} free",
        way_out="put them on another disk, or lower --views",
        is_fatal=True,
    )


def held_out_problem(num_images: int, num_held_out: int) -> Problem | None:
    """Say so where images are too few to hold any out, without which no pre-training begins."""
    if num_held_out and num_images > num_held_out:
        return None
    return Problem(
        what=f"{count(num_images, 'image')} leave {num_images - num_held_out} to train on and {num_held_out} to "
        "measure on, and beit pretrain needs both",
        way_out="give at least 5 images",
        is_fatal=True,
    )


def loader_problem(forecast: TrainingForecast, num_workers: int) -> Problem | None:
    """Say so where a GPU waits for its images."""
    needed, hardware = forecast.loader_cores_per_device, forecast.hardware
    if needed is None or hardware.device == "cpu" or needed <= max(1, num_workers):
        return None
    workers = math.ceil(needed)
    way_out = f"--set reader.num_workers={workers}"
    if workers > hardware.cores_per_device:
        way_out = (
            f"a GPU has {hardware.cores_per_device:.3g} cores here: --set reader.num_workers="
            f"{max(1, int(hardware.cores_per_device))}, and crops that are stored (--set tokenize.materialize=true) or "
            "smaller images (--set tokenize.short_side=256)"
        )
    return Problem(
        what=f"reader.num_workers ({num_workers}) keeps a GPU waiting, for which {count(workers, 'core')} must read",
        way_out=way_out,
        is_fatal=False,
    )


def precision_problem(hardware: Hardware, setting: str) -> Problem | None:
    """Say so where a GPU would compute in float32 although it is several times as fast otherwise."""
    sheet = data_sheet(hardware.name) if hardware.device == "cuda" else None
    if sheet is None or sheet.has_bf16 or setting != "auto":
        return None
    return Problem(
        what=f"train.precision (auto) takes float32 on {hardware.name}, which has no bf16: at most {sheet.fp32:g} "
        f"TFLOPS in place of {sheet.half:g}",
        way_out="--set train.precision=fp16",
        is_fatal=False,
    )


def idle_ranks_problem(num_shards: int, num_devices: int) -> Problem | None:
    """Say so where there are fewer shards than ranks to tokenise them."""
    if num_shards >= num_devices:
        return None
    return Problem(
        what=f"tokenising has {count(num_shards, 'shard')} for {num_devices} ranks, and a shard is one rank's",
        way_out="--set tokenize.shard_size=N makes smaller ones, or start fewer",
        is_fatal=False,
    )
