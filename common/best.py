"""The best evaluation of a run: which step it was, how long ago, and whether to give up waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from beit.common.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """The metric that a training is after."""

    metric: str
    """Its name in what `Task.evaluate` returns."""
    is_higher_better: bool
    """Direction."""
    keep_best: bool
    """Whether artifacts are made from the weights of the best evaluation instead of the newest ones."""


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
        return {"value": self.value, "step": self.step, "evals_since": self.evals_since, "metrics": self.metrics}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from an earlier `state`."""
        self.value, self.step = state["value"], state["step"]
        self.evals_since, self.metrics = state["evals_since"], dict(state["metrics"])
