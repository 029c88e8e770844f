"""Ranks that wait for each other say so, listen to signals, and do not wait for ever."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from beit.common.errors import InputError, ResumableStop
from beit.common.processes import rendezvous
from beit.common.processes.rendezvous import meet
from beit.common.processes.signals import stop_on_signals


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port; this process was started by nobody."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.delenv("BEIT_LAUNCHER_PID", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_all_get_the_same_store_when_all_are_there(port: int) -> None:
    stores = []  # the first one serves the others

    def rank(number: int) -> str:
        store = meet(rank=number, world_size=3, address="127.0.0.1", port=port, timeout_seconds=30)
        stores.append(store)
        store.set(f"from {number}", str(number))
        return "".join(store.get(f"from {other}").decode() for other in range(3))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(rank, range(3))) == ["012"] * 3


@pytest.mark.parametrize(("rank", "missing"), [(0, "ranks 1, 2"), (2, "rank 0")])
def test_who_waits_for_whom_is_said_at_once_and_again_at_the_end(
    port: int, rank: int, missing: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", str(rank))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    whom = f"{missing} at port {port} of 127.0.0.1"
    with pytest.raises(InputError, match=f"rank {rank} of 3 waited 1 s for {whom} .*, unset SLURM_PROCID and SLURM_"):
        meet(rank=rank, world_size=3, address="127.0.0.1", port=port, timeout_seconds=1)
    (line,) = caplog.messages
    assert line == (f"rank {rank} of 3 waits up to 1 s for {whom} (SLURM_PROCID and SLURM_STEP_NUM_TASKS say so)")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_hears_a_signal(port: int, rank: int) -> None:
    with stop_on_signals(), pytest.raises(ResumableStop, match=f"stopped .SIGTERM. while rank {rank} of 2 waited"):
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        meet(rank=rank, world_size=2, address="127.0.0.1", port=port, timeout_seconds=60)


def test_a_taken_port_is_bad_input(port: int) -> None:
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1.* is taken by another program"):
            meet(rank=0, world_size=2, address="127.0.0.1", port=port, timeout_seconds=5)


def test_long_lists_of_ranks_are_cut() -> None:
    assert rendezvous._listed(list(range(1, 12))) == "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more"
