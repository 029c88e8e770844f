"""The counter of files between a command and what it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.docs, pytest.mark.timeout(300)]


@pytest.mark.parametrize("name", ["tokenize-tars", "pretrain"])
def test_a_walk_leads_from_the_command_to_its_end(name):
    command = [sys.executable, ROOT / "benchmarks/walks.py", "--walk", name, "--json"]
    (result,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    files, way = list(result["files"]), list(result["way"])
    assert files[0] == way[0] == f"{name.partition('-')[0]}/commands.py"
    assert set(way) <= set(files)
    assert 10 < len(way) == result["num_way_files"] < len(files) == result["num_files"] < result["num_entries"]
    assert all((ROOT / file).is_file() for file in files)
