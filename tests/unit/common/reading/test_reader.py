import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beit.common.errors import InputError, RunFailed
from beit.common.processes.signals import stop_on_signals
from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import build_order
from beit.common.reading.fetcher import StoppedWaiting
from beit.common.reading.reader import SampleInfo, build_loader, collate, sequential_loader
from beit.common.storage.place import RemoteError
from beit.tests import fake_dataset
from beit.tests.fake_dataset import AtSample, FakeDataset, to_pixels

SIZES = [7, 1, 12, 3]  # N = 23
META = ("keys", "sample_ids", "view_indices", "epochs", "positions")


def plan_of(dataset, *, batch=8, micro=2, world_size=1, rank=0):
    order = build_order(dataset, seed=3, window_shards=2)
    return BatchPlan(
        order=order,
        global_batch_size=batch,
        micro_batch_size=micro,
        world_size=world_size,
        rank=rank,
    )


def read(dataset, *, start_step=0, num_steps=4, transform=to_pixels, num_workers=0, timeout=60.0, budget=0.5, **plan):
    config = ReaderConfig(num_workers=num_workers, timeout_seconds=timeout, bad_sample_budget=budget)
    return build_loader(
        dataset,
        plan_of(dataset, **plan),
        start_step=start_step,
        num_steps=num_steps,
        transform=transform,
        config=config,
    )


def rows_of(batches):
    return [row for batch in batches for row in zip(*(batch[name] for name in META), strict=True)]


def test_batches_hold_what_the_order_says():
    dataset = FakeDataset(SIZES)
    batches = list(read(dataset))
    assert len(batches) == 16
    rows = plan_of(dataset).order.rows(0, 32)
    assert list(itertools.chain(*(batch["positions"] for batch in batches))) == list(range(32))
    assert list(itertools.chain(*(batch["epochs"] for batch in batches))) == [0] * 23 + [1] * 9
    expected = [dataset.sample_id(*pair) for pair in zip(rows.shard_ids, rows.ranks, strict=True)]
    assert list(itertools.chain(*(batch["sample_ids"] for batch in batches))) == expected


def test_the_data_set_hears_what_comes_and_when_it_ends():
    dataset = FakeDataset(SIZES)
    rows = plan_of(dataset).order.rows(0, 16)
    list(read(dataset, num_steps=2))
    announced = [position for kind, positions in dataset.expected if kind == "rows" for position in positions]
    assert announced == list(range(16))
    near = [shards for kind, shards in dataset.expected if kind == "shards"]
    assert set(rows.shard_ids[:8].tolist()) <= set(near[0])
    assert dataset.expected[0][0] == "shards" and dataset.expected[-1] == ("shards", [])


def test_an_evaluation_announces_rows_but_no_shards():
    dataset = FakeDataset(SIZES)
    list(sequential_loader(dataset, transform=to_pixels, micro_batch_size=4, config=ReaderConfig(num_workers=0)))
    assert {kind for kind, _ in dataset.expected} == {"rows"}


def test_many_rows_are_announced_in_parts():
    dataset = FakeDataset([300])
    list(read(dataset, num_steps=1, batch=200, micro=200))
    assert [len(rows) for kind, rows in dataset.expected if kind == "rows"] == [64, 64, 64, 8]


def test_workers_see_the_environment_of_the_moment(monkeypatch):
    """Not that of the fork server, which an earlier training may have started."""
    list(read(FakeDataset(SIZES), num_workers=1, num_steps=1))
    monkeypatch.setenv("BEIT_TEST_VARIABLE", "42")
    batches = list(read(FakeDataset(SIZES), num_workers=1, num_steps=1, transform=fake_dataset.to_variable))
    assert {int(value) for batch in batches for value in batch["variable"]} == {42}


def test_pixels_are_stacked_uint8_tensors_that_belong_to_the_ids():
    for batch in read(FakeDataset(SIZES)):
        assert batch["images"].dtype == torch.uint8
        assert batch["images"].shape == (2, 2, 2, 2)
        for pixels, sample_id in zip(batch["images"], batch["sample_ids"], strict=True):
            assert f"{int(pixels[0, 0, 0]):03d}/k{int(pixels[1, 0, 0])}" == sample_id


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(num_workers):
    dataset = FakeDataset(SIZES)
    batches = list(read(dataset, num_workers=num_workers, num_steps=5))
    assert rows_of(batches) == rows_of(read(dataset, num_steps=5))
    pids = [set(batch["pids"].tolist()) for batch in batches]
    assert len(set.union(*pids)) == num_workers
    assert all(pids[index] == pids[index % num_workers] for index in range(len(pids)))
    assert os.getpid() not in set.union(*pids)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_consume_exactly_what_one_process_does(world_size):
    dataset = FakeDataset([5, 2])  # fewer shards than ranks, N < B
    single = rows_of(read(dataset))
    ranks = [list(read(dataset, world_size=world_size, rank=rank)) for rank in range(world_size)]
    per_step = 4 // world_size
    together = [
        row
        for step in range(4)
        for batches in ranks
        for row in rows_of(batches[step * per_step : (step + 1) * per_step])
    ]
    assert together == single


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_gives_the_tail(num_workers):
    dataset = FakeDataset(SIZES)
    whole = rows_of(read(dataset, num_steps=6))
    tail = rows_of(read(dataset, start_step=4, num_steps=2, num_workers=num_workers, micro=4))
    assert tail == whole[4 * 8 :]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_bad_sample_is_replaced_by_the_next_good_one_of_its_shard(num_workers):
    clean = rows_of(read(FakeDataset(SIZES), num_steps=3))
    loader = read(FakeDataset(SIZES, bad=["002/k4", "002/k5", "000/k6"]), num_steps=3, num_workers=num_workers)
    rows = rows_of(loader)
    replaced = {"002/k4": "002/k6", "002/k5": "002/k6", "000/k6": "000/k0"}
    assert [row[1] for row in rows] == [replaced.get(row[1], row[1]) for row in clean]
    assert [row[4] for row in rows] == list(range(24))
    assert loader.bad_samples.counts == {"truncated": 3}


def test_the_reports_reach_the_consumer_in_the_batch():
    batches = list(read(FakeDataset(SIZES, bad=["002/k4"]), num_steps=3))
    reports = [report for batch in batches for report in batch["bad_samples"]]
    assert {(report.sample_id, report.reason, report.detail) for report in reports} == {
        ("002/k4", "truncated", "made so by the test")
    }


def test_the_budget_is_enforced_where_batches_are_consumed():
    loader = read(FakeDataset(SIZES, bad=["002/k4", "002/k5"]), num_steps=3, budget=0.05, num_workers=2)
    with pytest.raises(InputError, match=r"2 of 23 samples cannot be used.* allows 1; first: 002/k"):
        list(loader)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_without_any_good_sample_is_an_input_error(num_workers):
    dataset = FakeDataset([4, 2], bad=["001/k0", "001/k1"])
    with pytest.raises(InputError, match=r"^none of the 2 samples of shard 001 can be used \(first: 001/k") as caught:
        list(read(dataset, num_workers=num_workers, budget=0.9))
    assert "\n" not in str(caught.value)


def test_input_error_of_a_worker_keeps_its_one_line():
    transform = AtSample("002/k4", fake_dataset.raise_input_error)
    with pytest.raises(InputError, match="^shard 000 is gone; put it back$"):
        list(read(FakeDataset(SIZES), transform=transform, num_workers=2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_server_that_went_away_is_no_wrong_input(num_workers):
    transform = AtSample("002/k4", fake_dataset.lose_server)
    with pytest.raises((RunFailed, RemoteError), match="^https://h/002.tar cannot be reached$"):
        list(read(FakeDataset(SIZES), transform=transform, num_workers=num_workers))


def test_error_of_a_worker_names_worker_and_sample():
    transform = AtSample("002/k4", fake_dataset.raise_value_error)
    with pytest.raises(
        RuntimeError, match=r"(?s)^data worker [01] failed at sample 002/k4.*ValueError: no such colour"
    ):
        list(read(FakeDataset(SIZES), transform=transform, num_workers=2))


def test_killed_worker_is_named_before_the_timeout(monkeypatch):
    monkeypatch.setattr("beit.common.reading.fetcher.POLL_SECONDS", 0.2)
    loader = read(FakeDataset(SIZES), transform=AtSample("002/k4", fake_dataset.die), num_workers=2)
    with pytest.raises(RuntimeError, match=r"data worker [01] \(pid \d+\) was killed by SIGKILL; last sample 002/k4"):
        list(loader)


def test_hung_worker_is_named_and_gone(monkeypatch):
    monkeypatch.setattr("beit.common.reading.fetcher.POLL_SECONDS", 0.2)
    loader = read(FakeDataset(SIZES), transform=AtSample("002/k4", fake_dataset.hang), num_workers=2, timeout=1.0)
    with pytest.raises(
        RuntimeError, match=r"data worker [01] \(pid \d+\) sent nothing for 1 s .* last sample 002/k4"
    ) as caught:
        list(loader)
    pid = int(str(caught.value).split("pid ")[1].split(")")[0])
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("action", [fake_dataset.stop, fake_dataset.stop_with_server])
def test_a_stopped_worker_is_named_and_gone_and_so_is_a_stopped_server(action, caplog):
    loader = read(FakeDataset(SIZES), transform=AtSample("002/k4", action), num_workers=2, timeout=2.0)
    with pytest.raises(
        RunFailed, match=r"data worker [01] \(pid \d+, stopped by SIGSTOP\) sent nothing for 2 s .* sample 002/k4$"
    ) as caught:
        list(loader)
    (warning,) = caplog.messages
    assert re.match(
        r"waiting for data worker [01] \(pid \d+, stopped by SIGSTOP\) since 1 s; last sample 002/k4", warning
    )
    pid = int(str(caught.value).split("pid ")[1].split(",")[0])
    assert not is_running(pid)
    assert not multiprocessing.active_children()
    assert len(list(read(FakeDataset(SIZES), num_workers=2))) == 16  # from a server that answers


def test_a_worker_that_is_stopped_while_its_batch_is_on_the_way_holds_nobody():
    """Torch's queue has the batch, but the worker has to hand over the memory it is in."""
    batches = iter(read(FakeDataset(SIZES), num_workers=1, num_steps=1000, timeout=2.0))
    next(batches)
    time.sleep(0.5)  # the next ones are in the queue
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(RunFailed, match="sent nothing for 2 s"):
        list(batches)


def test_a_stop_signal_is_heard_while_a_worker_is_silent():
    loader = read(FakeDataset(SIZES), transform=AtSample("002/k4", fake_dataset.stop), num_workers=2)
    with stop_on_signals(), pytest.raises(StoppedWaiting, match=r"stopped \(SIGTERM\) while waiting for data worker"):
        for _ in replace(loader, patience_seconds=0.5):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (fake_dataset.fill_shared_memory, r"^shared memory \(/dev/shm\) is full: [\d.e+]+ MB in all, .*--shm-size=8g"),
        (fake_dataset.open_too_many, r"^this process may have \d+ files open \(ulimit -n\), too few for its workers"),
    ],
)
def test_what_runs_out_between_processes_is_named(action, message):
    with pytest.raises(RunFailed, match=message):
        list(read(FakeDataset(SIZES), transform=AtSample("002/k4", action), num_workers=2))


def test_a_worker_that_has_finished_is_not_taken_for_dead_while_another_is_slow(monkeypatch):
    monkeypatch.setattr("beit.common.reading.fetcher.POLL_SECONDS", 0.2)
    dataset = FakeDataset(SIZES)
    rows = plan_of(dataset).order.rows(6, 2)  # the last micro-batch of four, owed by worker 1
    victim = dataset.sample_id(int(rows.shard_ids[0]), int(rows.ranks[0]))
    loader = read(dataset, num_steps=1, transform=AtSample(victim, fake_dataset.dawdle), num_workers=2)
    assert len(list(loader)) == 4


def test_workers_survive_the_signals_of_their_group():
    transform = AtSample("002/k4", fake_dataset.signal_group_member)
    dataset = FakeDataset(SIZES)
    batches = list(read(dataset, transform=transform, num_workers=2))
    assert rows_of(batches) == rows_of(read(dataset))
    (server,) = set(batches[0]["parents"].tolist())
    assert Path(f"/proc/{server}/cmdline").read_bytes(), "the fork server died of the signal"


CROWD = """
import os
from torch.utils.data import DataLoader
import beit.common.reading.loader
DataLoader([0], num_workers=os.cpu_count() + 1)
"""


def test_more_workers_than_cores_are_no_reason_for_a_warning():
    result = subprocess.run([sys.executable, "-c", CROWD], check=True, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""


ORPHANS = """
from beit.common.reading.reader import build_loader
from beit.common.reading.config import ReaderConfig
from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.dataset import build_order
from beit.tests.fake_dataset import FakeDataset, to_pixels
if __name__ == "__main__":
    data = FakeDataset([50])
    order = build_order(data, seed=0, window_shards=1)
    plan = BatchPlan(order=order, global_batch_size=2, micro_batch_size=2)
    config = ReaderConfig(num_workers=2)
    loader = build_loader(data, plan, start_step=0, num_steps=10**6, transform=to_pixels, config=config)
    pids = set()
    for batch in loader:
        pids |= {*batch["pids"].tolist(), *batch["parents"].tolist()}
        if len(pids) == 3:
            print(*pids, flush=True)
"""


@pytest.mark.fault
def test_workers_and_their_server_end_when_the_training_is_killed(tmp_path):
    (tmp_path / "training.py").write_text(ORPHANS)
    with subprocess.Popen([sys.executable, tmp_path / "training.py"], stdout=subprocess.PIPE, text=True) as training:
        pids = [int(pid) for pid in training.stdout.readline().split()]
        training.kill()
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pids))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_consumer_may_stop_early():
    batches = iter(read(FakeDataset(SIZES), num_workers=2, num_steps=1000))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_random_numbers_of_the_training_alone(num_workers):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(read(FakeDataset(SIZES), num_workers=num_workers, num_steps=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_sequential_loader_reads_every_sample_once_in_order(num_workers, world_size):
    dataset = FakeDataset(SIZES)
    config = ReaderConfig(num_workers=num_workers)
    parts = [
        rows_of(
            sequential_loader(
                dataset, transform=to_pixels, micro_batch_size=4, rank=rank, world_size=world_size, config=config
            )
        )
        for rank in range(world_size)
    ]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    expected = [dataset.sample_id(shard, rank) for shard, size in enumerate(SIZES) for rank in range(size)]
    assert [row[1] for part in parts for row in part] == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sequential_loader_leaves_bad_samples_out_and_keeps_the_order(num_workers):
    bad = ["000/k0", "000/k1", "000/k2", "000/k3", "002/k7"]  # the first micro-batch is left empty
    dataset = FakeDataset(SIZES, bad=bad)
    config = ReaderConfig(num_workers=num_workers, bad_sample_budget=0.5)
    loader = sequential_loader(dataset, transform=to_pixels, micro_batch_size=4, config=config)
    positions = [row[4] for row in rows_of(loader)]
    assert positions == [position for position in range(23) if position not in (0, 1, 2, 3, 15)]
    assert len(loader.bad_samples) == 5


def test_collate_stacks_numbers_arrays_and_tensors():
    info = SampleInfo("s/a", 0, 0, 0)
    samples = [
        {
            "__key__": "a",
            "__info__": info,
            "__bad__": [],
            "label": 3,
            "grid": np.ones((2, 2), bool),
            "t": torch.zeros(3),
        }
        for _ in range(4)
    ]
    batch = collate(samples)
    assert batch["label"].dtype == torch.int64
    assert batch["grid"].shape == (4, 2, 2)
    assert batch["t"].shape == (4, 3)
