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
from dataclasses import dataclass
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
        kind = (
            InputError
            if isinstance(error, InputError)
            else RunFailed
            if isinstance(error, RemoteError)
            else RuntimeError
        )
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


class Loader:
    """An iterable of micro-batches.

    Each iteration starts its workers and ends them; `bad_samples` counts over all iterations.

    Args:
        pipeline: Yields this worker's micro-batches, in a worker or in this process.
        num_batches: Micro-batches in all.
        num_workers: 0 reads in this process.
        board: Where workers note their sample; absent without workers.
        num_samples: Of the data set, for the bad-sample budget.
        config: Timeout, prefetch and budget.
        pin_memory: Put tensors into page-locked memory.
    """

    def __init__(
        self,
        pipeline: IterableDataset[Any],
        *,
        num_batches: int,
        num_workers: int,
        board: StatusBoard | None,
        num_samples: int,
        config: ReaderConfig,
        pin_memory: bool,
    ) -> None:
        self._pipeline = pipeline
        self._num_batches = num_batches
        self._num_workers = num_workers
        self._board = board
        self._config = config
        self._pin_memory = pin_memory
        self.bad_samples = BadSampleLog(num_samples, config.bad_sample_budget)

    def __repr__(self) -> str:
        """Show the extent and the workers."""
        return f"Loader(num_batches={self._num_batches}, num_workers={self._num_workers}, {self.bad_samples})"

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return self._num_batches

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
            for index in range(self._num_batches):
                batch = self._wait(batches, workers, index)
                if isinstance(batch, WorkerFailure):
                    batch.reraise(index % self._num_workers)
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
        if self._num_workers:
            start_worker_server()
            options = {
                "num_workers": self._num_workers,
                "timeout": min(_POLL_SECONDS, self._config.timeout_seconds),
                "worker_init_fn": worker_init(),
                "multiprocessing_context": "forkserver",
                "prefetch_factor": self._config.prefetch_batches,
            }
        loader = DataLoader(
            self._pipeline,
            batch_size=None,
            collate_fn=_as_is,
            pin_memory=self._pin_memory,
            # Its own, because DataLoader draws a number: an evaluation must not shift the random numbers of dropout.
            generator=torch.Generator(),
            **options,
        )
        return iter(loader)

    def _wait(self, batches: Iterator[Any], workers: list[BaseProcess], index: int) -> Any:
        """Return micro-batch `index`, waiting in short turns so that a death is seen before the full timeout."""
        deadline = time.monotonic() + self._config.timeout_seconds
        while True:
            try:
                return next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                if not self._num_workers:
                    raise
                if not isinstance(error, RuntimeError):
                    # A connection broke while a tensor was being received: its worker is about to be found dead.
                    multiprocessing.connection.wait([worker.sentinel for worker in workers], _POLL_SECONDS)
                owner = index % self._num_workers
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
            f"{self._config.timeout_seconds:g} s (reader.timeout_seconds); last sample {self._last(worker_id)}"
        )

    def _last(self, worker_id: int) -> str:
        return self._board.read(worker_id) if self._board else "none"


def _start_number(process: BaseProcess) -> int:
    # Default names end in a counter over all processes started here: torch starts workers in the order of their ids.
    return int(process.name.rpartition("-")[2])


def _as_is(item: Item) -> Item:
    """Keep DataLoader from converting what is already a batch."""
    return item
