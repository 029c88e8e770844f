"""The memory of this machine, as far as it is for this process: what there is, and what is free at this moment.

What counts is the least of what the machine, the control groups of the process (containers, batch systems) and its own
limits leave.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

_VERSION_2 = ("memory.max", "memory.current", "")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
"""Files of a control group, and what its statistics put before the names of what holds for all below it."""
_MEMBERSHIPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_machine_bytes() -> int | None:
    """Return what a process may still take; None where nobody knows.

    Files that the kernel keeps in memory count as free, and so does swap: what needs more than this will fail.
    """
    machine = _meminfo(Path("/proc/meminfo"))
    swap = machine.get("SwapFree", 0)
    left = [machine["MemAvailable"] + swap] if "MemAvailable" in machine else []
    left += [room + swap for room in control_group_rooms(_MEMBERSHIPS, _GROUPS)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        left.append(limit - _meminfo(Path("/proc/self/status")).get("VmSize", 0))
    return max(0, min(left)) if left else None


def machine_memory_bytes() -> int | None:
    """Return the memory that there is for a process and all beside it, without swap; None where nobody knows."""
    found = [_meminfo(Path("/proc/meminfo")).get("MemTotal"), *_in_groups(_MEMBERSHIPS, _GROUPS, _limit)]
    return min((limit for limit in found if limit is not None), default=None)


def _meminfo(file: Path) -> dict[str, int]:
    """Read lines such as "MemAvailable: 123 kB", in bytes."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.removesuffix(":"): int(value) * 1024 for name, value, _ in fields}


def control_group_rooms(memberships: Path, root: Path) -> list[int]:
    """Return what each control group that this process is in leaves it, of both versions, in bytes."""
    return [room for room in _in_groups(memberships, root, _room) if room is not None]


def _in_groups(memberships: Path, root: Path, read: Callable[[Path, str, str, str], int | None]) -> list[int | None]:
    """Return what `read` finds in the folder of each control group that this process is in, and of those above."""
    found = []
    try:
        lines = memberships.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, names = (root / "memory", _VERSION_1) if controllers else (root, _VERSION_2)
        # Inside a container the group may be the mount itself, whatever its name outside.
        path = mount / group.strip("/")
        for folder in dict.fromkeys([path, *path.parents]):
            if folder.is_relative_to(mount):
                found.append(read(folder, *names))
    return found


def _limit(folder: Path, limit: str, use: str, prefix: str) -> int | None:
    try:
        return int((folder / limit).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _room(folder: Path, limit: str, use: str, prefix: str) -> int | None:
    try:
        most, used = int((folder / limit).read_text()), int((folder / use).read_text())
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        kept = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return None
    files = sum(kept.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return most - max(0, used - files)
