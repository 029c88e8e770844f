"""What a run is about to take, said while it is young: time, memory and disk, and a plan that promises little.

Nothing is rehearsed, so nothing has to be undone: the first two micro-batches of the run itself are measured, the first
of which pays for what is done once. Where a step has several, the line comes within the first step.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import torch

from beit.common.forecast.words import in_gb, in_words
from beit.common.processes.distributed import World
from beit.common.training.config import TrainConfig, TrainingConfig, TrainingPlan
from beit.common.training.measure import children_memory_bytes, free_memory_bytes, peak_memory_bytes
from beit.common.training.task import CountsFlops, NamesQuicker, Task

logger = logging.getLogger(__name__)

_LONG_SECONDS = 3600.0
"""From here on somebody with a processor only may want to hear of something quicker; arbitrary."""
LONG_REST_SECONDS = 30.0
"""A stop does not wait for the rest of a step that takes longer; what is done of it is done again."""


class Expectation:
    """Watches the first micro-batches of this process and then says, once, what the run takes.

    To be made before the engine, which may part the weights; every rank calls every method.
    """

    def __init__(self, task: Task, config: TrainingConfig, *, run: Path, world: World) -> None:
        self._task, self._config, self._run, self._world = task, config, run, world
        self._num_weights = sum(value.numel() for value in task.model.state_dict().values())
        self._num_trained = sum(weight.numel() for weight in task.model.parameters() if weight.requires_grad)
        self._micro_batches: list[float] = []
        self._update = 0.0
        self._began = self._step_began = 0.0
        self._step_seconds = 0.0
        self._is_done = False

    def begin_step(self) -> None:
        """Start the clock, at the beginning of a step."""
        self._began = self._step_began = time.monotonic()

    def rest_of_step(self, done: int) -> float:
        """Return the seconds that a step still takes of which so many micro-batches are done; 0 while nobody knows."""
        parts = self._task.data.plan.grad_accum_steps
        if not done:
            return self._step_seconds
        return (time.monotonic() - self._step_began) / done * (parts - done)

    def end_micro_batch(self, step: int) -> None:
        """Take the time of a micro-batch of `step`; after the second one say what all of them will take."""
        if self._is_done:
            return
        self._micro_batches.append(self._lap())
        if len(self._micro_batches) == 2:
            self._is_done = True
            self._say(step)

    def end_step(self) -> None:
        """Take the time of the optimizer's update."""
        if not self._is_done:
            self._update = self._lap()
        self._step_seconds = time.monotonic() - self._step_began

    def _lap(self) -> float:
        if self._world.device.type == "cuda":  # which only now has done what it was told
            torch.cuda.synchronize(self._world.device)
        now = time.monotonic()
        lap, self._began = now - self._began, now
        return lap

    def _say(self, step: int) -> None:
        plan, device = self._task.data.plan, self._world.device
        to_come = 0 if step > 0 or plan.grad_accum_steps == 1 else 8 * self._num_trained  # the moments, made in a step
        step_seconds = plan.grad_accum_steps * self._micro_batches[-1] + self._update
        memory = float(peak_memory_bytes(device) + to_come)
        if device.type == "cpu":
            memory += children_memory_bytes()
        step_seconds, memory = self._world.max_of([step_seconds, memory])
        if not self._world.is_main:
            return
        seconds, remaining = step_seconds * (plan.total_steps - step), plan.total_steps - step
        checkpoint, disk = self._disk(remaining)
        logger.info(
            "about %s per step, %s for %d steps, evaluations apart; %s of memory%s; %s of disk (checkpoints of %s)%s",
            in_words(step_seconds),
            in_words(seconds),
            remaining,
            in_gb(memory),
            "" if self._world.world_size == 1 else " per rank",
            in_gb(disk),
            in_gb(checkpoint),
            self._quicker(step_seconds, seconds),
        )
        self._warn(checkpoint, disk, to_come)

    def _disk(self, remaining: int) -> tuple[int, int]:
        """Return the bytes of a checkpoint, and of those that will be kept beside what the run leaves for use."""
        settings, plan = self._config.checkpoint, self._task.data.plan
        goal = self._task.goal
        copies = 1 + (goal is not None and goal.keep_best)
        averages = self._config.train.ema_decay is not None
        checkpoint = 4 * (copies * self._num_weights + (2 + averages) * self._num_trained)
        saves = 1 + remaining // plan.save_interval_steps
        kept = min(settings.keep, saves)
        if settings.keep_every_steps is not None:
            kept += remaining // max(settings.keep_every_steps, plan.save_interval_steps)
        return checkpoint, kept * checkpoint + 4 * self._num_weights

    def _quicker(self, step_seconds: float, seconds: float) -> str:
        """Return what else could be done where there is only a processor and the run is long."""
        task = self._task
        if self._world.device.type != "cpu" or seconds < _LONG_SECONDS:
            return ""
        if not (isinstance(task, NamesQuicker) and isinstance(task, CountsFlops)):
            return ""
        speed = task.flops_per_sample() * task.data.plan.global_batch_size / max(step_seconds, 1e-9)
        words = task.quicker(speed)
        return f"; {words}" if words else ""

    def _warn(self, checkpoint: int, disk: int, to_come: int) -> None:
        """Say so where memory or disk may not be enough; whether they are, nobody can know."""
        free = free_memory_bytes(self._world.device)
        if self._world.device.type == "cpu" and free is not None and free < 1.1 * to_come:
            logger.warning(
                "memory is short: %s are free, and the first update takes %s; lower train.micro_batch_size",
                in_gb(free),
                in_gb(to_come),
            )
        try:
            room = shutil.disk_usage(self._run).free
        except OSError:
            return
        if room < disk + checkpoint:  # the one being written is there before the oldest is deleted
            logger.warning(
                "the disk of %s has %s free, and the run will need %s; make room, or keep fewer checkpoints",
                self._run,
                in_gb(room),
                in_gb(disk + checkpoint),
            )


def finished_line(run: Path, train: TrainConfig, plan: TrainingPlan, *, step: int) -> str:
    """Say that a run is finished at `step`, and what makes it go on: its end is a setting, or it gave up before."""
    if step < plan.total_steps:
        return (
            f"{run} is finished: it stopped early at step {step} of {plan.total_steps}; to train longer raise "
            f"train.early_stop_evals ({train.early_stop_evals})"
        )
    longer = f"train.steps={2 * train.steps}" if train.steps else f"train.epochs={2 * train.epochs:g}"
    return (
        f"{run} is finished ({step} of {plan.total_steps} steps); to train longer run the same command with "
        f"--set {longer} --resume {run}"
    )
