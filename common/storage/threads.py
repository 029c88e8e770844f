"""Threads that wait for servers and other processes, and do not keep a process that ends."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = 32
"""Requests at once; nearly all of their time is waiting."""


class Threads:
    """Threads that wait. A process that ends does not wait for them, as it would for an executor's."""

    def __init__(self, count: int = _THREADS, *, name: str = "beit-remote") -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Call a function in one of the threads."""
        future: Future[Result] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments))
                except BaseException as error:
                    future.set_exception(error)

        self._calls.put(call)
        return future

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return what a function makes of each item, called at the same time."""
        futures = [self.submit(function, item) for item in items]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads when they have done what was submitted, without waiting for that."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
        self._calls.put(None)  # for the next one


@functools.cache
def threads() -> Threads:
    """Return the threads of this process."""
    return Threads()
