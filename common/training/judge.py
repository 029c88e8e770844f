"""What is thought of a run as it goes: which evaluation was the best, and how many steps were not finite.

Both may end it: an evaluation that has not improved for long, or too many steps without a finite loss. That a step that
is not finite changes nothing is `optimizer.py`'s work; here they are counted and remembered.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from beit.common.errors import InputError, RunFailed

logger = logging.getLogger(__name__)
MAX_IN_A_ROW = 3
MAX_IN_WINDOW = 10
WINDOW_STEPS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The metric that a training is after."""

    metric: str
    """Its name in what `Task.evaluate` returns."""
    is_higher_better: bool
    """Direction."""
    keep_best: bool
    """Whether artifacts are made from the weights of the best evaluation instead of the newest ones."""
    is_chosen_by_saves: bool = False
    """Whether the task chooses among the models that are saved, so that one is saved whenever it was measured."""
    measured_on: str | None = None
    """Identity of what is measured on, where that may change while a run goes on."""


@dataclass(kw_only=True, slots=True)
class BestSoFar:
    """The best evaluation so far; goes into every checkpoint, so that a resumed run judges as if never interrupted."""

    goal: Goal | None
    """None where nothing is measured."""
    patience: int | None
    """Evaluations without improvement after which a run ends; None never ends it."""
    value: float | None = None
    """Of the metric."""
    step: int = -1
    """Steps completed then."""
    evals_since: int = 0
    """Evaluations since that did not improve on it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All that was measured then."""

    def __post_init__(self) -> None:
        """Refuse to wait for what never comes."""
        if self.patience is not None and self.goal is None:
            raise InputError(
                f"train.early_stop_evals ({self.patience}) needs evaluations, and this run has none; leave it out, or "
                "give images to evaluate on"
            )

    def note(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take one evaluation; returns whether it is the best so far. One that measured nothing does not count."""
        if self.goal is None or not metrics:
            return False
        value = metrics[self.goal.metric]
        if math.isfinite(value) and (self.value is None or self._is_better(value)):
            self.value, self.step, self.evals_since, self.metrics = value, step, 0, dict(metrics)
            return True
        self.evals_since += 1
        return False

    def _is_better(self, value: float) -> bool:
        assert self.goal is not None and self.value is not None
        return value > self.value if self.goal.is_higher_better else value < self.value

    @property
    def is_exhausted(self) -> bool:
        """Whether it is time to end the run."""
        return self.patience is not None and self.evals_since >= self.patience

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint records."""
        state = {"value": self.value, "step": self.step, "evals_since": self.evals_since, "metrics": self.metrics}
        measured_on = self.goal.measured_on if self.goal is not None else None
        return state | ({} if measured_on is None else {"measured_on": measured_on})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from an earlier `state`; what was measured on other images is forgotten."""
        measured_on = self.goal.measured_on if self.goal is not None else None
        if measured_on is not None and state.get("measured_on") not in (None, measured_on):
            logger.info("the best evaluation so far was on other images; the best of those to come counts")
            return
        self.value, self.step = state["value"], state["step"]
        self.evals_since, self.metrics = state["evals_since"], dict(state["metrics"])


class Diverged(RunFailed):
    """Too many steps were not finite; the last checkpoint is still good."""


class NonFiniteGuard:
    """Counts non-finite steps and stops the run beyond the limits (more than 3 in a row, or 10 in 1000 steps).

    Args:
        path: File that gets one JSON line per such step; None on ranks that write nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._recent: list[int] = []
        self.total = 0
        """Since the start of the run, over resumes."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"total": self.total, "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.total, self._recent = state["total"], list(state["recent"])

    def note(self, step: int, sample_ids: list[list[str]], *, is_overflow: bool = False) -> None:
        """Record that `step` was skipped.

        Args:
            step: Counted from 0.
            sample_ids: Of the batch, per rank.
            is_overflow: Its gradients left the range of float16, and the loss scale was lowered: part of finding that
                scale, so counted, but neither recorded nor limited.
        Raises:
            Diverged: beyond a limit.
        """
        self.total += 1
        if is_overflow:
            return
        self._recent = [earlier for earlier in self._recent if earlier > step - WINDOW_STEPS] + [step]
        if self._path is not None:
            logger.warning("step %d was skipped: its loss or gradients are not finite (%d so far)", step, self.total)
            self._record(step, sample_ids)
        self._require_within_limits(step)

    def _record(self, step: int, sample_ids: list[list[str]]) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "sample_ids": sample_ids}) + "\n")
        except OSError as error:  # a full disk; not worth a training
            logger.warning("the samples of step %d were not recorded (%s)", step, error)

    def _require_within_limits(self, step: int) -> None:
        limit = limit_passed(self._recent)
        if limit is not None:
            raise Diverged(
                f"stopped at step {step}: more than {limit.most} steps {limit.among} were not finite; their "
                "samples are listed in nonfinite.jsonl of the run; lower optimizer.lr and resume from the last "
                "checkpoint"
            )


class Limit(NamedTuple):
    """How many steps that are not finite a run endures."""

    most: int
    """Of them."""
    among: str
    """Of what, as "in a row"."""


def limit_passed(skipped: Sequence[int]) -> Limit | None:
    """Return the limit that the last skipped steps pass; None where they pass none.

    Args:
        skipped: Steps that were not finite, ascending.
    """
    last = skipped[-MAX_IN_A_ROW - 1 :]
    if len(last) > MAX_IN_A_ROW and last[-1] - last[0] == MAX_IN_A_ROW:
        return Limit(MAX_IN_A_ROW, "in a row")
    recent = [step for step in skipped if step > last[-1] - WINDOW_STEPS]
    return Limit(MAX_IN_WINDOW, f"in {WINDOW_STEPS}") if len(recent) > MAX_IN_WINDOW else None
