"""Streams of micro-batches: a training's, on the device, one ahead, with the time spent waiting; an evaluation's."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

import torch

from beit.common.processes.distributed import World

Batch = Mapping[str, Any]
"""One micro-batch: tensors beside lists of keys and the like."""


class BatchStream:
    """Micro-batches moved to the device.

    Args:
        batches: Micro-batches in host memory.
        device: Where the model is.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._ready: Batch | None = None
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.wait_seconds = 0.0
        """Time spent waiting for the reader since the last reset by the caller."""

    def start(self) -> None:
        """Fetch the first micro-batch, which starts whatever workers the reader has."""
        self._ready = self._load()

    def next(self) -> Batch:
        """Return the next micro-batch.

        Raises:
            StopIteration: the reader has no more; the trainer asks for no more than it was promised.
        """
        batch = self._ready if self._ready is not None else self._load()
        self._ready = None
        if self._copy_stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copy_stream)
            for value in batch.values():
                if isinstance(value, torch.Tensor):  # else its memory could be reused while the step still reads it
                    value.record_stream(current)
        return batch

    def preload(self) -> None:
        """On a GPU, fetch the next micro-batch and start its copy while the device is busy with the present one."""
        if self._copy_stream is None or self._ready is not None:
            return
        try:
            self._ready = self._load()
        except StopIteration:
            self._ready = None

    def close(self) -> None:
        """End the reader's workers now, not when the garbage collector gets to them."""
        if isinstance(self._batches, Generator):
            self._batches.close()

    def _load(self) -> Batch:
        started = time.monotonic()
        batch = next(self._batches)
        self.wait_seconds += time.monotonic() - started
        if self._copy_stream is None:
            return batch
        with torch.cuda.stream(self._copy_stream):
            return {name: self._move(value) for name, value in batch.items()}

    def _move(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.pin_memory().to(self._device, non_blocking=True)


def padded(
    batches: Iterable[Mapping[str, Any]], num_batches: int, blank: Mapping[str, torch.Tensor], world: World
) -> Iterator[dict[str, Any]]:
    """Yield the batches that hold a sample, marked `is_real`, and then blank ones until all ranks have had as many.

    Ranks differ by one batch at times, and partitioned weights (ZeRO 3) are gathered by all ranks or by none.

    Args:
        batches: Of this rank.
        num_batches: How many there are, at most.
        blank: A batch of one sample, as long as it can be computed.
        world: The ranks; all of them iterate.
    """
    wanted = int(world.max_of([num_batches])[0])
    done = 0
    for batch in batches:
        if "images" in batch:  # else all of its samples were bad
            yield {**batch, "is_real": True}
            done += 1
    for _ in range(done, wanted if world.world_size > 1 else 0):
        yield {**blank, "is_real": False}


class HostFlag:
    """A device scalar on its way to the host; reading it waits for its own copy, not for later work."""

    def __init__(self, scalar: torch.Tensor) -> None:
        self._value = scalar.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if scalar.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(scalar.device))

    def value(self) -> float:
        """Return the scalar."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)

    def is_set(self) -> bool:
        """Return whether the scalar is nonzero."""
        return bool(self.value())
