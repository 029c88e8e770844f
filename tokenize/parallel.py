"""Work spread over threads with results in order, and handed on to processes where one interpreter is too few.

Pillow lets other threads run while it decodes and resizes, but a view is Python code for a good part of its time, and
that part runs in one thread at a time however many there are. So the threads of `Workers` may hand what they have read
to `Processes` and wait for the result. Order, stopping and the bound on what is in memory stay the threads' business,
and the result is the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures import process as futures_process
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from beit.common.errors import BadSample, ResumableStop, RunFailed
from beit.common.processes.cores import available_cores
from beit.common.processes.signals import StopFlag, stop_reason
from beit.common.processes.worker_process import end_workers, start_worker_server
from beit.common.progress import share_terminal
from beit.common.storage.threads import Threads
from beit.tokenize.config import TokenizeConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

_TURN_SECONDS = 0.5
"""Between two looks at the signals and the clock."""
_PATIENCE_SECONDS = 5.0
"""For images under way when somebody asks to stop, or when the run fails; one may hang, or wait for a server."""
_END_SECONDS = 15.0
"""For idle processes to end by themselves."""
_MOST_THREADS = 4
"""More than one interpreter can make use of: a view needs it for 28 % of its time (docs/decisions.md)."""


class Workers:
    """A pool of threads whose consumer stops when it is asked to.

    Args:
        count: Threads.
        stop: Set by signals.
    """

    def __init__(self, count: int, stop: StopFlag | None = None) -> None:
        self.count = count
        self._stop = stop or StopFlag()
        self._threads = Threads(count, "beit-worker")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being computed and drop what is not; after an error, do not wait for who may hang."""
        self._threads.close(seconds=None if kind is None else _PATIENCE_SECONDS)

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int | None = None
    ) -> Iterator[Result]:
        """Yield `function(item)` in the order of `items`, computed at most `ahead` items in advance.

        Args:
            function: Called in the threads.
            items: Any number.
            ahead: Items in work or finished and waiting; four per thread if absent.
        Raises:
            ResumableStop: somebody asked to stop.
        """
        return self._threads.imap(function, items, ahead=ahead or 4 * self.count, check_stop=self.raise_if_stopped)

    def raise_if_stopped(self) -> None:
        """Between two items, end the work if somebody asked for it.

        Raises:
            ResumableStop: somebody did.
        """
        if self._stop.is_set():
            raise ResumableStop(
                f"tokenisation stopped ({self._stop.reason}); finished shards are kept, run the same command again to "
                "go on"
            )

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Start `function(item)` in a thread."""
        return self._threads.submit(function, item)


def worker_processes(
    function: Callable[[Any, Any], Result], config: TokenizeConfig, num_workers: int
) -> AbstractContextManager[Processes[Result] | None]:
    """Return what gives the processes that the workers are to use, or None if threads do."""
    choice = config.worker_processes
    is_wanted = choice == "on" or (choice == "auto" and num_workers > _MOST_THREADS)
    return Processes(function, num_workers, config.worker_timeout_seconds) if is_wanted else nullcontext()


class Processes(Generic[Result]):
    """Processes that threads share, started when they are first needed.

    Args:
        function: What they do with a sample's reference and what was read of it; a copy of it is in each.
        count: The most there are; not more than there are cores.
        timeout_seconds: How long one image may take before its process counts as hung.
    """

    def __init__(self, function: Callable[[Any, Any], Result], count: int, timeout_seconds: float = 300.0) -> None:
        start_worker_server()
        # No process outlives the other end of this pipe, which is closed with these processes or when ours is killed.
        theirs, self._lifeline = multiprocessing.Pipe(duplex=False)
        self._timeout_seconds = timeout_seconds
        self._failure: Exception | None = None
        """Why all were ended; what those get to hear who wait for one."""
        self._pool = ProcessPoolExecutor(
            min(count, available_cores()),
            mp_context=multiprocessing.get_context("forkserver"),
            initializer=_begin_process,
            initargs=(function, theirs),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them; no thread may be waiting for one."""
        family = self._family()
        manager: Any = self._pool._executor_manager_thread
        if kind is not None:  # the pool would wait for what is under way and, if one is dead, for ever: they are deaf
            self._lifeline.close()
            end_workers(family)
        thread = Threads(1, name="beit-end")  # the pool would also wait for one that is stopped or frozen
        with suppress(TimeoutError):
            thread.submit(partial(self._pool.shutdown, cancel_futures=True)).exception(_END_SECONDS)
        thread.close(seconds=0)
        self._lifeline.close()
        end_workers(family)
        if manager is not None and manager.is_alive() and any(process.is_alive() for process in family):
            # Of processes that the kernel holds, killed or not, nobody hears; the interpreter would wait for that.
            futures_process._threads_wakeups.pop(manager, None)  # type: ignore[attr-defined]

    def call(self, ref: Any, data: Any) -> Result:
        """Do what the function does, in a process, once one is idle.

        Raises:
            BadSample: the image cannot be used.
            RunFailed: a process is gone, or hung.
            ResumableStop: asked to stop, and this process does not get done.
        """
        try:
            future = self._pool.submit(_call_function, ref, data)
            self._wait(future, ref)
            result: Result = future.result()
            return result
        except BrokenProcessPool:
            raise self._failure or RunFailed(
                f"a worker process is gone (killed, perhaps because memory ran out) at {ref.path} or an image near it; "
                "finished shards are kept, run the same command again"
            ) from None
        except (BadSample, RunFailed, ResumableStop):
            raise
        except Exception as error:
            error.add_note(f"in a worker process, at {ref.path}")
            raise

    def _wait(self, future: Future[Result], ref: Any) -> None:
        """Wait for a process, but not for ever, and not when asked to stop."""
        began, stop_seen = time.monotonic(), 0.0
        while not wait((future,), timeout=_TURN_SECONDS).done:
            now, reason = time.monotonic(), stop_reason()
            stop_seen = stop_seen or (now if reason else 0.0)
            if reason and now - stop_seen > _PATIENCE_SECONDS:
                self._give_up(ResumableStop(f"tokenisation stopped ({reason}), {_is_hung(ref)}"))
            if now - began > self._timeout_seconds:
                after = f"for {self._timeout_seconds:g} s (worker_timeout_seconds)"
                self._give_up(
                    RunFailed(f"{_is_hung(ref)} {after}; finished shards are kept, run the same command again")
                )
            if self._failure is not None:
                raise self._failure

    def _give_up(self, failure: Exception) -> None:
        """End all processes; those who wait for them hear why."""
        if self._failure is None:
            self._failure = failure
            end_workers(self._family())

    def _family(self) -> list[BaseProcess]:
        return list((self._pool._processes or {}).values())


def _is_hung(ref: Any) -> str:
    return f"a worker process that was to decode {ref.path} or an image near it did not answer"


_function: Callable[[Any, Any], Any] | None = None
"""What this process, if it is one of `Processes`, does; not sent with every image, because it may hold many names."""


def _begin_process(function: Callable[[Any, Any], Any], lifeline: Connection) -> None:
    global _function
    _function = function
    share_terminal()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the process that asks decides when to stop
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _call_function(ref: Any, data: Any) -> Any:
    assert _function is not None
    return _function(ref, data)
