import numpy as np
import pytest

from beit.pretrain.sample import EvenSample


class Numbers:
    """A data set whose samples say where they lie."""

    num_views, index_sha256 = 1, "0" * 64

    def __init__(self, *sizes):
        self.shard_sizes = np.array(sizes, dtype=np.int64)

    def window_shards(self, wanted):
        return wanted

    def sample_id(self, shard_id, rank):
        return f"{shard_id}/{rank}"

    def fetch(self, shard_id, rank, epoch):
        return shard_id, rank, epoch


def names(sample):
    return [sample.sample_id(shard, rank) for shard, size in enumerate(sample.shard_sizes) for rank in range(size)]


@pytest.mark.parametrize("count", [1, 2, 7, 10, 23])
def test_as_many_different_samples_as_asked_for_spread_evenly(count):
    sample = EvenSample(Numbers(10, 0, 3, 10), count)
    chosen = names(sample)
    assert len(chosen) == len(set(chosen)) == len(sample) == count
    whole = names(EvenSample(Numbers(10, 0, 3, 10), 10**6))
    places = [whole.index(name) for name in chosen]
    assert places == [i * 23 // count for i in range(count)]
    assert [f"{shard}/{rank}" for shard, rank in sample.places()] == chosen


def test_asking_for_more_gives_all():
    sample = EvenSample(Numbers(2, 3), 100)
    assert names(sample) == ["0/0", "0/1", "1/0", "1/1", "1/2"]
    assert sample.fetch(1, 2, 5) == (1, 2, 5)
