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

from beit.common.forecast.hardware import Precision, known_peak_flops
from beit.common.processes.distributed import World
from beit.common.processes.memory import free_machine_bytes

logger = logging.getLogger(__name__)
_MAX_MEMORY_EVENTS = 200_000
"""Allocations and releases kept for the snapshot; arbitrary, some steps of a large model."""


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
    """Return what a training may still take: of the GPU, else of the machine; None where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_machine_bytes()
