"""From the data order to batches: a webdataset pipeline whose source is our sampler, run by a torch DataLoader.

    rows of the order -> fetch and transform, replacing bad samples -> micro-batches

The source knows which rows a worker builds, so every later stage composes with stock webdataset stages. Worker w of
n builds the whole micro-batches w, w + n, ..., and the DataLoader takes from the workers in turn: the consumer sees
the exact global order for any number of workers. Here is no randomness; the order is `beit.common.reading.order`,
augmentation is the transform's.

Samples travel as uint8 pixels; normalisation happens on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import get_worker_info

from beit.common.errors import BadSample, InputError
from beit.common.processes.worker_process import StatusBoard
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport
from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import Dataset
from beit.common.reading.loader import Loader, WorkerFailure
from beit.common.reading.order import Rows
from beit.common.storage.samples import Record, locate, shard_starts

Transform = Callable[[Record], Mapping[str, Any]]
"""Record to named arrays or numbers, equal in shape and dtype for all records. Raises `BadSample` where it cannot."""

Batch = dict[str, Any]

_ROWS_AHEAD = 64
"""Samples that a data set may fetch in one go: enough to hide a server's delay, 7 MB of photos."""


class Row(NamedTuple):
    """One row of the data axis."""

    position: int
    epoch: int
    shard_id: int
    rank: int


class SampleInfo(NamedTuple):
    """Where a sample of a batch came from."""

    sample_id: str
    view_index: int
    epoch: int
    position: int


def build_loader(
    dataset: Dataset,
    plan: BatchPlan,
    *,
    start_step: int,
    num_steps: int,
    transform: Transform,
    config: ReaderConfig | None = None,
    pin_memory: bool = False,
    patience_seconds: float = 5.0,
) -> Loader:
    """Build the loader of a training: this rank's micro-batches of the given steps, in order.

    Each micro-batch is a dict: what the transform returned, stacked to tensors (micro_batch_size, ...), and the
    lists "keys", "sample_ids", "view_indices", "epochs", "positions" (one entry per row) and "bad_samples"
    (`BadSampleReport`). A sample that cannot be used is replaced by the next usable one of its shard.

    Args:
        dataset: What the plan's order was built on.
        plan: Of this rank.
        start_step: Optimizer steps already completed.
        num_steps: Steps to read; each has grad_accum_steps micro-batches.
        transform: Picklable; applied in the workers.
        config: Defaults if absent.
        pin_memory: Put tensors into page-locked memory, for asynchronous copies to a GPU.
        patience_seconds: How long to wait for a micro-batch when somebody has asked to stop.
    """
    start = start_step * plan.grad_accum_steps
    stop = start + num_steps * plan.grad_accum_steps
    source = _RowSource(dataset, plan.micro_batch, start, stop, plan.shards_near)
    load = partial(_load_rows, dataset=dataset, transform=transform, replace=True)
    loader = _assemble(source, load, plan.micro_batch_size, config or ReaderConfig(), pin_memory)
    return replace(loader, patience_seconds=patience_seconds)


def sequential_loader(
    dataset: Dataset,
    *,
    transform: Transform,
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    config: ReaderConfig | None = None,
    pin_memory: bool = False,
) -> Loader:
    """Build the loader of an evaluation: every sample once, in index order, each rank a contiguous part of it.

    Batches are as in `build_loader`, but the last one may be smaller, ranks may differ by one row, and a sample that
    cannot be used is left out and reported instead of replaced. Epochs are 0.
    """
    rows = _SequentialRows(dataset.shard_sizes, micro_batch_size, rank, world_size)
    source = _RowSource(dataset, rows.micro_batch, 0, len(rows))
    load = partial(_load_rows, dataset=dataset, transform=transform, replace=False)
    return _assemble(source, load, micro_batch_size, config or ReaderConfig(), pin_memory)


def _assemble(
    source: _RowSource, load: partial[Iterator[dict[str, Any]]], size: int, config: ReaderConfig, pin_memory: bool
) -> Loader:
    num_batches = source.stop - source.start
    # A worker without a micro-batch would cost its start and bring nothing.
    num_workers = min(config.num_workers, num_batches)
    board = StatusBoard(num_workers) if num_workers else None
    pipeline = wds.DataPipeline(
        source, partial(load, board=board), partial(_cut, size=size), partial(_report_failures, board=board)
    )
    num_samples = int(source.dataset.shard_sizes.sum())
    return Loader(
        pipeline=pipeline,
        num_batches=num_batches,
        num_workers=num_workers,
        board=board,
        bad_samples=BadSampleLog(num_samples, config.bad_sample_budget),
        config=config,
        pin_memory=pin_memory,
    )


@dataclass(frozen=True)
class _RowSource:
    """First stage: the rows of this worker's micro-batches. It tells the data set what is coming."""

    dataset: Dataset
    micro_batch: Callable[[int], Rows]
    start: int
    stop: int
    shards_near: Callable[[int], list[int]] | None = None
    """Shards around a micro-batch; absent where every shard is passed once."""

    def __call__(self) -> Iterator[Row]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        try:
            for index in range(self.start + first, self.stop, stride):
                if self.shards_near is not None:
                    self.dataset.expect_shards(self.shards_near(index))
                yield from self._announced(self.micro_batch(index))
        finally:
            if self.shards_near is not None:
                self.dataset.expect_shards([])

    def _announced(self, rows: Rows) -> Iterator[Row]:
        for begin in range(0, len(rows), _ROWS_AHEAD):
            some = rows.slice(begin, begin + _ROWS_AHEAD)
            self.dataset.expect_rows(some)
            columns = (some.positions, some.epochs, some.shard_ids, some.ranks)
            yield from map(Row, *(column.tolist() for column in columns))


class _SequentialRows:
    """The samples of one rank in index order, cut into micro-batches."""

    def __init__(self, shard_sizes: np.ndarray[Any, Any], micro_batch_size: int, rank: int, world_size: int) -> None:
        self._starts = shard_starts(shard_sizes)
        num_samples = int(self._starts[-1])
        self._begin = rank * num_samples // world_size
        self._end = (rank + 1) * num_samples // world_size
        self._micro_batch_size = micro_batch_size

    def __len__(self) -> int:
        return -(-(self._end - self._begin) // self._micro_batch_size)

    def micro_batch(self, index: int) -> Rows:
        begin = self._begin + index * self._micro_batch_size
        positions = np.arange(begin, min(begin + self._micro_batch_size, self._end), dtype=np.int64)
        shard_ids, ranks = locate(self._starts, positions)
        return Rows(positions=positions, epochs=np.zeros_like(positions), shard_ids=shard_ids, ranks=ranks)


def _load_rows(
    rows: Iterable[Row], *, dataset: Dataset, transform: Transform, replace: bool, board: StatusBoard | None
) -> Iterator[dict[str, Any]]:
    """Second stage: one sample per row.

    A row that is left without a sample still yields, so that all rows keep their micro-batch.
    """
    info = get_worker_info()
    note = partial(board.note, info.id) if board and info else _no_note
    sizes = dataset.shard_sizes.tolist()
    for row in rows:
        bad: list[BadSampleReport] = []
        for step in range(sizes[row.shard_id] if replace else 1):
            rank = (row.rank + step) % sizes[row.shard_id]
            sample_id = dataset.sample_id(row.shard_id, rank)
            note(sample_id)
            try:
                record = dataset.fetch(row.shard_id, rank, row.epoch)
                values = transform(record)
            except BadSample as error:
                bad.append(BadSampleReport(sample_id, error.reason, error.detail))
                continue
            found = SampleInfo(sample_id, record.view_index, row.epoch, row.position)
            yield {"__key__": record.key, "__info__": found, "__bad__": bad, **values}
            break
        else:
            if replace:
                raise InputError(_hopeless(bad))
            yield {"__bad__": bad}


def _no_note(sample_id: str) -> None:
    """Stand in for the status board where the caller itself reads."""


def _hopeless(bad: list[BadSampleReport]) -> str:
    first = bad[0]
    shard = first.sample_id.rpartition("/")[0]
    return (
        f"none of the {len(bad)} samples of shard {shard} can be used (first: {first.sample_id}, {first.reason}: "
        f"{first.detail}); restore the shard or leave it out"
    )


def _cut(samples: Iterable[dict[str, Any]], *, size: int) -> Iterator[Batch]:
    """Third stage: micro-batches. `wds.batched` would read the first sample of the next before it hands one on."""
    rest = iter(samples)
    while some := list(islice(rest, size)):
        yield collate(some)


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Stack samples to a micro-batch; see `build_loader` for its keys."""
    usable = [sample for sample in samples if "__key__" in sample]
    infos = [sample["__info__"] for sample in usable]
    batch: Batch = {
        "keys": [sample["__key__"] for sample in usable],
        "sample_ids": [info.sample_id for info in infos],
        "view_indices": [info.view_index for info in infos],
        "epochs": [info.epoch for info in infos],
        "positions": [info.position for info in infos],
        "bad_samples": [report for sample in samples for report in sample["__bad__"]],
    }
    names = [name for name in usable[0] if not name.startswith("__")] if usable else []
    for name in names:
        batch[name] = _stack([sample[name] for sample in usable])
    return batch


def _stack(values: list[Any]) -> torch.Tensor:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    return torch.from_numpy(np.stack([np.asarray(value) for value in values]))


def _report_failures(batches: Iterable[Batch], *, board: StatusBoard | None) -> Iterator[Batch | WorkerFailure]:
    """Last stage: in a worker, send an exception as data.

    Torch would raise the same type with a traceback for a message, and bad input must stay one clear line.
    """
    info = get_worker_info()
    if board is None or info is None:
        yield from batches
        return
    try:
        for batch in batches:
            for value in batch.values():
                if isinstance(value, torch.Tensor) and value.numel():
                    # Here, where a shortage is an error; torch does it in a thread whose errors nobody hears of.
                    value.share_memory_()  # type: ignore[no-untyped-call]
            yield batch
    except Exception as error:
        yield WorkerFailure.capture(error, board.read(info.id))
