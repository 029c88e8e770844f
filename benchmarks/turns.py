"""Timing contestants in turns, so that a busy machine slows all of them and ratios stay what they are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

LOOP = "whole loop"
Turn = Callable[[], int]
"""Does one turn's work and returns how many images (or whatever is counted) that was."""


class Turns:
    """Rates of contestants that take turns.

    Args:
        contestants: By name.
        device: Waited for at the end of each turn.
    """

    def __init__(self, contestants: Mapping[str, Turn], device: torch.device) -> None:
        self._contestants, self._device = dict(contestants), device
        self.rates: dict[str, list[float]] = {name: [] for name in contestants}
        """Per contestant, images per second of each turn."""

    def round(self, *, is_warm_up: bool = False) -> None:
        """Let each contestant have a turn; a warm-up is not counted."""
        for name, turn in self._contestants.items():
            started = time.perf_counter()
            count = turn()
            wait_for(self._device)
            if not is_warm_up:
                self.rates[name].append(count / (time.perf_counter() - started))

    def add(self, name: str, rate: float) -> None:
        """Note a rate measured elsewhere during this round."""
        self.rates.setdefault(name, []).append(rate)

    def medians(self) -> dict[str, float]:
        """Return the median rate of each contestant."""
        return {name: statistics.median(rates) for name, rates in self.rates.items() if rates}

    def ratio(self, name: str, standard: str) -> float:
        """Return the median over rounds of one contestant's rate relative to another's in the same round."""
        pairs = zip(self.rates[name], self.rates[standard], strict=True)
        return statistics.median(rate / other for rate, other in pairs)

    def ratio_to_least(self, name: str, standards: list[str]) -> float:
        """Return the median over rounds of a contestant's rate relative to the lowest of some others'."""
        columns = zip(self.rates[name], *(self.rates[standard] for standard in standards), strict=True)
        return statistics.median(rate / min(others) for rate, *others in columns)


class LoopTurns:
    """Comes before a training's task in the bases of a class: its steps stop now and then, and others have their turns.

    The reader works on during the others' turns, until its queue is full; the steps that empty the queue are not timed.
    """

    world: Any
    data: Any

    def take_turns(self, turns: Turns, *, steps: int, settle: int, rounds: int) -> None:
        """Set how many steps a turn has, how many before it are not timed, and how many rounds there are."""
        self._turns, self._steps, self._settle, self._rounds = turns, steps, settle, rounds
        self._started = 0.0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run: every turn, and one more whose beginning ends the last of them."""
        return self._rounds * (self._settle + self._steps) + 1

    def forward(self, model: Any, batch: Mapping[str, Any], step: int) -> Any:
        """Do a step, after the others' turns where it is time for them."""
        place = step % (self._settle + self._steps)
        if place == 0:
            self._others(step)
        if place == self._settle:
            wait_for(self.world.device)
            self._started = time.perf_counter()
        return super().forward(model, batch, step)  # type: ignore[misc]

    def _others(self, step: int) -> None:
        wait_for(self.world.device)
        if step:
            images = self._steps * self.data.plan.global_batch_size
            self._turns.add(LOOP, images / (time.perf_counter() - self._started))
        if step < self.total_steps - 1:
            self._turns.round()


def wait_for(device: torch.device) -> None:
    """Return when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: torch.device, dtype: torch.dtype) -> Turn:
    """Return a turn of large matrix products, whose rate in operations per second is what the machine can do."""
    side, repeats = (1024, 5) if device.type == "cpu" else (8192, 20)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def turn() -> int:
        for _ in range(repeats):
            left @ right
        return repeats * 2 * side**3

    return turn
