"""Which micro-batch is taken where none is set, that it is kept, and that what cannot fit is refused at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from beit.common.errors import InputError, ResumableStop, RunFailed
from beit.common.forecast import micro_batch
from beit.common.forecast.micro_batch import divisors, largest_that_fits, quick_size
from beit.common.processes.distributed import World
from beit.common.training import micro_batches
from beit.common.training.micro_batches import recorded_size
from beit.pretrain.train import PretrainTask, run
from beit.tests.support import write_store
from beit.tests.toy_training import ToyTask, toy_config, train_toy
from beit.tests.unit.pretrain.test_train import make_config

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize(
    ("share", "together", "wanted", "size"),
    [
        (256, 1, 16, 16),
        (2048, 1, 16, 16),
        (500, 1, 16, 20),
        (30, 1, 16, 30),
        (30, 2, 4, 6),
        (7, 1, 16, 7),
        (7, 1, 4, 7),
        (34, 1, 16, 17),
        (8, 1, 48, 8),
        (1, 1, 16, 1),
        (509, 1, 16, 509),
        (9, 2, 4, 9),
    ],
)
def test_on_a_cpu_the_smallest_quick_divisor_is_taken(share: int, together: int, wanted: int, size: int) -> None:
    assert quick_size(divisors(share, together), wanted) == size


@pytest.mark.parametrize("limit", range(0, 25))
def test_the_largest_that_fits_is_found_in_few_tries(limit: int) -> None:
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    sizes = divisors(24)  # eight of them
    expected = max((size for size in sizes if size <= limit), default=None)
    assert largest_that_fits(sizes, fits) == expected
    assert tried[0] == 24 and len(tried) <= 4 and len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    ("record", "share", "size"),
    [({}, 8, None), ({"micro_batch_size": 4}, 8, 4), ({"micro_batch_size": 4}, 6, 3), ({"micro_batch_size": 9}, 6, 6)],
)
def test_a_run_goes_on_with_what_it_recorded_or_the_next_smaller(
    record: dict[str, int], share: int, size: int | None
) -> None:
    assert recorded_size(record, share) == size


@pytest.mark.parametrize(
    ("size", "before", "ranks", "share", "found"), [(4, 2, 1, 8, 8), (8, 1, 2, 4, 4), (2, 2, 1, 8, 4), (2, 1, 4, 2, 1)]
)
def test_what_all_ranks_see_at_a_time_stays_where_it_matters(
    size: int, before: int, ranks: int, share: int, found: int
) -> None:
    assert recorded_size({"micro_batch_size": size, "world_size": before}, share, ranks=ranks) == found


def chosen_by(run_path: Path) -> list[int]:
    return [start["micro_batch_size"] for start in json.loads((run_path / "environment.json").read_text())["starts"]]


def test_a_resumed_run_keeps_its_micro_batch_where_another_machine_would_take_another(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Drop path makes the difference visible: its draws are per micro-batch."""
    config = make_config(model={"drop_path": 0.5}, held_out={"train_images": 0})
    caplog.set_level("INFO")
    monkeypatch.setattr(micro_batch, "_TOKENS", 4 * 17)
    run(config, store=store.location, run_dir=tmp_path / "whole")
    assert "micro-batches of 4 images, 2 per step (train.micro_batch_size)" in caplog.messages
    halves = replace(config, train=replace(config.train, steps=6))
    step = PretrainTask.forward

    def stop_at_3(self: PretrainTask, model: Any, batch: Any, number: int) -> Any:
        if number == 3:
            raise ResumableStop("enough")
        return step(self, model, batch, number)

    monkeypatch.setattr(PretrainTask, "forward", stop_at_3)
    with pytest.raises(ResumableStop, match="enough"):
        run(halves, store=store.location, run_dir=tmp_path / "cut")
    monkeypatch.setattr(PretrainTask, "forward", step)
    monkeypatch.setattr(micro_batch, "_TOKENS", 10**6)
    run(halves, store=store.location, run_dir=tmp_path / "cut")
    assert chosen_by(tmp_path / "cut") == [4, 4]
    weights = [(tmp_path / name / "encoder/model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    run(config, store=store.location, run_dir=tmp_path / "other")  # else the test would show nothing
    assert (tmp_path / "other/encoder/model.safetensors").read_bytes() != weights[0]
    assert chosen_by(tmp_path / "other") == [8]


def test_what_is_set_is_taken_and_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop):
        train_toy(tmp_path, toy_config("stop_at=3"))
    train_toy(tmp_path, toy_config("train.micro_batch_size=4"))
    assert chosen_by(tmp_path) == [2, 4]


def test_without_a_setting_a_model_that_is_no_vision_transformer_takes_its_whole_share(tmp_path: Path) -> None:
    train_toy(tmp_path, toy_config("train.micro_batch_size=none"))
    assert chosen_by(tmp_path) == [8]


def test_what_cannot_fit_is_refused_before_it_begins_with_the_setting_that_helps(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "_VALUES_KEPT", 1000)  # so that weights are the smaller part
    config = make_config(train={"micro_batch_size": 8})
    task = PretrainTask(config, store, ALONE)
    sizes = {size: micro_batches.needed_bytes(task.model, config, size, ALONE) for size in (1, 8)}
    assert sizes[1] < sizes[8]
    monkeypatch.setattr(micro_batches, "free_memory_bytes", lambda device: sizes[8] - 1)
    with pytest.raises(InputError, match=r"micro-batches of 8 images needs more than .* free; leave train.micro_b"):
        run(config, store=store.location, run_dir=tmp_path / "run")
    monkeypatch.setattr(micro_batches, "free_memory_bytes", lambda device: sizes[1] - 1)
    with pytest.raises(InputError, match="free; take a smaller model"):
        run(config, store=store.location, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), torch.cuda.OutOfMemoryError("full")]
)
def test_memory_that_runs_out_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ToyTask, "forward", full)
    with pytest.raises(
        RunFailed, match=r"^out of memory with micro-batches of 2 images; train.micro_batch_size=1 needs"
    ):
        train_toy(tmp_path, toy_config())


def test_little_memory_makes_small_micro_batches(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    task = PretrainTask(config, store, ALONE)
    needed = micro_batches.needed_bytes(task.model, config, 4, ALONE)
    monkeypatch.setattr(micro_batches, "free_memory_bytes", lambda device: int(needed / 0.8) + 9)
    micro_batches.settle_micro_batch(task, config, checkpoint=None, world=ALONE)
    assert (task.data.plan.micro_batch_size, task.data.plan.grad_accum_steps) == (4, 2)


def test_trying_on_a_gpu_leaves_no_trace(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU in its place, whose memory is full from 5 images on."""
    config = make_config(model={"drop_path": 0.5})
    task = PretrainTask(config, store, ALONE)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    random = torch.get_rng_state()
    forward, tried = task.forward, []

    def full_from_5(model: Any, batch: Any, step: int) -> Any:
        tried.append(len(batch["images"]))
        assert {len(values) for values in batch.values()} <= {0, tried[-1]}
        if tried[-1] >= 5:
            raise torch.cuda.OutOfMemoryError("full")
        return forward(model, batch, step)

    monkeypatch.setattr(task, "forward", full_from_5)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100, 100))
    assert micro_batches._try_sizes(task, config, [1, 2, 4, 8], ALONE) == 4
    assert tried == [8, 2, 4]
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(InputError, match="pass of 8 images does not fit into the memory of this GPU"):
        micro_batches._try_sizes(task, config, [8], ALONE)


def test_a_tokenizer_looks_across_its_whole_share() -> None:
    task = ToyTask.__new__(ToyTask)
    task.data = type("Data", (), {"rows_together": None})()
    assert micro_batches._choose(task, toy_config(), 8, ALONE) is None
