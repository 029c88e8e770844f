"""What a world says of itself, and the limits it is made with; several ranks are in tests/launch."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from beit.common.processes import distributed
from beit.common.processes.distributed import INIT_TIMEOUT_SECONDS, World, init_distributed


def world(**changes: Any) -> World:
    return World(**{"rank": 0, "local_rank": 0, "world_size": 1, "device": torch.device("cpu"), **changes})


@pytest.mark.parametrize(("cores", "expected"), [(1, "1 core"), (8, "8 cores")])
def test_one_rank_says_so(
    cores: int, expected: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distributed, "available_cores", lambda: cores)
    with caplog.at_level("INFO", logger="beit"):
        world().announce()
    assert caplog.messages == [f"1 rank on the CPU of this machine ({expected})"]


def test_ranks_with_gpus_say_how_many_and_which(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card A")
    monkeypatch.setattr(World, "gather", lambda self, value: [value, ("elsewhere", "Card B"), value])
    with caplog.at_level("INFO", logger="beit"):
        world(world_size=3, device=torch.device("cuda", 0)).announce()
        world(world_size=3, rank=1, device=torch.device("cuda", 1)).announce()
    assert caplog.messages == ["3 ranks on 3 GPUs of 2 machines (Card A, Card B)"]


def test_the_limit_of_collectives_is_set_here_and_by_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda *words, **named: given.update(named))
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    init_distributed()
    assert given["timeout"] == timedelta(seconds=INIT_TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    ("world_size", "share", "given", "threads"),
    [(1, 2, None, 2), (1, 64, None, 8), (2, 4, None, 4), (2, 16, None, 16), (1, 2, "8", 8), (2, 2, "8", 8)],
)
def test_torch_takes_a_rank_s_share_of_the_cores(world_size, share, given, threads, monkeypatch):
    now = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    monkeypatch.setattr(distributed, "cores_per_rank", lambda _: share)
    monkeypatch.setattr(distributed, "keep_freed_memory", lambda: True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    distributed.prepare_cpu(world_size)
    assert now == [threads]
