import pickle

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.dataset import build_order
from beit.common.reading.order import Order, cut_lanes, valid_lanes
from beit.tests.fake_dataset import FakeDataset

SIZES = np.array([7, 1, 30, 12, 0, 3, 9, 20])  # N = 82, seven shards with samples
BATCH = 24


def order_of(lanes, *, seed=4, window_shards=4, sizes=SIZES):
    return Order(seed, sizes, window_shards=window_shards, lanes=lanes, global_batch_size=BATCH)


def samples_of(lane):
    parts = zip(lane.shard_ids.tolist(), lane.first_ranks.tolist(), lane.sizes.tolist(), strict=True)
    return [(shard, first + step) for shard, first, size in parts for step in range(size)]


def row_ids(rows):
    return list(zip(rows.shard_ids.tolist(), rows.ranks.tolist(), strict=True))


def plan_of(order, world_size=1, rank=0, accum=1):
    return BatchPlan(
        order=order,
        global_batch_size=BATCH,
        micro_batch_size=BATCH // world_size // accum,
        world_size=world_size,
        rank=rank,
    )


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 6])
def test_lanes_divide_the_samples_equally(lanes):
    parts = cut_lanes(4, SIZES, lanes)
    sizes = [part.num_samples for part in parts]
    assert sum(sizes) == 82 and max(sizes) - min(sizes) <= 1
    everything = [(shard, rank) for shard, size in enumerate(SIZES.tolist()) for rank in range(size)]
    assert sorted(sample for part in parts for sample in samples_of(part)) == everything


@pytest.mark.parametrize("lanes", [2, 3, 4, 6])
def test_rows_of_a_lane_come_only_from_its_shards_in_every_epoch(lanes):
    order, per_lane = order_of(lanes), BATCH // lanes
    shards = [set(order.lane(lane).shard_ids.tolist()) for lane in range(lanes)]
    for step in range(20):  # almost six epochs
        rows = row_ids(order.rows(step * BATCH, BATCH))
        for lane in range(lanes):
            assert {shard for shard, _ in rows[lane * per_lane : (lane + 1) * per_lane]} <= shards[lane]


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 6])
def test_an_epoch_of_a_lane_holds_each_of_its_samples_once(lanes):
    order, per_lane = order_of(lanes), BATCH // lanes
    for number in range(lanes):
        lane = order.lane(number)
        axis = [order.rows(step * BATCH + number * per_lane, per_lane) for step in range(3 * lane.num_samples)]
        found = [row for rows in axis for row in row_ids(rows)]
        epochs = [epoch for rows in axis for epoch in rows.epochs.tolist()]
        for epoch in range(3):
            span = slice(epoch * lane.num_samples, (epoch + 1) * lane.num_samples)
            assert sorted(found[span]) == sorted(samples_of(lane))
            assert set(epochs[span]) == {epoch}
        assert found[: lane.num_samples] != found[lane.num_samples : 2 * lane.num_samples] or lane.num_samples == 1


@pytest.mark.parametrize("lanes", [2, 4])
def test_ranks_and_micro_batches_concatenate_to_the_single_process_batch(lanes):
    whole = [row_ids(order_of(lanes).rows(step * BATCH, BATCH)) for step in range(8)]
    for world_size in (1, 2, 3, 4, 8):
        for accum in (1, 3):
            if BATCH % (world_size * accum):
                continue
            plans = [plan_of(order_of(lanes), world_size, rank, accum) for rank in range(world_size)]
            for step, expected in enumerate(whole):
                parts = [plan.micro_batch(step * accum + micro) for plan in plans for micro in range(accum)]
                assert [row for rows in parts for row in row_ids(rows)] == expected


@pytest.mark.parametrize("lanes", [2, 4])
def test_any_range_is_a_slice_of_the_whole_after_a_cold_start(lanes):
    whole = order_of(lanes).rows(0, 12 * BATCH)
    for position in (0, 1, 23, 24, 40, 82, 100, 170):
        cold = pickle.loads(pickle.dumps(order_of(lanes))).rows(position, 70)
        assert row_ids(cold) == row_ids(whole)[position : position + 70]
        assert cold.epochs.tolist() == whole.epochs[position : position + 70].tolist()
        assert cold.positions.tolist() == list(range(position, position + 70))


def test_a_rank_reads_the_shards_of_its_lanes_only():
    order = order_of(4)
    for rank in range(4):
        plan = plan_of(order, 4, rank)
        shards = set(order.lane(rank).shard_ids.tolist())
        for index in range(20):
            assert set(plan.micro_batch(index).shard_ids.tolist()) <= set(plan.shards_near(index)) <= shards


@pytest.mark.parametrize(("lanes", "window_shards"), [(1, 2), (1, 32), (2, 4), (4, 2)])
def test_the_shards_near_begin_with_those_in_use_and_name_the_next_window(lanes, window_shards):
    plan = plan_of(order_of(lanes, window_shards=window_shards), accum=2)
    for index in range(16):
        near, now = plan.shards_near(index), set(plan.micro_batch(index).shard_ids.tolist())
        assert len(near) == len(set(near))
        assert now <= set(near)
        assert plan.micro_batch(index - index % 2 + 2).shard_ids[0] in near


def test_lanes_that_do_not_fit_are_refused_with_those_that_do():
    assert valid_lanes(SIZES, BATCH) == [1, 2, 3, 4, 6]
    with pytest.raises(InputError, match=r"reader.lanes \(5\) must divide .*\(24\).* valid here: 1, 2, 3, 4, 6"):
        order_of(5)
    with pytest.raises(InputError, match=r"reader.lanes \(8\).* not exceed the 7 shards"):
        order_of(8)


@pytest.mark.parametrize(
    ("wanted", "default", "sizes", "batch", "expected"),
    [
        (None, 1, [5] * 20, 64, 1),
        (None, 8, [5] * 20, 64, 8),
        (None, 8, [5] * 20, 60, 6),
        (None, 8, [5] * 3, 64, 2),
        (None, 8, [5, 0], 64, 1),
        (4, 1, [5] * 20, 64, 4),
    ],
)
def test_lanes_left_out_are_the_most_that_fit(wanted, default, sizes, batch, expected):
    dataset = FakeDataset(sizes)
    dataset.default_lanes = default
    order = build_order(dataset, seed=0, window_shards=32, lanes=wanted, global_batch_size=batch)
    assert order.lanes == expected
