"""Cores, threads and memory: what this process may use of the machine, and whether torch knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from beit.common.overview.doctor.findings import Finding, fault, warning, well
from beit.common.overview.doctor.machine.device import hardware
from beit.common.overview.doctor.machine.limits import control_groups
from beit.common.processes.cores import available_cores

_ROUNDING = 0.5
"""Of a core that a quota may lack to an even number."""
_LITTLE_MEMORY, _SCANT_MEMORY = 1e9, 4e9
"""Free bytes: torch and DeepSpeed alone take half of the first, the base model in float32 needs the second."""


def check_cores() -> Iterator[Finding]:
    """Do torch's threads fit the cores that this process may use?"""
    cores, quota, all_cores = available_cores(), cpu_quota(), os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    usable = cores if quota is None else min(cores, max(1, round(quota)))
    if threads and (not threads.isdecimal() or threads == "0"):
        yield warning(
            "cores", f"OMP_NUM_THREADS ({threads}) is no number of threads", f"export OMP_NUM_THREADS={usable}"
        )
        return
    if quota is not None and quota < cores - _ROUNDING and (not threads or int(threads) > usable):
        yield warning(
            "cores",
            f"{cores} are seen, but this control group may use {quota:.3g} of them: torch's {threads or cores} threads "
            "would wait for each other",
            f"export OMP_NUM_THREADS={usable}, or give the container more",
        )
        return
    if threads and int(threads) > cores:
        yield warning(
            "cores", f"OMP_NUM_THREADS ({threads}) is more than the {cores} cores", f"export OMP_NUM_THREADS={cores}"
        )
        return
    if threads and int(threads) <= cores // 2 and hardware() is None:
        yield warning(
            "cores", f"OMP_NUM_THREADS ({threads}) leaves most of the {cores} cores idle", "unset OMP_NUM_THREADS"
        )
        return
    bound = f" of the {all_cores} of this machine" if cores < all_cores else ""
    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    yield well("cores", f"{cores}{bound}, {threads or cores} threads{load}")


def cpu_quota() -> float | None:
    """Return how many cores the control groups let this process use at a time; None for no limit."""
    quotas = []
    for folder in control_groups("cpu"):
        quotas += [quota for quota in (_quota_2(folder), _quota_1(folder)) if quota is not None]
    return min(quotas, default=None)


def _quota_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # not there, or "max"
        return None


def _quota_1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None


def check_memory() -> Iterator[Finding]:
    """Is there memory to train with?"""
    import torch

    from beit.common.training.measure import free_memory_bytes

    free = free_memory_bytes(torch.device("cpu"))
    if free is None:
        yield well("memory", "nobody says how much is free")
    elif free < _LITTLE_MEMORY:
        yield fault("memory", f"{free / 1e9:.2g} GB are free: torch and DeepSpeed alone take half of one", _who("mem"))
    elif free < _SCANT_MEMORY:
        yield warning("memory", f"{free / 1e9:.2g} GB are free: enough for small models", _who("mem"))
    else:
        yield well("memory", f"{free / 1e9:.3g} GB are free")


def _who(what: str) -> str:
    return f"ps aux --sort=-%{what} | head, and end what is not needed; or give the container more"
