"""A window of steps is recorded, in a form that trace viewers read."""

import gzip
import json
import subprocess
import sys

import pytest
import torch

from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.training.measure import ProfileWindow, children_memory_bytes, free_memory_bytes
from beit.tests.toy_training import toy_config, train_toy


def names_in(path):
    with gzip.open(path) as file:
        return [event.get("name", "") for event in json.load(file)["traceEvents"]]


def test_exactly_the_steps_of_the_window_are_recorded(tmp_path):
    world = World(rank=3, local_rank=0, world_size=4, device=torch.device("cpu"))
    window = ProfileWindow(range(2, 4), tmp_path / "profile", world)
    for step in range(6):
        window.before(step)
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(4).sum()
    window.close()
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps_2-3_rank3.trace.json.gz"
    assert {name for name in names_in(trace) if name.startswith("step ")} == {"step 2", "step 3"}


def test_run_that_ends_inside_its_window_leaves_what_there_is(tmp_path):
    train_toy(tmp_path, toy_config("profile.steps=6:100"))
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "steps_6-7_rank0.trace.json.gz"
    assert "aten::addmm" in names_in(trace)


def test_window_behind_the_end_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"profile\.steps \(8:9\).*8 steps"):
        train_toy(tmp_path / "run", toy_config("profile.steps=8:9"))
    assert not (tmp_path / "run").exists()


def test_without_a_window_nothing_is_written(tmp_path):
    train_toy(tmp_path, toy_config())
    assert not (tmp_path / "profile").exists()


@pytest.mark.gpu
def test_a_gpu_leaves_a_memory_snapshot_beside_the_trace(tmp_path):
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cuda", 0))
    window = ProfileWindow(range(1, 2), tmp_path, world)
    for step in range(3):
        window.before(step)
        torch.ones(1024, device=world.device).sum()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "steps_1-1_rank0.memory.pickle",
        "steps_1-1_rank0.trace.json.gz",
    ]


def test_something_is_free_here():
    free = free_memory_bytes(torch.device("cpu"))
    assert free is None or free > 0


def test_memory_of_children_is_counted():
    before = children_memory_bytes()
    code = "held = b'x' * 50_000_000; print(len(held), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        more = children_memory_bytes() - before
        child.communicate(b"\n")
    assert 45_000_000 < more < 100_000_000
