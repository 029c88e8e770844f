from types import SimpleNamespace

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.shards.held_out import held_out_hash
from beit.common.shards.tables import SampleTable
from beit.common.storage.samples import Record
from beit.common.views import VIEW_DTYPE
from beit.pretrain.store_dataset import StoreDataset, view_index

SIZES = [10, 1, 25]
THRESHOLD = 2**62  # a quarter of all hashes lie below


def table_of(shard_id, size):
    keys = [f"s{shard_id}k{row}" for row in range(size)]
    zeros = np.zeros(size, np.uint64)
    return SampleTable(
        key=np.array(keys, dtype=object),
        key_hash=np.array([held_out_hash(key) for key in keys], dtype=np.uint64),
        img_off=zeros,
        img_len=zeros,
        tok_off=zeros,
        tok_len=zeros,
        view_off=zeros,
        view_len=zeros,
        label=np.arange(size),
    )


class FakeStore:
    """As much of a token store as a data set needs; token ids tell row and view."""

    location = "store"
    index_sha256 = "abc"

    def __init__(self, views=4, threshold=THRESHOLD):
        self.info = SimpleNamespace(views=views, held_out=SimpleNamespace(threshold=threshold))
        self.tables = [table_of(shard_id, size) for shard_id, size in enumerate(SIZES)]
        self.shards = [
            SimpleNamespace(
                stem=f"{shard_id:06d}-x", num_samples=len(table), num_held_out=int(table.held_out(threshold).sum())
            )
            for shard_id, table in enumerate(self.tables)
        ]

    def __len__(self):
        return sum(SIZES)

    def shard_sizes(self, *, held_out):
        held = np.array([row.num_held_out for row in self.shards])
        return held if held_out else np.array(SIZES) - held

    def samples(self, shard_id):
        return self.tables[shard_id]

    def name(self, shard_id, row):
        return self.shards[shard_id].stem, self.tables[shard_id].key[row]

    def read_record(self, shard_id, row, view_k):
        assert 0 <= view_k < max(1, self.info.views)
        view = np.zeros(1, VIEW_DTYPE)[0]
        view["left"] = view_k
        return Record(
            key=self.tables[shard_id].key[row],
            shard=self.shards[shard_id].stem,
            epoch=view_k,
            view_index=view_k,
            image_bytes=bytes([shard_id, row]),
            token_ids=np.full((2, 2), row, np.uint16),
            view=view,
            label=row,
        )


def records(dataset, epoch=0):
    return [dataset.fetch(shard, rank, epoch) for shard, size in enumerate(dataset.shard_sizes) for rank in range(size)]


def test_training_and_held_out_samples_are_all_samples_once():
    store = FakeStore()
    training = [record.sample_id for record in records(StoreDataset(store, seed=0))]
    held_out = [record.sample_id for record in records(StoreDataset(store, seed=0, held_out=True))]
    everything = [
        f"{row.stem}/{key}" for row, table in zip(store.shards, store.tables, strict=True) for key in table.key
    ]
    assert sorted(training + held_out) == sorted(everything)
    assert len(training) > len(held_out) > 0
    assert all(held_out_hash(sample_id.split("/")[1]) < THRESHOLD for sample_id in held_out)


def test_records_belong_to_their_ids():
    dataset = StoreDataset(FakeStore(), seed=0)
    for shard_id, size in enumerate(dataset.shard_sizes):
        for rank in range(size):
            record = dataset.fetch(shard_id, rank, epoch=2)
            assert record.sample_id == dataset.sample_id(shard_id, rank)
            assert record.key == f"s{record.image_bytes[0]}k{record.image_bytes[1]}"
            assert record.label == record.image_bytes[1] == record.token_ids[0, 0]
            assert record.epoch == 2


def test_view_follows_seed_epoch_and_sample():
    for seed in (0, 1):
        for epoch in (0, 1, 7):
            for record in records(StoreDataset(FakeStore(), seed=seed), epoch):
                assert record.view_index == view_index(seed, epoch, record.shard, record.key, 4) == record.view["left"]


def test_store_without_views_has_a_view_per_epoch():
    dataset = StoreDataset(FakeStore(views=0), seed=0)
    assert dataset.num_views == 0
    assert {record.view_index for record in records(dataset, 5)} == {5}


def test_held_out_samples_are_always_seen_under_their_first_view():
    for seed, views in ((0, 4), (3, 1), (3, 16)):
        held_out = StoreDataset(FakeStore(views=views), seed=seed, held_out=True)
        assert {held_out.fetch(2, 0, epoch).view_index for epoch in range(5)} == {0}


def test_store_without_such_samples_is_refused():
    store = FakeStore(threshold=0)
    with pytest.raises(InputError, match=r"store has no held-out samples \(36 in all\)"):
        StoreDataset(store, seed=0, held_out=True)


def test_samples_that_contradict_the_index_are_refused():
    store = FakeStore()
    store.shards[2].num_held_out += 1
    with pytest.raises(InputError, match="shard 000002-x of store has .* run beit tokenize again"):
        records(StoreDataset(store, seed=0))


def test_the_views_of_the_epochs_are_frozen():
    """A run resumed under a later version must see the same views: these numbers may never change."""
    assert [view_index(7, epoch, "000000-a", "key", 4) for epoch in range(5)] == [1, 2, 3, 0, 1]


def test_every_view_comes_once_in_k_epochs():
    for key in ("a", "b", "c"):
        assert sorted(view_index(0, epoch, "s", key, 6) for epoch in range(4, 10)) == list(range(6))
    starts = {view_index(0, 0, "s", str(key), 6) for key in range(50)}
    assert starts == set(range(6))


def test_without_stored_views_each_epoch_is_its_own():
    assert [view_index(0, epoch, "s", "a", 0) for epoch in (0, 1, 9)] == [0, 1, 9]
