"""How well a training uses its device: the most it could compute, and the memory it has taken."""

from __future__ import annotations

import resource
import sys

import torch

from beit.common.precision import Precision

_PEAK_TFLOPS: dict[str, dict[str, float]] = {
    # Dense, from the data sheets; float32 without TF32, which no training here switches on. The first name that is part
    # of the device's name counts.
    "B200": {"half": 2250.0, "fp32": 75.0},
    "H200": {"half": 989.0, "fp32": 67.0},
    "H100 PCIe": {"half": 756.0, "fp32": 51.0},
    "H100 NVL": {"half": 835.0, "fp32": 60.0},
    "H100": {"half": 989.0, "fp32": 67.0},
    "A100": {"half": 312.0, "fp32": 19.5},
    "A10G": {"half": 70.0, "fp32": 35.0},
    "L40S": {"half": 362.0, "fp32": 91.6},
    "L4": {"half": 121.0, "fp32": 30.3},
    "RTX 4090": {"half": 165.2, "fp32": 82.6},
    "RTX 3090": {"half": 71.0, "fp32": 35.6},
}


def peak_flops(device: torch.device, precision: Precision, given_tflops: float | None) -> float | None:
    """Return the most operations per second the device can do in `precision`; None where nobody knows.

    Args:
        device: Where the training runs.
        precision: Of its matrix products.
        given_tflops: As set by the user, who knows best.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type != "cuda":
        return None
    return known_peak_flops(torch.cuda.get_device_name(device), precision)


def known_peak_flops(name: str, precision: Precision) -> float | None:
    """Return the data sheet's operations per second of a GPU by its name, such as "NVIDIA H100 80GB HBM3"."""
    for part, peaks in _PEAK_TFLOPS.items():
        if part in name:
            return peaks["fp32" if precision == "fp32" else "half"] * 1e12
    return None


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory in use at once since the start: tensors on a GPU, else the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
