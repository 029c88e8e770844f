import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.reading.batch_plan import BatchPlan, DataState, check_resume, grad_accum_steps_for, valid_world_sizes
from beit.common.reading.order import Order

SIZES = {
    "even": [20] * 5,
    "uneven": [7, 1, 30, 12, 3, 9],
    "one shard": [17],
    "one sample": [1],
    "empty shards": [0, 5, 0, 0, 8, 0],
    "many": [3] * 100,
}


def ids(shard_ids, ranks):
    return list(zip(shard_ids.tolist(), ranks.tolist(), strict=True))


def row_ids(rows):
    return ids(rows.shard_ids, rows.ranks)


def plan_for(order, batch, *, micro=None, world_size=1, rank=0):
    micro = micro or batch // world_size
    return BatchPlan(
        order=order,
        global_batch_size=batch,
        micro_batch_size=micro,
        world_size=world_size,
        rank=rank,
    )


def steps_of(order, batch, steps, *, micro, world_size):
    """The rows of some steps as W ranks read them, put together in rank order."""
    plans = [plan_for(order, batch, micro=micro, world_size=world_size, rank=rank) for rank in range(world_size)]
    found = []
    for step in steps:
        for plan in plans:
            for micro_step in range(plan.grad_accum_steps):
                rows = plan.micro_batch(step * plan.grad_accum_steps + micro_step)
                found += zip(rows.positions.tolist(), rows.epochs.tolist(), row_ids(rows), strict=True)
    return found


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("window_shards", [1, 2, 32])
def test_one_epoch_holds_every_sample_once(sizes, window_shards):
    order = Order(0, np.array(sizes), window_shards=window_shards)
    everything = [(shard, rank) for shard, size in enumerate(sizes) for rank in range(size)]
    for epoch in (0, 1, 5):
        assert sorted(ids(*order.locate(epoch, 0, order.num_samples))) == everything


def test_order_is_frozen():
    """A run resumed under a later version must see the same order: these numbers may never change."""
    order = Order(7, np.array([3, 1, 4, 2]), window_shards=2)
    assert ids(*order.locate(0, 0, 10)) == FROZEN_ORDER


FROZEN_ORDER = [(2, 2), (0, 0), (2, 1), (0, 2), (2, 0), (2, 3), (0, 1), (3, 1), (1, 0), (3, 0)]


def test_order_depends_on_seed_and_epoch():
    sizes = np.array([50, 50])
    orders = {tuple(ids(*Order(seed, sizes).locate(epoch, 0, 100))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_window_holds_only_its_shards():
    order = Order(0, np.array([10] * 6), window_shards=2)
    shards, _ = order.locate(0, 0, 60)
    for start in range(0, 60, 20):
        assert len(set(shards[start : start + 20].tolist())) == 2


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_any_range_is_a_slice_of_the_whole(sizes):
    order = Order(1, np.array(sizes), window_shards=2)
    total = order.num_samples
    axis = [pair for epoch in range(3) for pair in ids(*order.locate(epoch, 0, total))]
    for position in sorted({0, 1, total // 2, total - 1, total, total + 1, 2 * total - 1} & set(range(2 * total))):
        cold = Order(1, np.array(sizes), window_shards=2)
        count = min(total, 23)
        assert row_ids(cold.rows(position, count)) == axis[position : position + count]


def test_range_outside_the_epoch_is_refused():
    order = Order(0, np.array([4]))
    with pytest.raises(ValueError, match="places 3 to 5 are outside an epoch of 4"):
        order.locate(0, 3, 2)


def test_no_sample_is_refused():
    with pytest.raises(InputError, match="no usable sample"):
        Order(0, np.zeros(3, np.int64))


def test_pickled_order_is_small_and_equal():
    order = Order(0, np.array([1000] * 40))
    expected = row_ids(order.rows(12_345, 50))
    data = pickle.dumps(order)
    assert len(data) < 2000
    assert row_ids(pickle.loads(data).rows(12_345, 50)) == expected


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("batch", [8, 24])
def test_ranks_and_micro_batches_concatenate_to_the_single_process_batch(sizes, batch):
    """Any world size and accumulation, fewer shards than ranks, N < B, batches over epoch ends."""
    order = Order(2, np.array(sizes), window_shards=3)
    steps = range(12)
    single = steps_of(order, batch, steps, micro=batch, world_size=1)
    assert [position for position, _, _ in single] == list(range(12 * batch))
    for world_size in (1, 2, 3, 4, 8):
        for accum in (1, 2):
            if batch % (world_size * accum) == 0:
                micro = batch // (world_size * accum)
                assert steps_of(order, batch, steps, micro=micro, world_size=world_size) == single


def test_batch_larger_than_the_data_holds_each_epoch_whole():
    order = Order(0, np.array([3, 2]))
    rows = plan_for(order, 12).micro_batch(0)
    assert rows.epochs.tolist() == [0] * 5 + [1] * 5 + [2] * 2
    assert sorted(row_ids(rows)[:5]) == sorted(row_ids(rows)[5:10])


def test_every_tail_is_the_same_in_a_fresh_process():
    """Resume chain 8 -> 2 -> 8 ranks; resume at an epoch end (step 5), inside the first epoch and in a later one."""
    sizes = [9, 4, 16, 11]  # N = 40, B = 8: step 5 starts epoch 1
    order = Order(5, np.array(sizes), window_shards=2)
    whole = steps_of(order, 8, range(12), micro=1, world_size=8)
    code = (
        "import sys, numpy as np; from beit.common.reading.order import *\n"
        f"order = Order(5, np.array({sizes}), window_shards=2)\n"
        "for step in range(12):\n"
        "    rows = order.rows(step * 8, (12 - step) * 8)\n"
        "    print(list(zip(rows.positions.tolist(), rows.epochs.tolist(), "
        "zip(rows.shard_ids.tolist(), rows.ranks.tolist()))))\n"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    for step, line in enumerate(lines):
        assert line == str(whole[step * 8 :])
    chain = [
        *steps_of(order, 8, range(0, 5), micro=1, world_size=8),
        *steps_of(order, 8, range(5, 7), micro=2, world_size=2),
        *steps_of(order, 8, range(7, 12), micro=1, world_size=8),
    ]
    assert chain == whole


def test_valid_world_sizes_are_listed():
    assert valid_world_sizes(24, 4) == [1, 2, 3, 6]
    assert valid_world_sizes(24, 5) == []
    with pytest.raises(
        InputError, match=r"global_batch_size \(24\).*micro-batches of 4 on 4 ranks; start one of 1, 2, 3, 6"
    ):
        grad_accum_steps_for(24, 4, 4)
    with pytest.raises(InputError, match=r"micro_batch_size \(5\) must divide global_batch_size \(24\)"):
        grad_accum_steps_for(24, 5, 1)


def test_plan_refuses_sizes_that_do_not_multiply():
    assert BatchPlan(order=Order(0, np.array([9])), global_batch_size=24, micro_batch_size=4).grad_accum_steps == 6
    with pytest.raises(InputError, match=r"\(24\) cannot be cut into micro-batches of 4 on 4 ranks"):
        BatchPlan(order=Order(0, np.array([9])), global_batch_size=24, micro_batch_size=4, world_size=4)


def state(**changes):
    plan = plan_for(Order(0, np.array([40])), 8)
    return dataclasses.replace(plan.state(steps_completed=5, num_views=16, index_sha256="abc"), **changes)


def test_state_round_trip_and_step():
    assert DataState.from_json(dataclasses.asdict(state())) == state()
    assert state().samples_consumed == 40
    assert state().step == 5


def test_state_of_another_version_or_damaged_is_refused():
    with pytest.raises(InputError, match=r"version \(2\) must be 1"):
        DataState.from_json({**dataclasses.asdict(state()), "version": 2})
    damaged = dataclasses.asdict(state())
    del damaged["views"]
    with pytest.raises(InputError, match="damaged"):
        DataState.from_json(damaged)


def test_resume_ignores_the_position_only():
    check_resume(state(), state(samples_consumed=0))


def test_other_data_are_taken_on_purpose_where_positions_mean_the_same(caplog):
    caplog.set_level("INFO")
    with pytest.raises(InputError, match="data was index abc, is index def.*run.allow_data_change=true"):
        check_resume(state(), state(index_sha256="def"))
    check_resume(state(), state(index_sha256="def", views=4), allow_data_change=True)
    assert "views was 16, is 4; data was index abc, is index def" in caplog.text
    with pytest.raises(InputError, match="seed was 0, is 1.; restore them or start a new run"):
        check_resume(state(), state(seed=1), allow_data_change=True)


def test_resume_names_every_difference():
    with pytest.raises(
        InputError, match="seed was 0, is 1; global_batch_size was 8, is 16; data was index abc, is index def"
    ):
        check_resume(state(), state(seed=1, global_batch_size=16, index_sha256="def"))
