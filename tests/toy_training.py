"""A training of seconds on made-up numbers, through the real loop; run as a module by the launch tests.

Usage: python -m beit.tests.toy_training RUN [key=value ...], keys of `ToyConfig`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from beit.common.config import load_config
from beit.common.errors import InputError, ResumableStop
from beit.common.processes.distributed import World
from beit.common.processes.launch import launch_ranks
from beit.common.processes.launcher_env import is_to_start_ranks
from beit.common.processes.rank_reports import capture_output, record_exit
from beit.common.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    OptimizerConfig,
    ProfileConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
    TrainingPlan,
    plan_training,
)
from beit.common.training.judge import Goal
from beit.common.training.task import FitResult
from beit.common.training.trainer import train

MODULE = "beit.tests.toy_training"
WIDTH = 6


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    speed: SpeedConfig = SpeedConfig()
    profile: ProfileConfig = ProfileConfig()
    run: RunConfig = RunConfig()
    gpus: int = 0
    hostfile: str = ""
    show_variables: tuple[str, ...] = ()
    """Environment variables that every rank prints."""
    num_samples: int = 40
    bad_steps: tuple[int, ...] = ()
    bad_rank: int = 0
    """Of the rank whose gradients are made non-finite at `bad_steps`."""
    stop_at: int = -1
    """Step at which `stop_rank` sends itself SIGTERM."""
    stop_rank: int = 0
    hang_at: int = -1
    """Step at which rank 1 stops answering."""
    kill_at: int = -1
    """Step at which rank 1 kills itself."""
    signal_in_save: int = -1
    """Step whose save is interrupted by SIGUSR1, on rank 0."""
    hidden: int = 16
    batch_norm: bool = False
    input_error: str = ""
    """Raised where the data are opened, on every rank."""
    step_seconds: float = 0.0
    worse_from: int = -1
    """Step from which evaluations get worse and worse."""
    keep_best: bool = False
    """Whether artifacts are the best evaluation's."""


class ToyModel(nn.Module):
    """Two layers with dropout, a buffer, and one parameter that is frozen; on request with a norm between them."""

    def __init__(self, hidden: int = 16, batch_norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, hidden)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.drop = nn.Dropout(0.2)
        self.second = nn.Linear(hidden, WIDTH)
        self.frozen = nn.Parameter(torch.ones(WIDTH), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return self.second(self.drop(torch.relu(self.norm(self.first(values))))) * self.frozen


class ToyData:
    rows_together = 1
    is_joint = False

    def __init__(self, config: ToyConfig, plan: TrainingPlan, world: World) -> None:
        self.config, self.plan, self.world = config, plan, world

    def micro_batches(self, start_step: int) -> Iterator[dict[str, Any]]:
        if self.config.input_error:
            raise InputError(self.config.input_error)
        for step in range(start_step, self.plan.total_steps):
            self._misbehave(step)
            values = torch.randn(self.plan.global_batch_size, WIDTH, generator=torch.Generator().manual_seed(step))
            share = values.chunk(self.world.world_size)[self.world.rank]
            for number, piece in enumerate(share.split(self.plan.micro_batch_size)):
                yield {"values": piece, "sample_ids": [f"{step}/{self.world.rank}/{number}"]}

    def use_micro_batches_of(self, size: int) -> None:
        share = self.plan.global_batch_size // self.world.world_size
        self.plan = replace(self.plan, micro_batch_size=size, grad_accum_steps=share // size)

    def state(self, step: int) -> dict[str, Any]:
        return {"samples_consumed": step * self.plan.global_batch_size, "num_samples": self.config.num_samples}

    def check_resume(self, saved: Mapping[str, Any], *, allow_data_change: bool, changed: Collection[str]) -> None:
        if saved["num_samples"] != self.config.num_samples:
            raise InputError(f"num_samples was {saved['num_samples']}, is {self.config.num_samples}")

    def _misbehave(self, step: int) -> None:
        time.sleep(self.config.step_seconds)
        if step == self.config.stop_at and self.world.rank == self.config.stop_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == self.config.kill_at and self.world.rank == 1:
            print("a last word", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.config.hang_at and self.world.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)


class ToyTask:
    def __init__(self, config: ToyConfig, plan: TrainingPlan, world: World) -> None:
        self.config, self.world = config, world
        self.data = ToyData(config, plan, world)
        torch.manual_seed(config.train.seed)
        self.model = ToyModel(config.hidden, config.batch_norm)
        self.evaluated: list[int] = []
        self.lrs: list[float] = []

    @property
    def goal(self) -> Goal:
        return Goal(metric="val_loss", is_higher_better=False, keep_best=self.config.keep_best)

    def begin(self, run: Path) -> None:
        pass

    def param_groups(self) -> list[dict[str, Any]]:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim == 1]
        return [
            {"params": matrices, "weight_decay": 0.05, "lr_scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "lr_scale": 0.5},
        ]

    def forward(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        output = model(batch["values"])
        if step in self.config.bad_steps and self.world.rank == self.config.bad_rank:
            output.register_hook(lambda gradient: gradient * float("nan"))
        loss = (output - batch["values"].roll(1, dims=1)).pow(2).mean()
        return loss, {"mean_output": output.detach().mean()}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        self.evaluated.append(step)
        torch.rand(3)  # must not disturb training
        values = torch.ones(2, WIDTH)
        loss = (model(values) - values).pow(2).mean()
        # Made to get worse, to be stopped early; else as it is.
        worse = 100.0 * step if 0 <= self.config.worse_from <= step else 0.0
        return {"val_loss": float(loss) + worse}

    def save_artifacts(
        self, state: dict[str, torch.Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        if step == self.config.signal_in_save:
            os.kill(os.getpid(), signal.SIGUSR1)
        (directory / "encoder").mkdir(exist_ok=True)
        save_file(state, directory / "encoder" / "model.safetensors")


MISBEHAVIOUR = (
    "bad_steps",
    "bad_rank",
    "gpus",
    "hostfile",
    "show_variables",
    "stop_at",
    "stop_rank",
    "kill_at",
    "hang_at",
    "signal_in_save",
)

TOY = (
    "train.steps=8",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.log_interval_steps=1",
    "train.precision=fp32",
    "optimizer.lr=1e-2",
    "optimizer.warmup_steps=2",
    "optimizer.clip_grad=1.0",
    "checkpoint.interval_steps=3",
)


def toy_config(*overrides: str) -> ToyConfig:
    return load_config(ToyConfig, recipe=None, overrides=[*TOY, *overrides], recipe_dir=Path())


def train_toy(run_path: Path, config: ToyConfig, *, resume: str = "auto") -> tuple[FitResult, ToyTask]:
    def build(world: World) -> ToyTask:
        plan = plan_training(
            config.train,
            config.optimizer,
            config.checkpoint,
            num_samples=config.num_samples,
            world_size=world.world_size,
        )
        return ToyTask(config, plan, world)

    task, result = train(config, build, run_dir=run_path, resume=resume, free_keys=MISBEHAVIOUR)
    return result, task


def main() -> int:
    capture_output()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_path, *overrides = sys.argv[1:]
    config = toy_config(*overrides)
    if is_to_start_ranks(config.gpus, config.hostfile):
        return launch_ranks(gpus=config.gpus or None, hostfile=config.hostfile or None, module=MODULE)
    for name in config.show_variables:
        print(f"{name}={os.environ.get(name)!r}", flush=True)
    try:
        train_toy(Path(run_path), config)
        code, message = 0, ""
    except InputError as error:
        code, message = 2, str(error)
    except ResumableStop as stop:
        code, message = 75, str(stop)
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error}"
    message = record_exit(code, message)
    if message:
        sys.stderr.write(f"beit: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
