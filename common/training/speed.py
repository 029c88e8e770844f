"""Ways to run a given vision transformer: compiled, or with activations computed twice instead of kept."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from beit.common.errors import require
from beit.common.training.config import SpeedConfig, TrainingConfig
from beit.common.training.engine_settings import check_partition, zero_stage
from beit.common.vit.vit import VisionTransformer


def missing_compiler(device: torch.device) -> str | None:
    """Return what `torch.compile` lacks on this machine for `device`, in words; None if it lacks nothing."""
    names = ("cc", "gcc", "clang") if device.type == "cuda" else ("g++", "clang++")
    variable = "CC" if device.type == "cuda" else "CXX"
    lacking = [] if os.environ.get(variable) or any(map(shutil.which, names)) else ["a C compiler"]
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        lacking.append("triton")
    return " and ".join(lacking) or None


def check_speed(config: SpeedConfig, *, device: torch.device | None, zero_stage: int) -> None:
    """Refuse what cannot be done with these partitions, or on this device; None where another machine will train."""
    if not config.compile:
        return
    require(
        zero_stage < 3,
        "speed.compile has no use with deepspeed.zero_stage = 3, whose hooks put the weights together between the "
        "layers; leave one out",
    )
    lacking = None if device is None else missing_compiler(device)
    require(lacking is None, f"speed.compile needs {lacking} on this machine; install it or leave speed.compile out")


def check_partitions(config: TrainingConfig) -> None:
    """Refuse, before anything is built and wherever it will be, what does not go with partitions of the weights."""
    stage = zero_stage(config)
    check_partition(config.optimizer, zero_stage=stage)
    check_speed(config.speed, device=None, zero_stage=stage)


def apply_speed(model: nn.Module, config: SpeedConfig, *, device: torch.device, zero_stage: int) -> None:
    """Make a vision transformer with whatever head, not yet wrapped, run as the settings say.

    Its parameters and their names stay as they are.
    """
    check_speed(config, device=device, zero_stage=zero_stage)
    if config.activation_checkpointing:
        for module in model.modules():
            if isinstance(module, VisionTransformer):
                module.recompute_blocks = True
    if config.compile:
        model.compile()  # in place: no wrapper, so no other names in the state dict
