"""torch and what it computes on; looked at by `probe.py` in a process of its own, since a driver may hang or crash."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from beit.common.errors import RunFailed
from beit.common.forecast.words import in_gb
from beit.common.overview.doctor.child import Child, SlowAnswer, child
from beit.common.overview.doctor.findings import Finding, fault, slow, warning, well

_TIMEOUT_SECONDS = 60.0
"""To import torch and wake the GPUs; arbitrary, a cold disk takes half of it."""
_BUSY = 0.5
"""Share of a GPU's memory that others may have before it is said."""
_NVIDIA, _AMD = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/dev/dxg")), (Path("/dev/kfd"),)
"""What is there where a GPU is; /dev/dxg is Windows' under Linux."""
_AGAIN = shlex.join([sys.executable, "-m", "pip", "install", "--force-reinstall", "torch"])
_TORCH_PAGE = "https://pytorch.org/get-started/locally"


def device_child() -> AbstractContextManager[Child]:
    """Start looking."""
    return child("beit.common.overview.doctor.machine.probe", timeout_seconds=_TIMEOUT_SECONDS)


def is_usable(device: Child) -> bool:
    """Whether torch works here at all; waits for the answer."""
    try:
        device.result()
    except RunFailed:
        return False
    return True


def has_gpu(device: Child) -> bool:
    """Whether torch computes on a GPU here; waits for the answer."""
    return is_usable(device) and bool(device.result()["gpus"])


def hardware() -> str | None:
    """Return whose GPU the system shows, whether or not torch can use it; None for none."""
    for maker, paths in (("NVIDIA", _NVIDIA), ("AMD", _AMD)):
        if any(path.exists() for path in paths):
            return maker
    return None


def check_device(device: Child) -> Iterator[Finding]:
    """Does torch work here, and does it compute on the GPU if there is one?"""
    try:
        found = device.result()
    except SlowAnswer as error:
        yield slow("torch", error, "nvidia-smi, whether a GPU hangs" if hardware() == "NVIDIA" else "")
        return
    except RunFailed as error:
        yield fault("torch", f"it does not work: {error}", f"{_AGAIN} ({_TORCH_PAGE})")
        return
    build = found["cuda"] or found["hip"] or "CPU"
    yield well("torch", f"{found['version']}, built for {build}")
    if not found["gpus"]:
        yield _without_gpu(found)
    for number, gpu in enumerate(found["gpus"]):
        yield _gpu(number, gpu)


def _without_gpu(found: dict[str, Any]) -> Finding:
    maker, hidden = hardware(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and maker is not None and hidden.strip() in ("", "-1"):
        return warning(
            "device", f"CUDA_VISIBLE_DEVICES ({hidden!r}) hides the {maker} GPU here", "unset CUDA_VISIBLE_DEVICES"
        )
    if hidden and maker is not None and found["cuda"]:
        return fault(
            "device", f"CUDA_VISIBLE_DEVICES ({hidden}) names no GPU that is here", "unset CUDA_VISIBLE_DEVICES"
        )
    if maker is not None and not (found["cuda"] or found["hip"]):
        return fault("device", f"a {maker} GPU is here, and this torch is built for CPUs only", f"see {_TORCH_PAGE}")
    if maker is not None:
        reason = found["error"] or "torch sees none"
        return fault("device", f"a {maker} GPU is here that cannot be used: {reason}", "nvidia-smi; update the driver")
    if found["error"] or not found["is_right"]:
        reason = found["error"] or "a product of matrices came out wrong"
        return fault("device", f"the CPU: {reason}", f"{_AGAIN} ({_TORCH_PAGE})")
    return well("device", f"the CPU ({found['capability']}), no GPU: trainings in {found['precision']}")


def _gpu(number: int, gpu: dict[str, Any]) -> Finding:
    topic, name = f"gpu {number}", gpu["name"]
    if gpu["error"] or not gpu["is_right"]:
        reason = gpu["error"] or "a product of matrices came out wrong"
        return fault(topic, f"{name}: {reason}", f"nvidia-smi -i {number}; a torch built for it: {_TORCH_PAGE}")
    room = f"{in_gb(gpu['free'])} of {in_gb(gpu['total'])} are free"
    if gpu["free"] < (1 - _BUSY) * gpu["total"]:
        return warning(topic, f"{name}: other processes are on it, {room}", f"nvidia-smi -i {number}; end them")
    return well(topic, f"{name}: {room}, trainings in {gpu['precision']}")
