"""Two ranks that take one step through DeepSpeed and compare their weights; run as a module by `ranks.py`.

    python -m beit.common.overview.doctor.machine.two_ranks

On two GPUs if there are two, else on the CPU. What goes wrong is said on standard error; the last line of standard
output is JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from beit.common.errors import EXIT_DONE, EXIT_FAILED, InputError, ResumableStop, RunFailed
from beit.common.processes.distributed import World, init_distributed
from beit.common.processes.launch import launch_ranks
from beit.common.processes.launcher_env import launched_rank
from beit.common.processes.rank_reports import REPORTS_VARIABLE, capture_output, record_exit
from beit.common.processes.signals import die_with_parent
from beit.common.reading.config import ReaderConfig
from beit.common.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    OptimizerConfig,
    ProfileConfig,
    SpeedConfig,
    TrainConfig,
    TrainingPlan,
    plan_training,
)
from beit.common.training.engine import Engine

_MODULE = "beit.common.overview.doctor.machine.two_ranks"
_RANKS, _WIDTH = 2, 8
_PATIENCE_SECONDS = 60.0
"""Of a rank for the other one."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What a training needs to be told; the weights' moments lie on one rank each."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=1, global_batch_size=_RANKS, precision="fp32", epochs=1)
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=0.1, warmup_steps=0))
    deepspeed: DeepSpeedConfig = field(default_factory=lambda: DeepSpeedConfig(zero_stage=2))
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class _Data:
    plan: TrainingPlan


class _Task:
    """Weights that every rank pulls elsewhere: only together do they come out equal, and as computed by hand."""

    goal = None

    def __init__(self, settings: _Settings, world: World) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(_WIDTH, 1, bias=False)
        plan = plan_training(
            settings.train, settings.optimizer, settings.checkpoint, num_samples=_RANKS, world_size=world.world_size
        )
        self.data = _Data(plan)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.model.parameters()), "weight_decay": 0.0, "lr_scale": 1.0}]

    def forward(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return model(batch["values"]).mean(), {}


def main() -> None:
    """Be the launching process, or, started by it, a rank."""
    die_with_parent()
    if REPORTS_VARIABLE not in os.environ:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        if torch.cuda.device_count() == 1:  # too few for two, and once counted they stay counted
            os.execve(sys.executable, [sys.executable, "-m", _MODULE], {**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        sys.exit(launch_ranks(gpus=_RANKS, argv=[], module=_MODULE))
    capture_output()
    code, message = EXIT_DONE, ""
    try:
        found = _train()
        if not launched_rank():
            print(json.dumps(found), flush=True)
    except (InputError, RunFailed, ResumableStop) as error:
        code, message = EXIT_FAILED, str(error)
    except Exception as error:
        code, message = EXIT_FAILED, " ".join(f"{type(error).__name__}: {error}".split())
    record_exit(code, message)
    sys.stdout.flush()
    os._exit(code)  # not by way of libraries that would wait for a rank that is gone


def _train() -> dict[str, Any]:
    began, settings = time.monotonic(), _Settings()
    world = init_distributed(timeout_seconds=_PATIENCE_SECONDS, meeting_timeout_seconds=_PATIENCE_SECONDS)
    world.shorten_timeouts()
    numbers = world.gather(world.rank)
    if numbers != list(range(_RANKS)):
        raise RunFailed(f"the ranks are {numbers}, not {list(range(_RANKS))}")
    engine = Engine(_Task(settings, world), settings, world=world)  # type: ignore[arg-type]
    (weight,) = engine.model.parameters()
    before = weight.detach().clone()
    engine.set_schedule(lr=0.1, weight_decay_factor=1.0)
    # The sum over the ranks has another sign than that of rank 0.
    values = torch.full((1, _WIDTH), 1.0 if world.rank == 0 else -3.0, device=world.device)
    engine.forward_backward({"values": values}, 0)
    engine.step()
    moved = (weight.detach() - before).sign().flatten().tolist()
    everywhere = world.gather(moved)
    if any(signs != [1.0] * _WIDTH for signs in everywhere):
        raise RunFailed(f"their gradients did not add up: the weights of the ranks moved by {everywhere}")
    is_gpu = world.device.type == "cuda"
    return {
        "device": "the CPU" if not is_gpu else f"GPUs ({torch.cuda.get_device_name(world.device)})",
        "backend": "NCCL and gloo" if is_gpu else "gloo",
        "deepspeed": importlib.metadata.version("deepspeed"),
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    main()
