"""Threads that do not fit the cores a container may use, and memory that is short, are told."""

import os

import pytest

from beit.common.overview.doctor.machine import processor
from beit.common.overview.doctor.machine.processor import check_cores, check_memory


@pytest.fixture
def machine(monkeypatch):
    """Eight cores without a quota, and no GPU."""
    monkeypatch.setattr(processor, "available_cores", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
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


def test_threads_above_a_quota_are_a_warning_that_says_so(machine):
    machine.setattr(processor, "available_cores", lambda: 2)
    machine.setattr(processor, "cpu_quota", lambda: 2.0)
    finding = the_one(check_cores())
    assert finding.level == "ok" and "(its control group may use 2), 2 threads" in finding.what
    machine.setenv("OMP_NUM_THREADS", "3")
    finding = the_one(check_cores())
    assert finding.level == "warning" and finding.mend == "export OMP_NUM_THREADS=2" and "control group" in finding.what


@pytest.mark.parametrize(("free", "level"), [(5e8, "fault"), (2e9, "warning"), (3e10, "ok"), (None, "ok")])
def test_memory_that_is_short_is_told(monkeypatch, free, level):
    monkeypatch.setattr(processor, "free_machine_bytes", lambda: free)
    finding = the_one(check_memory())
    assert finding.level == level and bool(finding.mend) == (level != "ok")
