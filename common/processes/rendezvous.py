"""Where ranks find each other: a store that all of them reach, entered one by one, so that who is missing has a number.

torch would wait in one call, without a word and deaf to signals.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from datetime import timedelta

from torch.distributed import DistNetworkError, Store, TCPStore  # type: ignore[attr-defined]

from beit.common.errors import InputError, ResumableStop
from beit.common.processes.launcher_env import find_launcher
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE, stop_reason

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SILENT_SECONDS, _SILENT_SECONDS_OF_OURS = 2.0, 20.0
"""Wait without a word: where anybody says there are ranks, and where this package itself has started them."""
_ANSWER_SECONDS = 60.0
"""For one answer of the store, once its host listens."""
_NAMED = 8


def meet(*, rank: int, world_size: int, address: str, port: int, timeout_seconds: float) -> Store:
    """Return the store of all ranks, once all are there.

    Raises:
        InputError: not all came in time, or another program listens where they are to meet.
        ResumableStop: asked to stop while waiting.
    """
    waiting = _Waiting(rank, world_size, f"port {port} of {address}", timeout_seconds)
    # The launching command, or torchrun, may hold the store already, and says so as torch wants to hear it.
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if rank == 0 and not is_served:
        store = _serve(address, port)
    else:
        while not _listens(address, port):
            waiting.pause([0])
        store = TCPStore(address, port, timeout=timedelta(seconds=_ANSWER_SECONDS), wait_for_workers=False)
    # What torchrun starts anew after a failure meets in the same store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = [f"beit/{attempt}/rank {number} is here" for number in range(world_size)]
    store.set(keys[rank], "")
    while not store.check(keys):
        waiting.pause([number for number, key in enumerate(keys) if not store.check([key])])
    return store


def _serve(address: str, port: int) -> TCPStore:
    timeout = timedelta(seconds=_ANSWER_SECONDS)
    try:
        return TCPStore(address, port, is_master=True, timeout=timeout, wait_for_workers=False)
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(
            f"port {port} of {address}, where the ranks are to meet, is taken by another program; choose another "
            "(environment variable MASTER_PORT, or --master_port of the deepspeed and torchrun launchers)"
        ) from None


def _listens(address: str, port: int) -> bool:
    # Asked here first: torch writes pages about a host that does not listen yet, or whose name is not known yet.
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except OSError:
        return False
    return True


class _Waiting:
    """One wait of one rank: says what for, heeds signals, and ends."""

    def __init__(self, rank: int, world_size: int, where: str, timeout_seconds: float) -> None:
        self._me, self._where = f"rank {rank} of {world_size}", where
        self._limit, self._began, self._is_told = timeout_seconds, time.monotonic(), False

    def pause(self, missing: list[int]) -> None:
        """Wait a moment for ranks that are missing."""
        waited = time.monotonic() - self._began
        whom = f"{_listed(missing)} at {self._where}"
        if reason := stop_reason():
            raise ResumableStop(f"stopped ({reason}) while {self._me} waited for {whom}; nothing was begun")
        if waited > self._limit:
            raise InputError(
                f"{self._me} waited {self._limit:g} s for {whom} (train.meeting_timeout_seconds); {_way_out()}"
            )
        silent = _SILENT_SECONDS_OF_OURS if LAUNCHER_PID_VARIABLE in os.environ else _SILENT_SECONDS
        if waited > min(silent, self._limit / 2) and not self._is_told:
            self._is_told = True
            # A warning, because only those of the first rank are shown that are less.
            logger.warning("%s waits up to %g s for %s (%s say so)", self._me, self._limit, whom, _who_says_so())
        time.sleep(_POLL_SECONDS)


def _listed(ranks: list[int]) -> str:
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:_NAMED]))}{more}"


def _who_says_so() -> str:
    launcher = find_launcher()
    return launcher.variables if launcher else "its settings"


def _way_out() -> str:
    launcher = find_launcher()
    if LAUNCHER_PID_VARIABLE in os.environ or launcher is None:
        return "look at what the others say, and whether their machines can reach this address"
    return (
        f"have the launcher start all of them, or, if this is a shell and not one of several ranks, unset "
        f"{launcher.rank} and {launcher.world_size}"
    )
