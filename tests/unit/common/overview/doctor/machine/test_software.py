"""A package that is missing, too old or unwanted is named, with the command that installs it."""

import importlib.metadata
import platform
import sys

import pytest

from beit.common.overview.doctor.machine import software
from beit.common.overview.doctor.machine.software import (
    check_compiler,
    check_extras,
    check_packages,
    check_python,
    requirements,
)


class GpuMachine:
    """A machine that computes on a GPU, or not."""

    def __init__(self, *gpus):
        self.gpus = gpus

    def result(self):
        return {"gpus": list(self.gpus)}


@pytest.fixture
def installed(monkeypatch):
    """Pretend versions of some packages; None for one that is not there."""
    pretended, real = {}, importlib.metadata.version

    def version(name):
        found = pretended.get(name, "") if name in pretended else real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return pretended


def levels(findings):
    return [finding.level for finding in findings]


def test_what_is_installed_here_is_enough():
    assert levels([*check_python(), *check_packages()]) == ["ok", "ok"]
    assert {line.name for line in requirements()[0]} > {"torch", "deepspeed", "click"}


def test_an_installed_copy_asks_what_pip_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "ROOT", tmp_path)
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ["torch>=2.10", 'wandb>=0.17; extra == "wandb"', "numpy"]
    )
    needed, extras, python = requirements()
    assert [line.name for line in needed] == ["torch", "numpy"] and python
    assert [line.name for line in extras["wandb"]] == ["wandb"]


@pytest.mark.parametrize("version", [None, "2.9.1"])
def test_a_package_that_is_missing_or_too_old_is_a_fault(installed, version):
    installed["torch"] = version
    (finding,) = check_packages()
    assert finding.level == "fault" and finding.what.startswith("torch is ")
    assert finding.mend == f"{sys.executable} -m pip install 'torch>=2.10'"


def test_what_beit_can_do_without_is_a_warning(installed):
    installed["simplejpeg"] = None
    (finding,) = check_packages()
    assert finding.level == "warning" and "slower" in finding.what


def test_a_python_that_is_too_old_is_a_fault(monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.4")
    (finding,) = check_python()
    assert finding.level == "fault" and "3.10.4" in finding.what and ">=3.11" in finding.what


def test_an_extra_is_missed_only_where_something_wants_it(installed, monkeypatch, tmp_path):
    for name in ("boto3", "wandb"):
        installed[name] = None
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert levels(check_extras()) == ["ok"]
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\n")
    missed, told = check_extras()
    assert missed.level == "warning" and "boto3" in missed.mend and "wandb (not installed)" in told.what
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the environment")
    assert levels(check_extras()) == ["ok"]


def test_an_extra_that_is_too_old_is_a_warning(installed):
    installed["onnx"] = "1.0"
    old, _ = check_extras()
    assert old.level == "warning" and "onnx is 1.0, beit needs >=1.19" in old.what


def test_a_compiler_is_missed_on_a_gpu_only(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert levels(check_compiler(GpuMachine())) == ["ok"]
    (finding,) = check_compiler(GpuMachine("H200"))
    assert finding.level == "warning" and "C compiler" in finding.what and "install" in finding.mend


def test_a_compiler_that_is_named_must_be_there(monkeypatch):
    monkeypatch.setenv("CXX", "g++-99 -O2")
    (finding,) = check_compiler(GpuMachine())
    assert finding.level == "warning" and "g++-99" in finding.what and finding.mend == "unset CXX"
