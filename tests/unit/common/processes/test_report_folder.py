import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from beit.common.processes.rank_reports import report_folder

KILLED = """
import os, signal
from beit.common.processes.rank_reports import report_folder
with report_folder() as folder:
    (folder / "1.log").write_text("last words")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def make_older(folder: Path) -> None:
    before = time.time() - 3600
    for file in folder.iterdir():
        os.utime(file, (before, before))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def left_by_a_killed_launch(temporary: Path) -> Path:
    environment = os.environ | {"TMPDIR": str(temporary)}
    found = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, timeout=60)
    folder = Path(found.stdout.strip())
    assert folder.parent == temporary and folder.is_dir(), found.stderr
    return folder


def test_the_next_launch_removes_what_a_killed_one_left(temporary: Path) -> None:
    left = left_by_a_killed_launch(temporary)
    with report_folder() as young:
        assert left.is_dir(), "its ranks may still have last words"
        make_older(left)
        make_older(young)
        with report_folder() as another:
            assert not left.exists()
            assert young.is_dir(), "its launch is alive"
            assert another.is_dir()
    assert not list(temporary.iterdir())


def test_folders_that_are_not_of_a_launch_stay(temporary: Path) -> None:
    other = temporary / "beit-ranks-mine"
    other.mkdir()
    (other / "notes.txt").write_text("kept")
    make_older(other)
    (temporary / "beit-ranks-file").write_text("kept")
    with report_folder():
        pass
    assert (other / "notes.txt").is_file() and (temporary / "beit-ranks-file").is_file()
