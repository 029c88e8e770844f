"""The stream of micro-batches on the CPU: in order, nothing fetched early, closed at the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from beit.common.processes.distributed import World
from beit.common.training.data import BatchStream, HostFlag, padded


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
    assert HostFlag(torch.ones(())).value() == 1
    assert HostFlag(torch.zeros(())).value() == 0


def test_blank_batches_fill_up_for_ranks_that_have_more() -> None:
    class Two(World):
        def max_of(self, values: object) -> list[float]:
            return [3.0]

    world = Two(rank=0, local_rank=0, world_size=2, device=torch.device("cpu"))
    given = [{"images": torch.zeros(2)}, {"bad_samples": ["one"]}, {"images": torch.zeros(1)}]
    filled = list(padded(given, len(given), {"images": torch.zeros(1)}, world))
    assert [batch["is_real"] for batch in filled] == [True, True, False]
