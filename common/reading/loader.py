"""The consumer's end of the reader: batches in order, bad samples counted, dead and hung workers named.

What the workers run is `beit.common.reading.reader`; how they start is `beit.common.processes.worker_process`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from beit.common.errors import InputError, RunFailed
from beit.common.processes.worker_process import StatusBoard, start_worker_server, worker_init
from beit.common.reading.bad_samples import BadSampleLog
from beit.common.reading.config import ReaderConfig
from beit.common.storage.place import RemoteError

_POLL_SECONDS = 5.0
"""A dead worker is noticed after this time at most; arbitrary. Torch looks for dead workers only when a wait times
out."""

# More workers than cores are a setting like any other, and `data_wait` says what they are worth.
warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)

Item = TypeVar("Item")


@dataclass(frozen=True)
class WorkerFailure:
    """An exception on its way from a worker to the training process."""

    kind: type[Exception]
    """`InputError`, `RunFailed` for a server that is away, or `RuntimeError` for all else."""
    summary: str
    trace: str
    sample_id: str

    @classmethod
    def capture(cls, error: Exception, sample_id: str) -> WorkerFailure:
        """Keep of `error` what can be sent."""
        trace = "".join(traceback.format_exception(error))
        kinds: dict[type[Exception], type[Exception]] = {InputError: InputError, RemoteError: RunFailed}
        kind = next((kinds[met] for met in kinds if isinstance(error, met)), RuntimeError)
        return cls(kind, str(error), trace, sample_id)

    def reraise(self, worker_id: int) -> None:
        """Raise what the worker raised.

        Raises:
            InputError: the worker met bad input; the message is the worker's.
            RunFailed: a server is away; the message is the worker's.
            RuntimeError: anything else.
        """
        if self.kind is not RuntimeError:
            raise self.kind(self.summary)
        raise RuntimeError(f"data worker {worker_id} failed at sample {self.sample_id}; in the worker:\n{self.trace}")


@dataclass(frozen=True, kw_only=True)
class Loader:
    """An iterable of micro-batches. Each iteration starts its workers and ends them."""

    pipeline: IterableDataset[Any] = field(repr=False)
    """Yields this worker's micro-batches, in a worker or in this process."""
    num_batches: int
    """Micro-batches in all."""
    num_workers: int
    """0 reads in this process."""
    board: StatusBoard | None = field(repr=False)
    """Where workers note their sample; absent without workers."""
    bad_samples: BadSampleLog
    """Counts over all iterations."""
    config: ReaderConfig = field(repr=False)
    """Timeout and prefetch."""
    pin_memory: bool = field(repr=False)
    """Put tensors into page-locked memory."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches in order.

        Raises:
            InputError: too many bad samples, or bad input met by a worker.
            RunFailed: a worker died or hung; the message names it and its last sample.
            RuntimeError: a worker failed.
        """
        before = set(multiprocessing.active_children())
        batches = self._start()
        workers = sorted(set(multiprocessing.active_children()) - before, key=_start_number)
        finished = False
        try:
            for index in range(self.num_batches):
                batch = self._wait(batches, workers, index)
                if isinstance(batch, WorkerFailure):
                    batch.reraise(index % self.num_workers)
                if batch["bad_samples"]:
                    self.bad_samples.add(batch["bad_samples"])
                # Empty only in an evaluation, where bad samples are left out.
                if batch["keys"]:
                    yield batch
            finished = True
        finally:
            if not finished:
                # They ignore SIGTERM, and what they prepare is no longer wanted.
                for worker in workers:
                    worker.kill()
            del batches

    def _start(self) -> Iterator[Any]:
        options: dict[str, Any] = {}
        if self.num_workers:
            start_worker_server()
            options = {
                "num_workers": self.num_workers,
                "timeout": min(_POLL_SECONDS, self.config.timeout_seconds),
                "worker_init_fn": worker_init(),
                "multiprocessing_context": "forkserver",
                "prefetch_factor": self.config.prefetch_batches,
            }
        loader = DataLoader(
            self.pipeline,
            batch_size=None,
            collate_fn=_as_is,
            pin_memory=self.pin_memory,
            # Its own, because DataLoader draws a number: an evaluation must not shift the random numbers of dropout.
            generator=torch.Generator(),
            **options,
        )
        return iter(loader)

    def _wait(self, batches: Iterator[Any], workers: list[BaseProcess], index: int) -> Any:
        """Return micro-batch `index`, waiting in short turns so that a death is seen before the full timeout."""
        deadline = time.monotonic() + self.config.timeout_seconds
        while True:
            try:
                return next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                if not self.num_workers:
                    raise
                if not isinstance(error, RuntimeError):
                    # A connection broke while a tensor was being received: its worker is about to be found dead.
                    multiprocessing.connection.wait([worker.sentinel for worker in workers], _POLL_SECONDS)
                owner = index % self.num_workers
                # A worker without further micro-batches ends by itself, maybe long before the others.
                dead = [
                    number
                    for number, worker in enumerate(workers)
                    if not worker.is_alive() and (worker.exitcode or number == owner)
                ]
                if dead:
                    raise RunFailed(self._obituary(dead[0], workers[dead[0]])) from error
                if "timed out" not in str(error):
                    raise
                if time.monotonic() >= deadline:
                    raise RunFailed(self._hung(owner, workers)) from None

    def _obituary(self, worker_id: int, worker: BaseProcess) -> str:
        code = worker.exitcode
        cause = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"exited with code {code}"
        hint = "; /dev/shm is too small for the batches, enlarge it" if code == -signal.SIGBUS else ""
        return f"data worker {worker_id} (pid {worker.pid}) {cause}; last sample {self._last(worker_id)}{hint}"

    def _hung(self, worker_id: int, workers: list[BaseProcess]) -> str:
        return (
            f"data worker {worker_id} (pid {workers[worker_id].pid}) sent nothing for "
            f"{self.config.timeout_seconds:g} s (reader.timeout_seconds); last sample {self._last(worker_id)}"
        )

    def _last(self, worker_id: int) -> str:
        return self.board.read(worker_id) if self.board else "none"


def _start_number(process: BaseProcess) -> int:
    # Default names end in a counter over all processes started here: torch starts workers in the order of their ids.
    return int(process.name.rpartition("-")[2])


def _as_is(item: Item) -> Item:
    """Keep DataLoader from converting what is already a batch."""
    return item
