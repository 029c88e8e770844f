"""Images worked on in processes, for machines with more cores than one Python interpreter can use.

Pillow lets other threads run while it decodes and resizes, but a view is Python code for a good part of its time, and
that part runs in one thread at a time however many there are. So the threads of `parallel.Workers` may hand what they
have read to processes and wait for the result. Order, stopping and the bound on what is in memory stay the threads'
business, and the result is the same.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, LifoQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from beit.common.errors import BadSample, RunFailed
from beit.common.processes.cores import available_cores
from beit.common.processes.worker_process import start_worker_server
from beit.common.reading.loader import WorkerFailure
from beit.tokenize.config import TokenizeConfig

Result = TypeVar("Result")

_MOST_THREADS = 4
"""More than one interpreter can make use of: a view needs it for 28 % of its time (docs/decisions.md)."""

_END_SECONDS = 5
"""For a process to end by itself when it is not needed any more; arbitrary."""


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
        self._function = function
        self._count = min(count, available_cores())
        self._lock = threading.Lock()  # for the list, and because a fork server starts one process at a time
        self._processes: list[_Process] = []
        self._idle: LifoQueue[_Process] = LifoQueue()
        start_worker_server()

    def __enter__(self) -> Self:
        """Return the processes."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them; no thread may be waiting for one."""
        for process in self._processes:
            process.end()

    def call(self, ref: Any, data: Any) -> Result:
        """Do what the function does, in a process, once one is idle.

        Raises:
            BadSample: the image cannot be used.
            RunFailed: the process is gone.
        """
        process = self._take()
        try:
            result: Result = process.call(ref, data)
            return result
        finally:
            self._idle.put(process)

    def _take(self) -> _Process:
        try:
            return self._idle.get_nowait()
        except Empty:
            with self._lock:
                if len(self._processes) < self._count:
                    self._processes.append(_Process(self._function, number=len(self._processes)))
                    return self._processes[-1]
        return self._idle.get()


class _Process:
    """A process and the connection to it."""

    def __init__(self, function: Callable[[Any, Any], Any], *, number: int) -> None:
        self._number = number
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("forkserver")
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, function), name=f"beit-worker-{number}", daemon=True
        )
        self._process.start()
        theirs.close()  # the process alone holds it now, so that its end is seen, as ours is there

    def call(self, ref: Any, data: Any) -> Any:
        try:
            self._connection.send((ref, data))
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_END_SECONDS)
            raise RunFailed(
                f"worker process {self._number} is gone (exit code {self._process.exitcode}; -9 may mean that memory "
                f"ran out) at {ref.path}; finished shards are kept, run the same command again"
            ) from None
        if isinstance(answer, BadSample):
            raise answer
        if isinstance(answer, WorkerFailure):
            answer.reraise(self._number)
        return answer

    def end(self) -> None:
        """Let it end, or end it."""
        self._connection.close()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, function: Callable[[Any, Any], Any]) -> None:
    """Answer until the other end is closed, which it also is when its process was killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the process that asks decides when to stop
    while True:
        try:
            ref, data = connection.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            answer = function(ref, data)
        except BadSample as error:
            answer = error
        except Exception as error:
            answer = WorkerFailure.capture(error, str(ref.path))
        try:
            connection.send(answer)
        except OSError:
            return
