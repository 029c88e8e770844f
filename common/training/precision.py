"""Which arithmetic a training uses where the settings leave it open: bfloat16 where hardware has it, else float32.

Matrix products in bfloat16 halve the time of a step on hardware that has them. A CPU without them emulates each one:
40 times slower than float32, measured on an AVX2 machine (docs/results.md).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch

from beit.common.processes.distributed import World

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]

_CPU_FEATURES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names under which torch reports native bfloat16 products on x86 and Arm."""


def has_native_bf16(device: torch.device) -> bool:
    """Say whether matrix products in bfloat16 run in hardware on `device`."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Not in every torch that pyproject.toml allows.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _CPU_FEATURES)


def choose_precision(setting: Literal["auto", "fp32", "bf16", "fp16"], world: World) -> Precision:
    """Return the arithmetic to train in, the same on every rank.

    Args:
        setting: "auto" takes bf16 where all ranks have it in hardware.
        world: The ranks; all of them call this.
    """
    lacking = bool(world.max_of([float(not has_native_bf16(world.device))])[0])
    if setting == "bf16" and lacking and world.is_main:
        logger.warning(
            "train.precision is bf16, which this %s only emulates, many times slower than fp32; use auto or fp32",
            "processor" if world.device.type == "cpu" else world.device.type,
        )
    if setting == "fp16" and world.device.type == "cpu" and world.is_main:
        logger.warning("train.precision is fp16, which is for GPUs; on a CPU it is many times slower than fp32")
    if setting == "auto":
        return "fp32" if lacking else "bf16"
    return setting
