"""Threads that wait for servers, and do not keep a process that ends."""

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
    """Threads that wait for servers. A process that ends does not wait for them, as it would for an executor's."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        for number in range(_THREADS):
            threading.Thread(target=self._work, name=f"beit-remote-{number}", daemon=True).start()

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

    def _work(self) -> None:
        while True:
            self._calls.get()()


@functools.cache
def threads() -> Threads:
    """Return the threads of this process."""
    return Threads()
