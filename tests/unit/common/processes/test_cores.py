"""A process counts the cores it may use, and a rank its share of them; its threads sleep while they wait."""

import os
import subprocess
import sys

import pytest

from beit.common.processes import cores as cores_module
from beit.common.processes.cores import available_cores, cores_per_rank, cpu_quota, sleep_while_waiting

HOW_TO_WAIT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that makes this a machine of so many cores, of which this process may use some."""
    folder = tmp_path / "machine"
    folder.mkdir()
    monkeypatch.setattr(cores_module, "control_groups", lambda _: [(folder, 2)])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)

    def make(cores: int, *, allowed: int, quota: str = "max 100000"):
        (folder / "cpu.max").write_text(quota)
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)

    return make


def test_a_process_counts_the_cores_it_is_bound_to(machine):
    machine(64, allowed=4)
    assert available_cores() == 4
    assert cores_per_rank(1) == 4


def test_without_affinity_it_is_the_machine(machine, monkeypatch):
    machine(8, allowed=2)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == 8


@pytest.mark.parametrize(
    ("allowed", "world_size", "local", "expected"),
    [
        (16, 4, {}, 4),  # not bound: an equal share
        (4, 4, {}, 4),  # each rank bound to its own
        (16, 8, {"LOCAL_WORLD_SIZE": "2"}, 8),  # the others are on other machines
        (16, 8, {"LOCAL_SIZE": "4"}, 4),  # as DeepSpeed's launcher calls it
        (16, 64, {}, 1),
    ],
)
def test_ranks_share_the_cores_of_their_machine(machine, monkeypatch, allowed, world_size, local, expected):
    machine(16, allowed=allowed)
    for name, value in local.items():
        monkeypatch.setenv(name, value)
    assert cores_per_rank(world_size) == expected


@pytest.mark.parametrize(
    ("quota", "allowed", "cores"),
    [
        ("400000 100000", 64, 4),
        ("400000 100000", 2, 2),
        ("160000 100000", 64, 2),
        ("10000 100000", 64, 1),
        ("max 100000", 64, 64),
    ],
)
def test_a_quota_is_heeded(machine, quota, allowed, cores):
    machine(64, allowed=allowed, quota=quota)
    assert available_cores() == cores_per_rank(1) == cores


@pytest.mark.parametrize(("ranks", "share"), [(2, 4), (4, 2), (16, 1)])
def test_ranks_share_what_a_quota_leaves(machine, ranks, share):
    machine(64, allowed=64, quota="800000 100000")
    assert cores_per_rank(ranks) == share


@pytest.mark.parametrize(
    ("version", "files", "quota"),
    [
        (2, {"cpu.max": "150000 100000\n"}, 1.5),
        (2, {"cpu.max": "max 100000\n"}, None),
        (1, {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
        (1, {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        (2, {}, None),
        (1, {}, None),
    ],
)
def test_quotas_of_both_versions_of_control_groups_are_read(monkeypatch, tmp_path, version, files, quota):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    above = tmp_path / "above"  # of several groups the least holds
    above.mkdir()
    (above / "cpu.max").write_text("900000 100000" if quota else "max 100000")
    monkeypatch.setattr(cores_module, "control_groups", lambda _: [(tmp_path, version), (above, 2)])
    assert cpu_quota() == quota


def forget_how_to_wait(monkeypatch):
    for name in HOW_TO_WAIT:
        monkeypatch.setenv(name, "")  # so that it is put back as it was
        monkeypatch.delenv(name)


def test_torch_sleeps_where_nobody_decided_otherwise(monkeypatch):
    forget_how_to_wait(monkeypatch)
    sleep_while_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "passive" and 0 < int(os.environ["GOMP_SPINCOUNT"]) < 10_000


@pytest.mark.parametrize("name", HOW_TO_WAIT)
def test_whoever_said_how_to_wait_is_heeded(monkeypatch, name):
    forget_how_to_wait(monkeypatch)
    monkeypatch.setenv(name, "1")
    sleep_while_waiting()
    assert {other: os.environ[other] for other in HOW_TO_WAIT if other in os.environ} == {name: "1"}


def test_every_command_decides_before_torch_is_loaded():
    shown = "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    code = f"import os, sys; from beit import cli; cli._run = lambda: ({shown}, (0, ''))[1]; cli.main()"
    free = {name: value for name, value in os.environ.items() if name not in HOW_TO_WAIT}
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["passive", "False"]
