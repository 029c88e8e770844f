"""A GPU that is here and not used, or that computes wrongly, is told; and a torch that does not start."""

import json
import subprocess
import sys

import pytest

from beit.common.errors import RunFailed
from beit.common.overview.doctor.child import SlowAnswer
from beit.common.overview.doctor.machine import device
from beit.common.overview.doctor.machine.device import check_device, has_gpu

CPU = {
    "version": "2.13.0",
    "cuda": None,
    "hip": None,
    "capability": "AVX2",
    "is_right": True,
    "error": "",
    "precision": "fp32",
    "gpus": [],
}
GPU = {"name": "NVIDIA H200", "free": 140e9, "total": 150e9, "is_right": True, "error": "", "precision": "bf16"}
CUDA = CPU | {"cuda": "CUDA 13.0"}


class Probed:
    def __init__(self, found):
        self.found = found

    def result(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def look(monkeypatch, found, *, maker=None, hidden=None):
    monkeypatch.setattr(device, "hardware", lambda: maker)
    if hidden is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    return list(check_device(Probed(found)))


def test_a_cpu_alone_is_well(monkeypatch):
    assert [finding.level for finding in look(monkeypatch, CPU)] == ["ok", "ok"]


@pytest.mark.parametrize("reason", ["killed by SIGILL", "ImportError: libtorch.so"])
def test_a_torch_that_does_not_start_is_a_fault(monkeypatch, reason):
    (finding,) = look(monkeypatch, RunFailed(reason))
    assert finding.topic == "torch" and finding.level == "fault" and reason in finding.what and finding.mend
    assert not has_gpu(Probed(RunFailed(reason)))


def test_a_torch_that_is_slow_to_answer_is_a_warning_and_none_that_is_broken(monkeypatch):
    (finding,) = look(monkeypatch, SlowAnswer("no answer in 60 s"))
    assert finding.level == "warning" and "slow" in finding.what and "no answer in 60 s" in finding.what
    assert "install" not in finding.mend and "nvidia" not in finding.mend
    (finding,) = look(monkeypatch, SlowAnswer("no answer in 60 s"), maker="NVIDIA")
    assert "nvidia-smi" in finding.mend


def test_a_torch_for_cpus_beside_a_gpu_is_a_fault(monkeypatch):
    _, finding = look(monkeypatch, CPU, maker="NVIDIA")
    assert finding.level == "fault" and "built for CPUs only" in finding.what and "pytorch.org" in finding.mend


def test_a_driver_that_torch_cannot_use_is_a_fault(monkeypatch):
    _, finding = look(monkeypatch, CUDA | {"error": "The NVIDIA driver on your system is too old"}, maker="NVIDIA")
    assert finding.level == "fault" and "too old" in finding.what and "driver" in finding.mend


@pytest.mark.parametrize(("hidden", "level"), [("", "warning"), ("-1", "warning"), ("7", "fault")])
def test_a_variable_that_hides_the_gpu_is_told(monkeypatch, hidden, level):
    _, finding = look(monkeypatch, CUDA, maker="NVIDIA", hidden=hidden)
    assert finding.level == level and finding.mend == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({}, "ok"),
        ({"free": 10e9}, "warning"),
        ({"is_right": False}, "fault"),
        ({"error": "no kernel image is available"}, "fault"),
    ],
)
def test_each_gpu_is_tried(monkeypatch, changed, level):
    _, first, second = look(monkeypatch, CUDA | {"gpus": [GPU, GPU | changed]}, maker="NVIDIA")
    assert first.level == "ok" and second.level == level and second.topic == "gpu 1"
    assert (second.mend == "") == (level == "ok")


def test_a_cpu_that_multiplies_wrongly_is_a_fault(monkeypatch):
    _, finding = look(monkeypatch, CPU | {"is_right": False})
    assert finding.level == "fault" and "wrong" in finding.what


@pytest.mark.slow
def test_the_probe_says_all_that_is_asked():
    command = [sys.executable, "-m", "beit.common.overview.doctor.machine.probe"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found.keys() == CPU.keys() and found["is_right"]
