"""What reader workers need before their first sample: a server to fork them from, signal rules, and a status board.

Workers start through a fork server: the training process has threads, GPU contexts and connections to servers,
none of which survive a plain fork, and a fresh interpreter per worker would import torch anew each time. The server
imports once.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess

from beit.common.processes.safe_path import safe_path
from beit.common.processes.signals import STOP_SIGNALS
from beit.common.progress import share_terminal

PRELOADED = [
    "beit.common.processes.worker_server",  # first: it makes the server, and so its children, deaf to stop signals
    "torch.utils.data",
    "webdataset",
    "PIL.Image",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
    "pyarrow.parquet",
    "beit.common.views",
    "beit.common.reading.reader",
    "beit.common.shards.token_store",
    "beit.common.reading.labelled_dataset",
]
"""Imported once by the server for all workers, which come from it with all of this; a wrong name is passed over."""
_SLOT_BYTES = 512
_END_SECONDS = 3.0
"""From killing workers to taking their server for dead as well."""


def start_worker_server() -> None:
    """Start the fork server, if it does not run yet.

    It returns at once, while the server imports what workers need. A command that will have workers calls it before its
    own imports, so that the same seconds serve both.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # else the server starts it, and with it lets signals in again
    # Python's own server would die of a Ctrl-C while it imports, and print where.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with safe_path():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_server() -> None:
    """Kill the fork server. It ends by itself, but not while it imports, and this process would wait for it to end."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


atexit.register(_end_server)


def worker_init() -> Callable[[int], None]:
    """Return what prepares a new worker, to be called in it with its number.

    The worker gets the present environment variables: those of the fork server are as old as the server, and
    credentials and addresses of object stores may have been set since.
    """
    return partial(_init_worker, environment=dict(os.environ))


def _init_worker(worker_id: int, *, environment: dict[str, str]) -> None:
    """Prepare this process to be a worker.

    Signals: a stop request goes to the whole process group, but it is the training process that decides when to
    stop, and it still needs the batches under way. A worker ends when its iterator is closed or the training is gone.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    os.environ.update(environment)
    share_terminal()
    import torch  # here, so that a command may start the server before it imports torch itself

    torch.set_num_threads(1)
    # Torch makes workers watch their parent, but that is the fork server, which in turn lives as long as any worker
    # does: without this thread they would outlive a training that was killed.
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def end_workers(workers: Sequence[BaseProcess]) -> None:
    """Kill workers, also those that are stopped, and see to it that nobody will wait for them in vain."""
    for worker in workers:
        worker.kill()
    deadline = time.monotonic() + _END_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is not None and any(worker.is_alive() for worker in workers):
        # It, too, is stopped: it alone learns of their end, and this process would wait for its word when it ends.
        os.kill(server, signal.SIGKILL)
        for worker in workers:
            worker.join(_END_SECONDS / 3)
    # The old freezer of the kernel (cgroup v1) holds even who was killed; they die when it lets go.
    multiprocessing.process._children.difference_update(  # type: ignore[attr-defined]
        worker for worker in workers if worker.is_alive()
    )


class StatusBoard:
    """Shared memory in which each worker leaves the id of the sample it is at; readable after the worker's death."""

    def __init__(self, num_workers: int) -> None:
        self._slots = multiprocessing.get_context("forkserver").RawArray(ctypes.c_ubyte, num_workers * _SLOT_BYTES)

    def note(self, worker_id: int, sample_id: str) -> None:
        """Record that `worker_id` starts on `sample_id`."""
        text = sample_id.encode()[:_SLOT_BYTES]
        begin = worker_id * _SLOT_BYTES
        # Through a byte view: assigning to a slice of a ctypes array converts element by element.
        memoryview(self._slots).cast("B")[begin : begin + _SLOT_BYTES] = text.ljust(_SLOT_BYTES, b"\0")

    def read(self, worker_id: int) -> str:
        """Return what `worker_id` was last at, or "none"."""
        begin = worker_id * _SLOT_BYTES
        text = bytes(memoryview(self._slots).cast("B")[begin : begin + _SLOT_BYTES])
        return text.rstrip(b"\0").decode(errors="replace") or "none"
