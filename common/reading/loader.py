"""The consumer's end of the reader: batches in order, bad samples counted, failures of workers raised here.

What the workers run is `beit.common.reading.reader`; how they are waited for, `beit.common.reading.fetcher`; how they
start, `beit.common.processes.worker_process`.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from beit.common.errors import InputError, RunFailed
from beit.common.processes.shared_memory import name_shortage
from beit.common.processes.worker_process import StatusBoard, start_worker_server, worker_init
from beit.common.reading import fetcher
from beit.common.reading.bad_samples import BadSampleLog
from beit.common.reading.config import ReaderConfig
from beit.common.reading.fetcher import Fetcher
from beit.common.storage.place import RemoteError

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
        if shortage := name_shortage(error):
            return cls(RunFailed, shortage, trace, sample_id)
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
    patience_seconds: float = field(default=5.0, repr=False)
    """How long to wait for a micro-batch when somebody has asked to stop."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the micro-batches in order.

        Raises:
            InputError: too many bad samples, or bad input met by a worker.
            RunFailed: a worker died or hung; the message names it and its last sample.
            StoppedWaiting: asked to stop while a worker owed a micro-batch.
            RuntimeError: a worker failed.
        """
        next_batch, close = self._open()
        finished = False
        try:
            for index in range(self.num_batches):
                batch = next_batch(index)
                if isinstance(batch, WorkerFailure):
                    batch.reraise(index % self.num_workers)
                if batch["bad_samples"]:
                    self.bad_samples.add(batch["bad_samples"])
                # Empty only in an evaluation, where bad samples are left out.
                if batch["keys"]:
                    yield batch
            finished = True
        finally:
            close(is_finished=finished)

    def _open(self) -> tuple[Callable[[int], Any], Callable[..., None]]:
        """Return what gets the next micro-batch, and what is to be called at the end."""
        if not self.num_workers:
            batches = self._start()
            return lambda _: next(batches), lambda *, is_finished: None
        workers = Fetcher(
            self._start,
            num_workers=self.num_workers,
            board=self.board,
            config=self.config,
            patience_seconds=self.patience_seconds,
        )
        return workers.next, workers.close

    def _start(self) -> Iterator[Any]:
        options: dict[str, Any] = {}
        if self.num_workers:
            start_worker_server()
            options = {
                "num_workers": self.num_workers,
                "timeout": min(fetcher.POLL_SECONDS, self.config.timeout_seconds),
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


def _as_is(item: Item) -> Item:
    """Keep DataLoader from converting what is already a batch."""
    return item
