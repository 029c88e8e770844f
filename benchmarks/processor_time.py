"""Seconds of the processor, which say what something costs while others use the machine, too."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.storage.documents import read_json, write_json

_NOTE_SECONDS = 5.0
"""Between two notes of what a command has used so far; arbitrary."""


def processor_seconds() -> float:
    """Return what this process and the children it has waited for have used: user and system, all threads."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + children_seconds()


def children_seconds() -> float:
    """Return what the children that this process has waited for have used, with theirs."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


class ChildMeter:
    """What a command uses, with all that it starts, over every time that it is begun again.

    Args:
        file: Where it is noted, so that a killed script loses no more than the last seconds.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before: float = read_json(file)["seconds"] if file.exists() else 0.0
        self._began, self._noted = children_seconds(), time.monotonic()

    @property
    def seconds(self) -> float:
        """All of it, once the command has ended."""
        return self._before + children_seconds() - self._began

    def __enter__(self) -> Self:
        """Start measuring."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Note what was used, however the command ended."""
        write_json(self._file, {"seconds": self.seconds})

    def note(self) -> None:
        """Note what the command, which is running, has used so far."""
        if time.monotonic() - self._noted < _NOTE_SECONDS:
            return
        self._noted = time.monotonic()
        running = 0.0
        for child in psutil.Process().children(recursive=True):
            try:
                running += sum(child.cpu_times()[:4])  # user and system, its own and of those it has waited for
            except psutil.Error:
                continue  # it has just ended
        write_json(self._file, {"seconds": self.seconds + running})
