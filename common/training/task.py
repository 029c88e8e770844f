"""What a training brings to the shared loop (`trainer.py`), what it is told, and what it gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL.Image import Image
from torch import nn

from beit.common.training.data import Batch, TrainingData
from beit.common.training.judge import BestSoFar, Goal


class Task(Protocol):
    """What one kind of training brings to the loop; everything else is the same for all."""

    @property
    def model(self) -> nn.Module:
        """The module to train, initialised identically on every rank; built when it is first asked for.

        Until then a run whose data are not its own can still be refused for nothing.
        """

    @property
    def data(self) -> TrainingData:
        """The samples to train on, in the order of this run."""

    @property
    def goal(self) -> Goal | None:
        """What evaluations are judged by; None where nothing is measured."""

    def begin(self, run: Path) -> None:
        """Say what is about to happen, once the run's directory may be written to; called on every rank."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups: `params`, `weight_decay`, `lr_scale` (1.0 = the schedule's own rate)."""

    def forward(self, model: nn.Module, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss (scalar, mean over the micro-batch) and detached scalar metrics, without any device sync.

        Called inside autocast when the precision is bf16; the tensors of `batch` are on the device.
        """

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return held-out metrics, the same numbers on every rank; empty when there is nothing to evaluate.

        Called on all ranks, model in eval mode, without gradients, inside autocast. Under ZeRO 3 every rank must run
        the same number of forward passes.
        """

    def save_artifacts(
        self, state: dict[str, torch.Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Rank 0, before each checkpoint is committed: write `directory`/encoder and the like.

        Args:
            state: The model's full state dict, float32, on the CPU; averaged where `train.ema_decay` is set, and of the
                best evaluation where the goal says so.
            directory: The run directory.
            step: Steps completed when these were the weights.
            metrics: Of the latest evaluation, or of the best one; empty before the first.
        """


@runtime_checkable
class DrawsPictures(Protocol):
    """A task that also has something to show."""

    def pictures(self, model: nn.Module, step: int) -> Mapping[str, Image]:
        """Return pictures by name, for RUN/NAME.png and TensorBoard; what ranks other than 0 return is not used.

        Called right after `evaluate` and like it.
        """


@runtime_checkable
class Reports(Protocol):
    """A task that writes a page about its run."""

    def report(self, run: Path, *, is_over: bool) -> None:
        """Write RUN/report.html, on rank 0, after the last save and before the last copy; fails no training.

        A run that is not over was asked to stop, and may have seconds left.
        """


@runtime_checkable
class CountsFlops(Protocol):
    """A task that knows how much arithmetic a sample costs, so that the use of the device can be told."""

    def flops_per_sample(self) -> int:
        """Return multiplications and additions of one sample's forward and backward pass (`beit.common.vit.flops`)."""


@runtime_checkable
class CountsEvaluation(Protocol):
    """A task that knows what its evaluations cost, so that they can be kept from taking over (`rhythm.py`)."""

    def evaluation_images(self) -> float:
        """Return how many images one evaluation looks at, over all ranks, and all else it does as so many images."""


@runtime_checkable
class Remembers(Protocol):
    """A task that judges an evaluation by earlier ones, and so has something to keep beside the weights."""

    def memory(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, JSON-able and small."""

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take what the checkpoint kept, which may be damaged; called before the first step of a resumed run."""


@runtime_checkable
class OverwritesWeights(Protocol):
    """A task that overwrites rows of weights itself, in `forward`; every rank the same, and at ZeRO 0 only."""

    def overwritten_rows(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Return, and forget, what was overwritten since the last call: a parameter (M, ...) and a bool mask (M,)."""


@runtime_checkable
class EndsSteps(Protocol):
    """A task that moves buffers of its model itself, once per optimizer step; at ZeRO 0 only."""

    def end_step(self, skipped: torch.Tensor) -> None:
        """Move them, after the update of the weights, the same on every rank.

        `skipped` is a float scalar on the device, 1 where the step was not finite and so must change nothing.
        """


@runtime_checkable
class NamesQuicker(Protocol):
    """A task that knows what a person with little time could do instead."""

    def quicker(self, flops_per_second: float) -> str | None:
        """Return a way to a shorter run on a device of this speed, in words, with its time; None if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """How a training ended."""

    start_step: int = field(compare=False)
    """Where this process began."""
    step: int
    """Steps attempted, skipped ones included."""
    nonfinite_steps: int
    """Of these, skipped."""
    metrics: dict[str, float]
    """Of the last evaluation."""
    best: BestSoFar
    """The best evaluation."""
