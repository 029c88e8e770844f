"""How many CPU cores a process may use, alone or beside the other ranks of its machine."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of CPU cores this process may use: those it is bound to, not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_rank(world_size: int) -> int:
    """Return this rank's share of the cores of its machine, at least 1.

    A launcher may have bound each rank to cores of its own, or all of them to the same ones; which of the two cannot be
    told, so it is the smaller of what the rank may use and an equal share of the machine.

    Args:
        world_size: Ranks on all machines; on this one, where the launcher does not say how many are here.
    """
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size)))
    return max(1, min(available_cores(), (os.cpu_count() or 1) // ranks_here))
