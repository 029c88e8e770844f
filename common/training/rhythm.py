"""When a training evaluates and saves: as the settings say, else as often as a tenth of its time allows.

How often is counted before the first step, from images, so that the same command evaluates at the same steps on any
day and keeps the same model. The clock of the run is a guard: where an evaluation turns out dearer than counted, the
interval is doubled until a tenth holds. What was decided goes into every checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from beit.common.forecast.evaluations import SHARE, default_interval, due_steps
from beit.common.processes.distributed import World
from beit.common.training.config import TrainConfig, TrainingPlan

logger = logging.getLogger(__name__)

_SAVE_PAUSE = 20
"""Between two checkpoints by default, as many times what the last one took."""


class Rhythm:
    """Decides for all ranks; every rank calls every method.

    Args:
        train: Settings.
        plan: Of the run.
        cost: Of one evaluation, from `evaluation_cost`; 0 where nothing is measured, or at no cost.
        patience: Evaluations without improvement that end the run, if any do.
        world: The ranks; the clock is that of rank 0.
    """

    def __init__(self, train: TrainConfig, plan: TrainingPlan, *, cost: float, world: World) -> None:
        self._plan, self._cost, self._patience, self._world = plan, cost, train.early_stop_evals, world
        self._is_given = train.eval_interval_steps is not None
        self._interval = (
            plan.eval_interval_steps
            if self._is_given
            else default_interval(
                cost,
                per_epoch=plan.eval_interval_steps,
                total_steps=plan.total_steps,
                global_batch_size=plan.global_batch_size,
            )
        )
        self._seconds = self._evaluation_seconds = self._save_seconds = 0.0
        self._started = time.monotonic()

    def start(self) -> None:
        """Start the clock, now that the first step is about to begin, and say how often there are evaluations."""
        self._started = time.monotonic()
        if not (self._cost and self._world.is_main):
            return
        logger.info("%s", self)
        evaluations = len(self._due_steps(0, self._interval))
        if self._patience is not None and evaluations <= self._patience:
            logger.warning(
                "train.early_stop_evals (%d) cannot end this run: it evaluates only %d times; set "
                "train.eval_interval_steps",
                *(self._patience, evaluations),
            )

    def __str__(self) -> str:
        plan, interval = self._plan, self._interval
        share = self._share_of(len(self._due_steps(0, interval)))
        if interval >= plan.total_steps:
            dear = f", which takes about {share:.0%} of the time" if share > SHARE else ""
            return f"evaluates once, at the end{dear}"
        rhythm = f"evaluates every {interval} steps and at the end"
        if self._is_given:
            return rhythm + (f": about {share:.0%} of the time (train.eval_interval_steps)" if share > SHARE else "")
        if interval == plan.eval_interval_steps:
            return f"evaluates once per epoch, every {interval} steps" if interval > 1 else "evaluates every step"
        return f"{rhythm}, so that it takes at most a tenth of the time"

    def is_due(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps; at the end of the run there always is one."""
        return step in self._due_steps(step - 1, self._interval, until=step)

    def _due_steps(self, after: int, interval: int, until: int | None = None) -> list[int]:
        return due_steps(after, interval, total_steps=self._plan.total_steps, until=until)

    def _share_of(self, evaluations: int) -> float:
        work = self._cost * evaluations
        return work / (work + self._plan.total_steps * self._plan.global_batch_size)

    def note_evaluation(self, step: int, seconds: float) -> dict[str, float]:
        """Take the time of an evaluation after `step` steps, and evaluate less often where it was too much.

        Returns:
            evaluation_seconds, of this one, and evaluation_share, of the run's time so far: those of rank 0.
        """
        now = time.monotonic()
        self._seconds, self._started = self._seconds + now - self._started, now
        self._evaluation_seconds += seconds
        interval = self._interval if self._is_given else self._affordable(step, seconds)
        spent = (interval, seconds, self._seconds, self._evaluation_seconds)
        interval, seconds, self._seconds, self._evaluation_seconds = self._world.broadcast(spent)
        share = self._evaluation_seconds / max(self._seconds, 1e-9)
        if interval != self._interval and self._world.is_main:
            until = f"every {interval} steps" if interval < self._plan.total_steps else "only at the end"
            logger.info("an evaluation took %.1f s, too much for a tenth of the time: from now on %s", seconds, until)
        self._interval = interval
        return {"evaluation_seconds": round(seconds, 3), "evaluation_share": round(share, 4)}

    def _affordable(self, step: int, seconds: float) -> int:
        """Return the interval, doubled until the evaluations to come, if like the last, take their share at most."""
        steps_left = self._plan.total_steps - step
        others = self._seconds - self._evaluation_seconds
        others += others / step * steps_left
        interval = self._interval
        while interval < self._plan.total_steps:
            evaluations = self._evaluation_seconds + seconds * len(self._due_steps(step, interval))
            if evaluations <= SHARE * (evaluations + others):
                break
            interval *= 2
        return interval

    def note_save(self, seconds: float) -> None:
        """Take the time of a checkpoint."""
        self._save_seconds = seconds

    def has_rested(self, saved_at: float) -> bool:
        """Whether the last checkpoint, at a time of the clock, is so long ago that another one costs little."""
        has_rested = time.monotonic() - saved_at >= _SAVE_PAUSE * self._save_seconds
        return bool(self._world.broadcast(has_rested))

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {
            "interval": self._interval,
            "total_steps": self._plan.total_steps,
            "seconds": self._seconds + time.monotonic() - self._started,
            "evaluation_seconds": self._evaluation_seconds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from an earlier `state`; its interval counts unless the settings name one or the end is another."""
        if not {"interval", "total_steps", "seconds", "evaluation_seconds"} <= state.keys():  # of before
            return
        if not self._is_given and state["total_steps"] == self._plan.total_steps:
            self._interval = max(1, int(state["interval"]))
        self._seconds, self._evaluation_seconds = state["seconds"], state["evaluation_seconds"]
