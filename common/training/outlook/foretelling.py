"""What a training is expected to take, said before its first step, and refused where it cannot fit.

The numbers are those of the stage's `forecast.py`, which `beit plan` shows, too. What it takes in truth is measured
within the first step (`expectation.py`).
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from beit.common.errors import InputError
from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.training import TrainingForecast
from beit.common.forecast.words import in_gb
from beit.common.processes.cores import ranks_here
from beit.common.processes.distributed import World
from beit.common.training.config import TrainingConfig
from beit.common.training.measure import free_memory_bytes
from beit.common.training.outlook.forecast import plan_advice
from beit.common.training.task import Foretells, Task

logger = logging.getLogger(__name__)

_SURE = 0.85
"""Of the memory expected, what is surely needed: the formula was never further off (docs/plan.md)."""
_REGARDLESS = "to go on regardless, --set run.allow_shortage=true"
_NO_SMALLER = "take a smaller model or smaller images, or speed.activation_checkpointing=true"


def look_ahead(task: Task, config: TrainingConfig, *, run: Path, step: int, world: World) -> None:
    """Say in two lines what a run that is to begin, or to go on at `step`, is expected to take, if the task knows.

    And what its plan promises too little of.

    To be called on every rank, with the micro-batch settled and before anything is written.

    Raises:
        InputError: memory or disk cannot be enough, and the settings do not say to go on regardless.
    """
    advice = plan_advice(config, task.data.plan)
    if advice is not None and world.is_main:
        logger.warning("%s", advice)
    if not isinstance(task, Foretells) or step >= task.data.plan.total_steps:
        return
    forecast = task.forecast(hardware_of(world))
    _heed_memory(forecast, world, is_allowed=config.run.allow_shortage)
    world.run_on_main(lambda: _heed_disk(forecast, run, is_allowed=config.run.allow_shortage))
    if world.is_main:
        for line in forecast.lines(after=step, free_disk=free_disk_of(run)):
            logger.info("%s", line)


def hardware_of(world: World) -> Hardware:
    """Return what these ranks compute with."""
    here = ranks_here(world.world_size)
    found = this_machine(num_devices=here)
    return replace(found, num_devices=world.world_size, num_machines=max(1, world.world_size // here))


def _heed_memory(forecast: TrainingForecast, world: World, *, is_allowed: bool) -> None:
    free, here = free_memory_bytes(world.device), ranks_here(world.world_size) if world.device.type == "cpu" else 1
    if free is None:
        return
    room = free / here + _held_bytes(world.device)
    lacking, short = world.max_of([float(_SURE * forecast.memory.total > room), float(forecast.memory.total > room)])
    if not short:
        return
    sizes = [size for size in forecast.micro_batch_sizes if size < forecast.micro_batch_size]
    fitting = max((size for size in sizes if forecast.memory_at(size).total <= room), default=None)
    (advised,) = world.max_of([-float(fitting or 0)])
    way_out = f"--set train.micro_batch_size={-advised:.0f}, for the same step" if advised else _NO_SMALLER
    what = (
        f"a training with micro-batches of {forecast.micro_batch_size} images needs about "
        f"{in_gb(forecast.memory.total)} of memory{'' if here == 1 else ' per rank'}, and {in_gb(room)} are left for it"
    )
    _refuse_or_warn(what, way_out, is_sure=bool(lacking) and not is_allowed, speaks=world.is_main)


def _held_bytes(device: torch.device) -> int:
    """Return what this process has of that memory already."""
    return psutil.Process().memory_info().rss if device.type == "cpu" else torch.cuda.memory_reserved(device)


def _heed_disk(forecast: TrainingForecast, run: Path, *, is_allowed: bool) -> None:
    free = free_disk_of(run)
    # The one being written is there before the oldest is deleted.
    needed = forecast.disk_bytes + forecast.checkpoint_bytes - _size_of(run)
    if free is None or needed <= free:
        return
    what = f"the run will need {in_gb(needed)} of disk, and that of {run} has {in_gb(free)} free"
    way_out = "name a folder on another disk, make room, or keep fewer checkpoints (checkpoint.keep_every_steps)"
    _refuse_or_warn(what, way_out, is_sure=not is_allowed, speaks=True)


def _refuse_or_warn(what: str, way_out: str, *, is_sure: bool, speaks: bool) -> None:
    if is_sure:
        raise InputError(f"{what}; {way_out}; {_REGARDLESS}")
    if speaks:
        logger.warning("%s; %s", what, way_out)


def free_disk_of(run: Path) -> int | None:
    """Return the bytes free where a run is or will be; None where nobody knows."""
    folder = next((folder for folder in (run, *run.absolute().parents) if folder.is_dir()), None)
    try:
        return None if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return None


def _size_of(run: Path) -> int:
    """Return the bytes of what a run has written already, and will delete or replace."""
    total = 0
    for file in run.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue  # replaced at this moment
    return total
