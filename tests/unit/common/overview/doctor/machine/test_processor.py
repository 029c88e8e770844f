"""Threads that do not fit the cores a container may use, and memory that is short, are told."""

import pytest

from beit.common.overview.doctor.machine import processor
from beit.common.overview.doctor.machine.processor import check_cores, check_memory, cpu_quota
from beit.common.training import measure


@pytest.fixture
def machine(monkeypatch):
    """Eight cores without a quota, and no GPU."""
    monkeypatch.setattr(processor, "available_cores", lambda: 8)
    monkeypatch.setattr(processor, "cpu_quota", lambda: None)
    monkeypatch.setattr(processor, "hardware", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


def the_one(findings):
    (finding,) = findings
    return finding


def test_all_cores_are_well(machine):
    assert the_one(check_cores()).level == "ok"


@pytest.mark.parametrize(
    ("threads", "mend"),
    [
        ("64", "export OMP_NUM_THREADS=8"),
        ("many", "export OMP_NUM_THREADS=8"),
        ("0", "export OMP_NUM_THREADS=8"),
        ("1", "unset OMP_NUM_THREADS"),
    ],
)
def test_threads_that_do_not_fit_the_cores_are_a_warning(machine, threads, mend):
    machine.setenv("OMP_NUM_THREADS", threads)
    finding = the_one(check_cores())
    assert finding.level == "warning" and finding.mend == mend and threads in finding.what


def test_beside_a_gpu_one_thread_is_enough(machine):
    machine.setattr(processor, "hardware", lambda: "NVIDIA")
    machine.setenv("OMP_NUM_THREADS", "1")
    assert the_one(check_cores()).level == "ok"


def test_a_quota_below_the_cores_is_a_warning_until_threads_fit_it(machine):
    machine.setattr(processor, "cpu_quota", lambda: 2.0)
    finding = the_one(check_cores())
    assert finding.level == "warning" and finding.mend.startswith("export OMP_NUM_THREADS=2")
    machine.setenv("OMP_NUM_THREADS", "2")
    assert the_one(check_cores()).mend != finding.mend


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quotas_of_both_versions_of_control_groups_are_read(monkeypatch, tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(processor, "control_groups", lambda _: [tmp_path])
    assert cpu_quota() == quota


@pytest.mark.parametrize(("free", "level"), [(5e8, "fault"), (2e9, "warning"), (3e10, "ok"), (None, "ok")])
def test_memory_that_is_short_is_told(monkeypatch, free, level):
    monkeypatch.setattr(measure, "free_memory_bytes", lambda _: free)
    finding = the_one(check_memory())
    assert finding.level == level and bool(finding.mend) == (level != "ok")
