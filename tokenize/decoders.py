"""Views made in processes of their own, for a tokenizer that is quicker than one Python interpreter.

Pillow lets other threads run while it decodes and resizes, but a view is Python code for a good part of its time, and
that part runs in one thread at a time however many there are: enough for a tokenizer on a CPU, not for one on a GPU.
So every thread of `parallel.Workers` may hand what it has read to a process that belongs to it alone. Order, stopping
and the bound on what is in memory stay the threads' business, and the result is the same.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from beit.common.errors import BadSample, RunFailed
from beit.common.loader import WorkerFailure
from beit.common.worker_process import start_worker_server
from beit.tokenize.prepare import ImageMaker, PreparedImage

_END_SECONDS = 5
"""For a process to end by itself when it is not needed any more; arbitrary."""


class DecodeProcesses:
    """One process for every thread that asks, started when it first does.

    Args:
        maker: What the processes do; a copy of it is in each.
    """

    def __init__(self, maker: ImageMaker) -> None:
        self._maker = maker
        self._own = threading.local()
        self._lock = threading.Lock()  # for the list, and because a fork server starts one process at a time
        self._processes: list[_DecodeProcess] = []
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

    def make(self, ref: Any, data: Any) -> PreparedImage:
        """Do what `ImageMaker.make` does, in the process of this thread.

        Raises:
            BadSample: the image cannot be used.
            RunFailed: the process is gone.
        """
        if not hasattr(self._own, "process"):
            with self._lock:
                self._own.process = _DecodeProcess(self._maker, number=len(self._processes))
                self._processes.append(self._own.process)
        process: _DecodeProcess = self._own.process
        return process.make(ref, data)


class _DecodeProcess:
    """A process and the connection to it."""

    def __init__(self, maker: ImageMaker, *, number: int) -> None:
        self._number = number
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("forkserver")
        self._process: BaseProcess = context.Process(
            target=_serve, args=(theirs, maker), name=f"beit-decode-{number}", daemon=True
        )
        self._process.start()
        theirs.close()  # the process alone holds it now, so that its end is seen, as ours is there

    def make(self, ref: Any, data: Any) -> PreparedImage:
        try:
            self._connection.send((ref, data))
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_END_SECONDS)
            raise RunFailed(
                f"decoding process {self._number} is gone (exit code {self._process.exitcode}; -9 may mean that memory "
                f"ran out) at {ref.path}; finished shards are kept, run the same command again"
            ) from None
        if isinstance(answer, BadSample):
            raise answer
        if isinstance(answer, WorkerFailure):
            answer.reraise(self._number)
        result: PreparedImage = answer
        return result

    def end(self) -> None:
        """Let it end, or end it."""
        self._connection.close()
        self._process.join(_END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, maker: ImageMaker) -> None:
    """Answer until the other end is closed, which it also is when its process was killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group; the process that asks decides when to stop
    while True:
        try:
            ref, data = connection.recv()
        except (EOFError, OSError):
            return
        answer: PreparedImage | BadSample | WorkerFailure
        try:
            answer = maker.make(ref, data)
        except BadSample as error:
            answer = error
        except Exception as error:
            answer = WorkerFailure.capture(error, str(ref.path))
        try:
            connection.send(answer)
        except OSError:
            return
