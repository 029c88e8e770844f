"""Threads that wait for servers and other processes, and do not keep a process that ends."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 32
"""Requests at once; nearly all of their time is waiting."""
_POLL_SECONDS = 0.5


class Threads:
    """Threads that wait for servers or disks. A process that ends does not wait for them, as for an executor's.

    Args:
        count: How many.
        name: Of each, before its number.
    """

    def __init__(self, count: int = _THREADS, name: str = "beit-remote") -> None:
        self._count = count
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Call a function in one of the threads."""
        future: Future[Result] = Future()
        self._calls.put((future, functools.partial(function, *arguments)))
        return future

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what a function makes of each item, called at the same time."""
        futures = [self.submit(function, item) for item in items]
        return [future.result() for future in futures]

    def imap(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        ahead: int | None = None,
        check_stop: Callable[[], None] = lambda: None,
    ) -> Iterator[Result]:
        """Yield what a function makes of each item, in their order, without taking all items at once.

        Args:
            function: Called in the threads.
            items: Any number.
            ahead: Items in work or finished and waiting; one per thread if absent.
            check_stop: Called between two items, and while waiting for one; raises to give up.
        """
        limit = ahead or self._count
        pending: deque[Future[Result]] = deque()
        remaining = iter(items)
        try:
            while True:
                check_stop()
                for item in islice(remaining, limit - len(pending)):
                    pending.append(self.submit(function, item))
                if not pending:
                    return
                while not wait([pending[0]], timeout=_POLL_SECONDS).done:
                    check_stop()
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self, *, seconds: float | None = None) -> None:
        """Drop what has not begun and wait for what has: until it is done, or not longer than `seconds`."""
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is not None:
                call[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)


@functools.cache
def threads() -> Threads:
    """Return the threads of this process."""
    return Threads()
