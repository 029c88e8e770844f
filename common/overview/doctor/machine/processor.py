"""Cores, threads and memory: what this process may use of the machine, and whether torch knows."""

from __future__ import annotations

import os
from collections.abc import Iterator

from beit.common.forecast.words import in_gb
from beit.common.overview.doctor.findings import Finding, fault, warning, well
from beit.common.overview.doctor.machine.device import hardware
from beit.common.processes.cores import available_cores, cpu_quota
from beit.common.processes.memory import free_machine_bytes

_LITTLE_MEMORY, _SCANT_MEMORY = 1e9, 4e9
"""Free bytes: torch and DeepSpeed alone take half of the first, the base model in float32 needs the second."""


def check_cores() -> Iterator[Finding]:
    """Do torch's threads fit the cores that this process may use?"""
    cores, all_cores = available_cores(), os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if threads and (not threads.isdecimal() or threads == "0"):
        yield warning(
            "cores", f"OMP_NUM_THREADS ({threads}) is no number of threads", f"export OMP_NUM_THREADS={cores}"
        )
        return
    if threads and int(threads) > cores:
        yield warning(
            "cores",
            f"OMP_NUM_THREADS ({threads}) is more than the {cores} cores{_by_quota(cores)}: the threads would wait for "
            "each other",
            f"export OMP_NUM_THREADS={cores}",
        )
        return
    if threads and int(threads) <= cores // 2 and hardware() is None:
        yield warning(
            "cores",
            f"OMP_NUM_THREADS ({threads}) has torch use {threads} of the {cores} cores",
            "unset OMP_NUM_THREADS",
        )
        return
    bound = f" of the {all_cores} of this machine{_by_quota(cores)}" if cores < all_cores else ""
    load = f"; load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    yield well("cores", f"{cores}{bound}, {threads or cores} threads{load}")


def _by_quota(cores: int) -> str:
    quota = cpu_quota()
    return f" (its control group may use {quota:.3g})" if quota is not None and round(quota) <= cores else ""


def check_memory() -> Iterator[Finding]:
    """Is there memory to train with?"""
    free = free_machine_bytes()
    if free is None:
        yield well("memory", "nobody says how much is free")
    elif free < _LITTLE_MEMORY:
        yield fault("memory", f"{in_gb(free)} are free: torch and DeepSpeed alone take half of one", _who("mem"))
    elif free < _SCANT_MEMORY:
        yield warning("memory", f"{in_gb(free)} are free: enough for small models", _who("mem"))
    else:
        yield well("memory", f"{in_gb(free)} are free")


def _who(what: str) -> str:
    return f"ps aux --sort=-%{what} | head, and end what is not needed; or give the container more"
