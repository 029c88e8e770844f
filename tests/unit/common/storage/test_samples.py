import numpy as np
import pytest

from beit.common.storage.samples import locate, shard_starts, spread_evenly


@pytest.mark.parametrize("sizes", [[3], [0, 2, 0, 0, 5, 0], [1, 1, 1], [4, 0, 7, 2]])
def test_positions_number_the_samples_of_all_shards_one_after_the_other(sizes):
    starts = shard_starts(sizes)
    expected = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert [locate(starts, position) for position in range(sum(sizes))] == expected
    shards, rows = locate(starts, np.arange(sum(sizes)))
    assert list(zip(shards.tolist(), rows.tolist(), strict=True)) == expected


def test_one_position_gives_plain_numbers():
    for position in (4, np.int64(4)):
        assert [type(value) for value in locate(shard_starts([3, 3]), position)] == [int, int]


def test_a_part_of_the_starts_counts_shards_from_its_first():
    starts = shard_starts([3, 2, 4, 1])
    assert locate(starts[1:4], 6) == (1, 1)


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 7), (3, 8), (5, 0), (0, 4)])
def test_spread_takes_as_many_as_there_are_evenly(total, count):
    chosen = spread_evenly(total, count).tolist()
    assert len(chosen) == len(set(chosen)) == min(total, count)
    assert chosen == [number * total // len(chosen) for number in range(len(chosen))]
