"""The counter of files between a command and what it does, and the walks that docs/architecture.md takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
pytestmark = [pytest.mark.docs, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("tokenize-folder", "An image into a token tar"),
        ("pretrain", "A batch into a step"),
        ("resume", "A checkpoint back"),
    ],
)
def test_a_walk_leads_from_the_command_to_its_end_through_the_documented_files(name, title):
    command = [sys.executable, ROOT / "benchmarks/walks.py", "--walk", name, "--json"]
    (result,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    files, way = list(result["files"]), list(result["way"])
    assert files[0] == way[0] == f"{'tokenize' if 'tokenize' in name else 'pretrain'}/commands.py"
    assert set(way) <= set(files)
    assert 10 < len(way) == result["num_way_files"] < len(files) == result["num_files"] < result["num_entries"]
    assert all((ROOT / file).is_file() for file in files)
    section = PAGE.split(f"### {title}\n")[1].split("\n### ")[0]
    documented = re.findall(r"^\d+\. `(.*?)`: ", section, re.MULTILINE)
    assert len(documented) >= 10
    assert not set(documented) - set(files), "not entered on this walk"
