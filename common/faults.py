"""Faults on purpose: `BEIT_FAULT=point:n` kills the process, as kill -9 does, at the n-th pass of a named point.

For tests of what a crash leaves behind. Points stand where a crash would hurt: before and after a file gets its final
name (`rename`, `renamed`), and between two samples of a shard (`sample`). Without the variable a point does nothing.
"""

from __future__ import annotations

import os
import signal

from beit.common.errors import InputError

VARIABLE = "BEIT_FAULT"


class _Trap:
    """The point at which to die, and how many passes are left until then."""

    def __init__(self, value: str | None) -> None:
        self.point, _, count = (value or "").partition(":")
        if self.point and not count.isdecimal():
            raise InputError(f"{VARIABLE} ({value}) must have the form point:n")
        self.passes_left = int(count or 0)


_trap = _Trap(os.environ.get(VARIABLE))


def fault_point(name: str) -> None:
    """Die here if the environment says so."""
    if name != _trap.point:
        return
    _trap.passes_left -= 1
    if _trap.passes_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def set_trap(value: str) -> None:
    """Set the trap in this process, as the environment variable does at its start: "point:n", or "" for none."""
    global _trap
    _trap = _Trap(value)
