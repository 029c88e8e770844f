"""Where modules are looked for, here and in processes that are started; whole commands are in tests/launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.processes.safe_path import leave_out_current_folder, safe_path

CANARY = [sys.executable, "-c", "import canary"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in front of the libraries, with a module in it."""
    (tmp_path / "canary.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_processes_started_in_the_block_do_not_find_it(folder: Path) -> None:
    assert subprocess.run(CANARY).returncode == 0
    with safe_path():
        assert subprocess.run(CANARY, stderr=subprocess.DEVNULL).returncode == 1
    assert os.environ["PYTHONSAFEPATH"] == ""
    assert str(folder) in sys.path


def test_left_out_it_is_found_no_more(folder: Path) -> None:
    leave_out_current_folder()
    assert str(folder) not in sys.path
    assert subprocess.run(CANARY, stderr=subprocess.DEVNULL).returncode == 1


def test_it_stays_where_the_package_itself_lies_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["beit"], "__file__", str(folder / "beit/__init__.py"))
    leave_out_current_folder()
    assert sys.path[0] == str(folder) and os.environ["PYTHONSAFEPATH"] == ""
