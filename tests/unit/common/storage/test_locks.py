"""A folder is used by one process at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.storage.locks import sole_use

HOLDER = """
import sys
from pathlib import Path
from beit.common.storage.locks import sole_use

with sole_use(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work in"), sole_use(tmp_path, patience_seconds=0):
            pytest.fail("two hold it")
    finally:
        holder.kill()
        holder.communicate()
    with sole_use(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_a_holder_that_ends_is_waited_for(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.stdin.close()
    with sole_use(tmp_path, patience_seconds=60):
        pass
    holder.stdout.close()
    assert holder.wait() == 0
