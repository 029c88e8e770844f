"""The CPU cores and the memory of a process: how many it may use, how its threads wait, and that freed memory stays.

glibc returns every large block to the system when it is freed and asks for it anew a moment later; the kernel then
fills it with zeros, page by page. On a GPU torch has a cache of its own against that, on a CPU it has none.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from beit.common.processes.control_groups import control_groups

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # mallopt(3)
_OF_THE_USER = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
_HOW_TO_WAIT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_LOOKS = 2000
"""Of a waiting thread before it sleeps, some microseconds: the others are mostly done by then, or kept from a core."""


def available_cores() -> int:
    """Return the number of CPU cores this process may use: those it is bound to, and no more than its quota's worth."""
    return min(_bound_cores(), _cores_of_quota())


def cpu_quota() -> float | None:
    """Return how many cores' time the control groups let this process use; None for no limit."""
    quotas = [(_quota_1 if version == 1 else _quota_2)(folder) for folder, version in control_groups("cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def cores_per_rank(world_size: int) -> int:
    """Return this rank's share of the cores of its machine, at least 1.

    A launcher may have bound each rank to cores of its own, or all of them to the same ones; which of the two cannot be
    told, so it is the smaller of what the rank may use and an equal share of the machine, or of what a quota leaves of
    it.

    Args:
        world_size: Ranks on all machines; on this one, where the launcher does not say how many are here.
    """
    of_all = min(os.cpu_count() or 1, _cores_of_quota())
    return max(1, min(_bound_cores(), of_all // ranks_here(world_size)))


def _bound_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores_of_quota() -> int:
    quota = cpu_quota()
    return sys.maxsize if quota is None else max(1, round(quota))


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


def ranks_here(world_size: int) -> int:
    """Return how many of the ranks are on this machine: what the launcher says, or all."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size)))


def sleep_while_waiting() -> None:
    """Have torch's threads soon sleep where they wait for each other, instead of spinning on cores others could use.

    To be called before torch is loaded, whose OpenMP library reads this once; whoever set one of its variables is
    heeded. A thread that spins for one that a browser or a data worker keeps from its core burns the time that one
    lacks; one that sleeps at once is woken late, a thousand times in a step. So it looks for a while, and then sleeps
    (docs/results.md).
    """
    if not any(name in os.environ for name in _HOW_TO_WAIT):
        os.environ["OMP_WAIT_POLICY"] = "passive"  # for libraries that do not know the other
        os.environ["GOMP_SPINCOUNT"] = str(_LOOKS)


def keep_freed_memory() -> bool:
    """Have the C library reuse what was freed instead of returning it; to be called before computing on a CPU.

    The kernel took 37 % of the time of DALL-E's first layers, 2 to 7 % of a small training step (docs/results.md).
    Cost: the process keeps the most it ever needed.

    Returns:
        Whether it does so now. Not where the C library is not glibc, or where the user's environment has a say in
        allocation: MALLOC_*, GLIBC_TUNABLES, or another allocator by LD_PRELOAD.
    """
    if any(name.startswith(_OF_THE_USER) for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - another C library may have a mallopt that means something else
        return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, -1))
    except (OSError, TypeError, AttributeError):
        return False


def return_freed_memory() -> None:
    """Give what was freed back to the system, once, where one part of a command ends and another begins.

    Their blocks differ in size, so that those of one part seldom fit into the gaps that the other has left: without
    this the process keeps the most of both, not of the larger one (docs/decisions.md). Costs milliseconds.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - as above
        library.malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        return
