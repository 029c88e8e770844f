"""The control groups that hold this process: what containers and batch systems limit it by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

_MEMBERSHIPS, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(
    controller: str, memberships: Path = _MEMBERSHIPS, root: Path = _ROOT
) -> Iterator[tuple[Path, Literal[1, 2]]]:
    """Yield folder and version of each control group that this process is in, and of those above, innermost first.

    Args:
        controller: "memory", "cpu" or "pids".
        memberships: What the kernel says of the groups of this process.
        root: Where their folders are.
    """
    try:
        lines = memberships.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / controller if controllers else root
        # Inside a container the group may be the mount itself, whatever its name outside.
        path = mount / group.strip("/")
        for folder in dict.fromkeys([path, *path.parents]):
            if folder.is_relative_to(mount):
                yield folder, 1 if controllers else 2
