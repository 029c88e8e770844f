"""The stream of micro-batches on the CPU: in order, nothing fetched early, closed at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from beit.common.training.batches import BatchStream, HostFlag


def test_order_laziness_and_closing() -> None:
    fetched: list[int] = []
    closed = []

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        try:
            for number in range(3):
                fetched.append(number)
                yield {"images": torch.tensor(number)}
        finally:
            closed.append(True)

    stream = BatchStream(batches(), torch.device("cpu"))
    stream.start()
    assert int(stream.next()["images"]) == 0
    stream.preload()  # nothing to overlap with on a CPU
    assert fetched == [0]
    assert [int(stream.next()["images"]) for _ in range(2)] == [1, 2]
    with pytest.raises(StopIteration):
        stream.next()
    stream.close()
    assert closed == [True]


def test_flag() -> None:
    assert HostFlag(torch.ones(())).is_set()
    assert not HostFlag(torch.zeros(())).is_set()
