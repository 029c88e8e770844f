"""Stopping on request: signals only set a flag, which the training loop reads between two optimizer steps.

SIGTERM, SIGINT and SIGUSR1 (what schedulers send before they take a node away) all ask for a resumable stop. A rank
whose launcher has died asks for one by itself, so that no process is left behind.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.errors import ResumableStop, is_failed_compilation, is_lost_rank
from beit.common.progress import CLEAR_LINE

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHER_PID_VARIABLE = "BEIT_LAUNCHER_PID"
"""Set by `launch.py` for its ranks: the process that must stay alive."""
_PR_SET_PDEATHSIG = 1


class StopFlag:
    """Whether somebody asked this process to stop.

    That the process `parent` is gone is such a request too, or `launcher`, the command that started all ranks of this
    machine; None for a run that may outlive its shell.
    """

    def __init__(self, *, parent: int | None = None, launcher: int | None = None) -> None:
        self._parent, self._launcher = parent, launcher
        self.reason: str | None = None
        """Why; None while nobody has asked."""
        self._under_way: tuple[str, float] | None = None
        self._seconds: dict[str, float] = {}

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; a second Ctrl-C interrupts at once, for somebody who does not want to wait for the save."""
        if signum == signal.SIGINT and self.reason == "SIGINT":
            raise KeyboardInterrupt
        self.reason = signal.Signals(signum).name
        if signum == signal.SIGINT and self._speaks():
            # Not through Python's streams, in which this signal may have found the very same thread.
            os.write(2, f"{CLEAR_LINE if os.isatty(2) else ''}{self.outlook()}\n".encode())

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Remember that `what` is under way, which a stop waits for, and how long it takes."""
        began = time.monotonic()
        outer, self._under_way = self._under_way, (what, began)
        try:
            yield
            self._seconds[what] = time.monotonic() - began
        finally:
            self._under_way = outer

    def outlook(self) -> str:
        """Return what somebody who presses Ctrl-C gets to read: what is waited for, and for how long about."""
        if self._under_way is None:
            return "stopping as soon as what is under way allows; again to stop at once"
        what, began = self._under_way
        about = ""
        if what in self._seconds:
            left = max(1, round(self._seconds[what] - (time.monotonic() - began)))
            about = f" (about {left} s)" if left < 120 else f" (about {left / 60:.0f} min)"
        return f"stopping after {what}{about}; again to stop at once"

    def _speaks(self) -> bool:
        """Of several ranks the first one says it, of a process and those it started this way the former."""
        return os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None

    def is_set(self) -> bool:
        """True once a signal came, or the parent or the launcher is gone."""
        if self.reason is None and self._parent is not None and os.getppid() != self._parent:
            self.reason = "the parent process is gone"
        if self.reason is None and self._launcher is not None and not is_alive(self._launcher):
            self.reason = "the launching command is gone"
        return self.reason is not None


@contextmanager
def resumable_without_others(stop: StopFlag) -> Iterator[None]:
    """Stop in order, too, where the signal reached others first: a rank that left before all could save, a compiler."""
    try:
        yield
    except Exception as error:
        if stop.is_set() and is_lost_rank(error):
            raise ResumableStop(
                f"stopped ({stop.reason}), but another rank left before all could save; run the same command to go on "
                "from the newest checkpoint"
            ) from error
        if stop.is_set() and is_failed_compilation(error):  # a Ctrl-C goes to the C compiler as well
            raise ResumableStop(
                f"stopped ({stop.reason}) while the model was compiled; run the same command to go on"
            ) from error
        raise


_active: StopFlag | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn stop signals into a flag for the duration of the block.

    Nested blocks share one flag, so that a signal during start-up is not lost when the training loop opens its own. In
    a thread other than the main one, where Python allows no handlers, the flag is never set by signals.
    """
    global _active
    if _active is not None:
        yield _active
        return
    launcher = os.environ.get(LAUNCHER_PID_VARIABLE)
    if launcher or os.environ.get("WORLD_SIZE", "1") != "1":
        die_with_parent()
        _active = StopFlag(parent=os.getppid(), launcher=int(launcher) if launcher else None)
    else:
        _active = StopFlag()
    is_main_thread = threading.current_thread() is threading.main_thread()
    try:
        with stop_signals_go_to(_active.handle) if is_main_thread else nullcontext():
            yield _active
    finally:
        _active = None


def stop_reason() -> str | None:
    """Return why this process was asked to stop, for whoever waits where no flag is at hand; None if it was not."""
    return _active.reason if _active is not None and _active.is_set() else None


def under_way(what: str) -> AbstractContextManager[None]:
    """Say what the block does that a stop waits for: "this step"; of use inside `stop_on_signals`."""
    return nullcontext() if _active is None else _active.during(what)


@contextmanager
def stop_signals_go_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` called for stop signals for the duration of the block; of the main thread only."""
    previous = {signum: signal.signal(signum, handler) for signum in STOP_SIGNALS}
    try:
        yield
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)


def die_with_parent() -> None:
    """Ask the kernel to send this process SIGTERM when the process that started it dies (Linux only).

    DeepSpeed's launcher leaves its ranks running when it is killed; nothing else would stop them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine runs."""
    try:
        # A killed process stays as a zombie until somebody asks for its exit code.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
