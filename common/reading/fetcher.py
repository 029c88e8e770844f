"""The consumer's wait for its data workers: it ends, whatever they do, and hears signals all the while.

A worker that is stopped or frozen leaves whoever receives from it in a call without a limit: of a tensor, torch's queue
holds a number only, and asks the worker for the memory behind it. So another thread receives, and is left behind if it
must be.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import multiprocessing.connection
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with deepspeed
import torch

from beit.common.errors import ResumableStop, RunFailed
from beit.common.processes.shared_memory import name_full_memory, name_lost_memory, name_shortage
from beit.common.processes.signals import stop_reason
from beit.common.processes.worker_process import StatusBoard, end_workers
from beit.common.reading.config import ReaderConfig
from beit.common.storage.threads import Threads

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""A dead worker is noticed after this time at most; arbitrary. Torch looks for dead workers only when a wait times
out."""
_TURN_SECONDS = 0.2
"""Between two looks at the signals and the clock."""
_TOLD_AFTER_SECONDS = 60.0
"""Wait for one micro-batch without a word."""
_START_SECONDS = 60.0
"""For workers to start, at least: on a busy machine that takes longer than any micro-batch."""
_FEEDER = "QueueFeederThread"
"""As Python calls the threads that fill queues."""
_END_SECONDS = 15.0
"""For torch to end its workers, which takes it up to twice five seconds each where one does not answer."""


class StoppedWaiting(ResumableStop):
    """Asked to stop while a worker owed a micro-batch, which it may never send; `what` leaves out what to do next."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; run the same command to go on")
        self.what = what


class Fetcher:
    """Data workers and the micro-batches they send, in order.

    Args:
        start: Starts the workers and returns an iterator over what they send; called in another thread.
        num_workers: How many it starts.
        board: Where workers note their sample.
        config: Timeout.
        patience_seconds: How long to wait for a micro-batch once somebody has asked to stop.
    """

    def __init__(
        self,
        start: Callable[[], Iterator[Any]],
        *,
        num_workers: int,
        board: StatusBoard | None,
        config: ReaderConfig,
        patience_seconds: float,
    ) -> None:
        self._start, self._num_workers, self._board = start, num_workers, board
        self._timeout_seconds, self._patience_seconds = config.timeout_seconds, patience_seconds
        self._thread = Threads(1, name="beit-batches")
        self._batches: Iterator[Any] | None = None
        self._workers: list[BaseProcess] = []
        self._feeders: list[threading.Thread] = []
        """Of the queues to the workers."""
        self._stop_seen: float | None = None
        self._is_told = False
        # A thread begins with the first GPU.
        is_on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        device = torch.cuda.current_device() if is_on_gpu else None
        self._opening: Future[None] | None = self._thread.submit(self._open, device)

    def next(self, index: int) -> Any:
        """Return micro-batch `index`, the one after the last.

        Raises:
            RunFailed: a worker died or hung; the message names it and its last sample.
            StoppedWaiting: asked to stop, and it did not come.
        """
        owner, began = index % self._num_workers, time.monotonic()
        if self._opening is not None:
            while not self._is_done(self._opening, owner, began):
                pass
            self._opening.result()
            self._opening, began = None, time.monotonic()
        while True:
            assert self._batches is not None
            future = self._thread.submit(partial(next, self._batches))
            while not self._is_done(future, owner, began):
                pass
            try:
                return future.result()
            except (RuntimeError, OSError, EOFError) as error:
                self._judge(error, owner)

    def close(self, *, is_finished: bool) -> None:
        """End the workers; those that have not `finished`, at once."""
        if not is_finished:
            # They ignore SIGTERM, and what they prepare is no longer wanted.
            end_workers(self._workers)
        with suppress(TimeoutError):
            self._thread.submit(self._release).exception(_END_SECONDS)
        end_workers(self._workers)
        self._thread.close(seconds=0)

    def _open(self, device: int | None) -> None:
        if device is not None:
            torch.cuda.set_device(device)
        before, threads = set(multiprocessing.active_children()), set(threading.enumerate())
        try:
            self._batches = self._start()
        except OSError as error:
            shortage = name_full_memory() if error.errno == errno.ENOSPC else name_shortage(error)
            raise RunFailed(shortage) if shortage else error from error
        finally:
            self._workers = sorted(set(multiprocessing.active_children()) - before, key=_start_number)
            self._feeders = [one for one in set(threading.enumerate()) - threads if one.name == _FEEDER]

    def _release(self) -> None:
        self._batches = None  # torch ends its workers when nobody holds the iterator any more
        # Who lets go of a queue's semaphores last removes them and then says so. A thread that the end of this process
        # meets between the two leaves Python's tracker of such things to complain of semaphores that are not there.
        for feeder in self._feeders:
            feeder.join()

    def _is_done(self, future: Future[Any], owner: int, began: float) -> bool:
        """Wait a moment for a call of the other thread; see `next`."""
        try:
            future.exception(_TURN_SECONDS)
        except TimeoutError:
            self._lose_patience(owner, began)
            return False
        return True

    def _lose_patience(self, owner: int, began: float) -> None:
        now = time.monotonic()
        reason = stop_reason()
        if reason and self._stop_seen is None:
            self._stop_seen = now
        if reason and self._stop_seen is not None and now - self._stop_seen >= self._patience_seconds:
            raise StoppedWaiting(f"stopped ({reason}) while waiting for {self._named(owner)}")
        waited, limit = now - began, self._timeout_seconds
        if self._opening is not None:
            limit = max(limit, _START_SECONDS)
        if waited >= limit:
            setting = " (reader.timeout_seconds)" if limit == self._timeout_seconds else ""
            raise RunFailed(self._named(owner, f" sent nothing for {limit:g} s{setting}"))
        if waited >= min(_TOLD_AFTER_SECONDS, limit / 2) and not self._is_told:
            self._is_told = True
            logger.warning("waiting for %s", self._named(owner, f" since {waited:.0f} s"))

    def _judge(self, error: Exception, owner: int) -> None:
        """Return where receiving may be tried again."""
        if not isinstance(error, RuntimeError):
            # A connection broke while a tensor was being received: its worker is about to be found dead.
            multiprocessing.connection.wait([worker.sentinel for worker in self._workers], POLL_SECONDS)
        # A worker without further micro-batches ends by itself, maybe long before the others.
        dead = [
            number
            for number, worker in enumerate(self._workers)
            if not worker.is_alive() and (worker.exitcode or number == owner)
        ]
        if dead:
            raise RunFailed(self._obituary(dead[0])) from error
        if shortage := name_shortage(error):
            raise RunFailed(shortage) from None
        if "timed out" not in str(error):
            raise error

    def _obituary(self, worker_id: int) -> str:
        worker = self._workers[worker_id]
        code = worker.exitcode
        cause = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exited with code {code}"
        hint = f"; {name_lost_memory()}" if code == -signal.SIGBUS else ""
        return f"data worker {worker_id} (pid {worker.pid}) {cause}; last sample {self._last(worker_id)}{hint}"

    def _named(self, owner: int, verb: str = "") -> str:
        """Name the worker that is waited for: the one that owes the batch, unless another one stops them all."""
        if not self._workers:
            return f"the start of data workers{verb}"
        stopped = [number for number, worker in enumerate(self._workers) if _is_stopped(worker.pid)]
        worker_id = owner if owner in stopped or not stopped else stopped[0]
        state = ", stopped by SIGSTOP" if stopped else ""
        whom = f"data worker {worker_id} (pid {self._workers[worker_id].pid}{state})"
        return f"{whom}{verb}; last sample {self._last(worker_id)}"

    def _last(self, worker_id: int) -> str:
        return self._board.read(worker_id) if self._board else "none"


def _is_stopped(pid: int | None) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _start_number(process: BaseProcess) -> int:
    # Default names end in a counter over all processes started here: torch starts workers in the order of their ids.
    return int(process.name.rpartition("-")[2])
