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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from beit.common.errors import BadSample, ResumableStop, RunFailed
from beit.common.processes.cores import available_cores
from beit.common.processes.signals import StopFlag
from beit.common.processes.worker_process import start_worker_server
from beit.common.storage.threads import Threads
from beit.tokenize.config import TokenizeConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_THREADS = 4
"""More than one interpreter can make use of: a view needs it for 28 % of its time (docs/decisions.md)."""

_PATIENCE_SECONDS = 5.0
"""How long a run that ends with an error waits for threads at work; one may wait for a server. Arbitrary."""


def let_torch_sleep() -> None:
    """Have torch's threads sleep where they wait for each other, instead of spinning on cores that workers could use.

    To be called before torch is loaded, which reads this once. On two cores it makes the whole stage 1.4 times as fast.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


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
    return Processes(function, num_workers) if is_wanted else nullcontext()


class Processes(Generic[Result]):
    """Processes that threads share, started when they are first needed.

    Args:
        function: What they do with a sample's reference and what was read of it; a copy of it is in each.
        count: The most there are; not more than there are cores.
    """

    def __init__(self, function: Callable[[Any, Any], Result], count: int) -> None:
        start_worker_server()
        # No process outlives the other end of this pipe, which is closed with these processes or when ours is killed.
        theirs, self._lifeline = multiprocessing.Pipe(duplex=False)
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
        if kind is not None:  # the pool would wait for what is under way and, if one is dead, for ever: they are deaf
            self._lifeline.close()
        self._pool.shutdown(cancel_futures=True)
        self._lifeline.close()

    def call(self, ref: Any, data: Any) -> Result:
        """Do what the function does, in a process, once one is idle.

        Raises:
            BadSample: the image cannot be used.
            RunFailed: a process is gone.
        """
        try:
            result: Result = self._pool.submit(_call_function, ref, data).result()
            return result
        except BrokenProcessPool:
            raise RunFailed(
                f"a worker process is gone (killed, perhaps because memory ran out) at {ref.path} or an image near it; "
                "finished shards are kept, run the same command again"
            ) from None
        except BadSample:
            raise
        except Exception as error:
            error.add_note(f"in a worker process, at {ref.path}")
            raise


_function: Callable[[Any, Any], Any] | None = None
"""What this process, if it is one of `Processes`, does; not sent with every image, because it may hold many names."""


def _begin_process(function: Callable[[Any, Any], Any], lifeline: Connection) -> None:
    global _function
    _function = function
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
