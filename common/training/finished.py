"""What is said of a training that is started again when nothing of it is left to do."""

from __future__ import annotations

from pathlib import Path

from beit.common.training.config import TrainConfig, TrainingPlan


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
