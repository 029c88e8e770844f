"""How fast this machine does the arithmetic of a pre-training: some micro-batches and one update, without a run."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from beit.common.processes.distributed import World, init_distributed
from beit.common.store import open_store
from beit.common.training.engine import autocast_to, choose_precision
from beit.common.training.optimizer import build_optimizer
from beit.common.training.speed import apply_speed
from beit.pretrain.config import PretrainConfig
from beit.pretrain.train import PretrainTask

_FEWEST = 2
"""Micro-batches that are timed, after one that pays for what is done once."""
_MOST = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainRate:
    """What was measured."""

    flops_per_second: float
    """Of one rank, forward and backward, in micro-batches of `micro_batch_size`."""
    micro_batch_size: int
    """Images at a time."""
    update_seconds: float
    """Of the optimizer's update of all weights."""
    views_per_core_second: float
    """That one process reads, renders and masks."""


def measure_training(config: PretrainConfig, store: Path, *, micro_batch_size: int, seconds: float) -> PretrainRate:
    """Time forward, backward and update of the network that the settings describe, on a store of a few images.

    Args:
        config: Settings.
        store: Of a few images, with tokens; also sets the size of view and patch.
        micro_batch_size: Images at a time; fewer are taken where one alone takes long.
        seconds: To spend, about.
    """
    world = init_distributed()
    task = _task(config, store, 1, world)
    step = _Step(task, world)
    step(1)
    size, took = 1, step(1)
    while size < micro_batch_size and 2 * took < seconds / (_FEWEST + 1):  # small ones take hardly less than large ones
        size = min(2 * size, micro_batch_size)
        took = step(size)
    times: list[float] = []
    while len(times) < _FEWEST or (sum(times) < seconds and len(times) < _MOST):
        times.append(step(size))
    step.update()
    return PretrainRate(
        flops_per_second=task.flops_per_sample() * size / statistics.median(times),
        micro_batch_size=size,
        update_seconds=step.update(),
        views_per_core_second=_reading_rate(config, store, world, seconds=seconds / 5),
    )


def _task(config: PretrainConfig, store: Path, batch: int, world: World) -> PretrainTask:
    train = replace(config.train, global_batch_size=batch, micro_batch_size=batch, steps=10**6)
    optimizer = replace(config.optimizer, warmup_epochs=0.0, warmup_steps=0)
    reader = replace(config.reader, num_workers=0, lanes=1)
    held_out = replace(config.held_out, pictures=0)
    settings = replace(config, train=train, optimizer=optimizer, reader=reader, held_out=held_out)
    return PretrainTask(settings, open_store(store), world)


class _Step:
    """Forward and backward passes of the task's model on images that stay where they are, and its update."""

    def __init__(self, task: PretrainTask, world: World) -> None:
        self._task, self._device = task, world.device
        self._model = task.model.to(world.device).train()
        apply_speed(self._model, replace(task.config.speed, compile=False), device=world.device, zero_stage=0)
        self._optimizer = build_optimizer(task.config.optimizer, task.param_groups(), self._model, zero_stage=0)
        self._precision = choose_precision(task.config.train.precision, world)
        self._example = {
            name: value.to(world.device) if isinstance(value, Tensor) else value
            for name, value in task.data.example(1).items()
        }

    def __call__(self, size: int) -> float:
        """Return the seconds of one micro-batch."""
        batch = {
            name: value.repeat(size, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else list(value) * size
            for name, value in self._example.items()
        }
        began = self._now()
        with autocast_to(self._precision, self._device):
            loss, _ = self._task.forward(self._model, batch, 0)
        loss.float().backward()  # type: ignore[no-untyped-call]
        return self._now() - began

    def update(self) -> float:
        """Return the seconds of an update."""
        began = self._now()
        self._optimizer.step()
        return self._now() - began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic()


def _reading_rate(config: PretrainConfig, store: Path, world: World, *, seconds: float) -> float:
    """Return the views per second of a process that only reads."""
    batches: Iterator[object] = iter(_task(config, store, 8, world).data.micro_batches(0))
    next(batches)
    began, read = time.monotonic(), 0
    for _ in itertools.islice(batches, 1000):
        read += 8
        if time.monotonic() - began >= seconds:
            break
    return read / max(time.monotonic() - began, 1e-9)
