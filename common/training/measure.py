"""What a training costs its device: the most it could compute, memory taken and left, and a record of a few steps.

The record is a trace of what ran when, and on a GPU a snapshot of its memory.
"""

from __future__ import annotations

import logging
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from beit.common.processes.distributed import World
from beit.common.training.engine import Precision

logger = logging.getLogger(__name__)
_MAX_MEMORY_EVENTS = 200_000
"""Allocations and releases kept for the snapshot; arbitrary, some steps of a large model."""

_VERSION_2 = ("memory.max", "memory.current", "")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
"""Files of a control group, and what its statistics put before the names of what holds for all below it."""

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


class ProfileWindow:
    """Records the steps of a window, on every rank; does nothing outside of it.

    Args:
        steps: To record.
        folder: Gets steps_FIRST-LAST_rankR.trace.json.gz and, on a GPU, .memory.pickle (pytorch.org/memory_viz).
        world: Says which rank this is.
    """

    def __init__(self, steps: range, folder: Path, world: World) -> None:
        self._steps, self._folder, self._world = steps, folder, world
        self._profile: profile | None = None
        self._first = self._last = 0

    def before(self, step: int) -> None:
        """Start or end the recording, as the step about to be done lies inside the window or not."""
        if self._profile is None and step in self._steps:
            self._start(step)
        elif self._profile is not None and step not in self._steps:
            self.close()
        self._last = step

    def close(self) -> None:
        """End the recording and write what there is."""
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)
        recorded.stop()
        self._folder.mkdir(exist_ok=True)
        stem = self._folder / f"steps_{self._first}-{self._last}_rank{self._world.rank}"
        recorded.export_chrome_trace(f"{stem}.trace.json.gz")
        if self._world.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(f"{stem}.memory.pickle")  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)  # type: ignore[no-untyped-call]
        if self._world.is_main:
            logger.info("profile of steps %d to %d: %s", self._first, self._last, self._folder)

    def _start(self, step: int) -> None:
        self._first = step
        activities = [ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_MAX_MEMORY_EVENTS)  # type: ignore[no-untyped-call]
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()


def peak_flops(device: torch.device, precision: Precision, given_tflops: float | None) -> float | None:
    """Return the most operations per second the device can do in `precision`; None where nobody knows."""
    if given_tflops is not None:  # the user knows best
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


def children_memory_bytes() -> int:
    """Return the memory that only the processes below this one have, such as data workers, at this moment."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # ended a moment ago, or of another user
            total += process.memory_full_info().uss
    return total


def free_memory_bytes(device: torch.device) -> int | None:
    """Return what a training may still take: of the GPU, else of the machine; None where nobody knows.

    On a CPU the least of what the machine, the control groups of this process (containers, batch systems) and its own
    limits leave. Files that the kernel keeps in memory count as free, and so does swap: a training that needs more than
    this will fail.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    machine = _meminfo(Path("/proc/meminfo"))
    swap = machine.get("SwapFree", 0)
    left = [machine["MemAvailable"] + swap] if "MemAvailable" in machine else []
    left += [room + swap for room in _control_group_rooms(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        left.append(limit - _meminfo(Path("/proc/self/status")).get("VmSize", 0))
    return max(0, min(left)) if left else None


def _meminfo(file: Path) -> dict[str, int]:
    """Read lines such as "MemAvailable: 123 kB", in bytes."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith(" kB")]
    return {name.removesuffix(":"): int(value) * 1024 for name, value, _ in fields}


def _control_group_rooms(memberships: Path, root: Path) -> list[int]:
    """Return what each control group that this process is in leaves it, of both versions, in bytes."""
    rooms = []
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
                rooms += _control_group_room(folder, *names)
    return rooms


def _control_group_room(folder: Path, limit: str, use: str, prefix: str) -> list[int]:
    try:
        most, used = int((folder / limit).read_text()), int((folder / use).read_text())
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        kept = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):  # no such file, or "max"
        return []
    files = sum(kept.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))
    return [most - max(0, used - files)]
