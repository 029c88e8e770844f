import logging
import pickle

import numpy as np
import pytest

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image
from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import build_order
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.reading.reader import build_loader, sequential_loader
from beit.common.sources.index_build import build_index
from beit.tests.fake_dataset import to_pixels_and_label
from beit.tests.image_files import write_folder, write_parquet, write_tar


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def everything(dataset):
    return [
        dataset.fetch(shard, rank, epoch=0) for shard, size in enumerate(dataset.shard_sizes) for rank in range(size)
    ]


def red_of(record):
    return int(np.asarray(decode_image(record.image_bytes))[0, 0, 0])


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_records_hold_image_and_label(tmp_path, cache, kind):
    labels = [3, 1, 2, 0, 1]
    path = tmp_path / f"a.{kind}"
    write_tar(path, labels) if kind == "tar" else write_parquet(path, labels, 2)
    dataset = LabelledDataset(build_index(path, cache))
    records = everything(dataset)
    assert [red_of(record) for record in records] == [0, 1, 2, 3, 4]
    assert [record.label for record in records] == labels
    assert {record.view is None and record.token_ids is None for record in records} == {True}
    ids = [dataset.sample_id(shard, rank) for shard, size in enumerate(dataset.shard_sizes) for rank in range(size)]
    assert [record.sample_id for record in records] == ids
    assert len(set(ids)) == 5


def test_folder_records(tmp_path, cache):
    dataset = LabelledDataset(build_index(write_folder(tmp_path / "data", {"a": 2, "b": 3}), cache))
    assert [(record.label, red_of(record)) for record in everything(dataset)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
    ]


def test_each_epoch_is_a_view_of_its_own(tmp_path, cache):
    dataset = LabelledDataset(build_index(write_tar(tmp_path / "a.tar", [0]), cache))
    assert [dataset.fetch(0, 0, epoch).view_index for epoch in (0, 7)] == [0, 7]


def test_row_groups_in_memory_stay_within_the_limit(tmp_path, cache):
    index = build_index(write_parquet(tmp_path / "a.parquet", [0] * 40, 4), cache)
    per_group = index.info.shard_bytes
    dataset = LabelledDataset(index, cache_bytes=3 * per_group)
    everything(dataset)
    assert 0 < len(dataset._open) <= 3
    assert dataset._open_bytes <= 3 * per_group
    dataset.close()
    assert dataset._open_bytes == 0


def test_one_row_group_is_kept_even_if_it_is_larger_than_the_limit(tmp_path, cache):
    dataset = LabelledDataset(build_index(write_parquet(tmp_path / "a.parquet", [0] * 8, 4), cache), cache_bytes=1)
    everything(dataset)
    assert len(dataset._open) == 1


def test_window_fits_into_memory_for_parquet(tmp_path, cache):
    index = build_index(write_parquet(tmp_path / "a.parquet", [0] * 40, 4), cache)
    assert LabelledDataset(index).window_shards(32) == 32
    assert LabelledDataset(index, cache_bytes=5 * index.info.shard_bytes).window_shards(32) == 5
    assert LabelledDataset(index, cache_bytes=0).window_shards(32) == 1


def test_loose_files_are_all_mixed(tmp_path, cache, monkeypatch):
    index = build_index(write_folder(tmp_path / "data", {"a": 2, "b": 3}), cache)
    dataset = LabelledDataset(index)
    dataset.shard_sizes = np.ones(700, np.int64)
    assert dataset.window_shards(32) == 700


@pytest.mark.parametrize(
    ("labels", "warns"), [([n // 8 for n in range(80)], True), ([n % 10 for n in range(80)], False)]
)
def test_data_sorted_by_class_give_a_warning(tmp_path, cache, caplog, labels, warns):
    dataset = LabelledDataset(build_index(write_parquet(tmp_path / "a.parquet", labels, 8), cache))
    with caplog.at_level(logging.WARNING):
        dataset.window_shards(2)
        assert ("sorted by class, and only 2 of 10 shards" in caplog.text) == warns
        caplog.clear()
        dataset.window_shards(5)
        assert not caplog.text


def test_missing_file_is_a_bad_sample(tmp_path, cache):
    folder = write_folder(tmp_path / "data", {"a": 2, "b": 3})
    dataset = LabelledDataset(build_index(folder, cache))
    (folder / "a" / "1.png").unlink()
    with pytest.raises(BadSample, match="unreadable: a/1.png"):
        everything(dataset)


def test_pickled_dataset_is_small_and_equal(tmp_path, cache):
    dataset = LabelledDataset(build_index(write_parquet(tmp_path / "a.parquet", [0] * 40, 4), cache))
    records = everything(dataset)
    data = pickle.dumps(dataset)
    assert len(data) < 10_000
    assert everything(pickle.loads(data)) == records


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_and_evaluation_read_through_the_same_reader(tmp_path, cache, num_workers):
    labels = [n % 3 for n in range(20)]
    dataset = LabelledDataset(build_index(write_parquet(tmp_path / "a.parquet", labels, 6), cache))
    order = build_order(dataset, seed=0, window_shards=2)
    plan = BatchPlan(order=order, global_batch_size=8, micro_batch_size=4)
    config = ReaderConfig(num_workers=num_workers)
    batches = list(build_loader(dataset, plan, start_step=0, num_steps=5, transform=to_pixels_and_label, config=config))
    assert [batch["images"].shape for batch in batches] == [(4, 2, 2, 3)] * 10
    reds = [red for batch in batches for red in batch["images"][:, 0, 0, 0].tolist()]
    assert sorted(reds[:20]) == list(range(20)) == sorted(reds[20:])
    assert [label for batch in batches for label in batch["labels"].tolist()] == [red % 3 for red in reds]
    ordered = sequential_loader(dataset, transform=to_pixels_and_label, micro_batch_size=7, config=config)
    assert [label for batch in ordered for label in batch["labels"].tolist()] == labels
