"""The benchmark of automatic micro-batches runs, and states peak memory and speed beside another version's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_the_benchmark_of_micro_batches_runs():
    command = [sys.executable, ROOT / "benchmarks/micro_batches.py", "--recipe", "beit_tiny_patch8_64", "--json"]
    size = ["--images", "20", "--batch", "8", "--steps", "2", "--rounds", "1", "--micro-batch", "2"]
    done = subprocess.run(
        [*command, *size, "--other", sys.executable], capture_output=True, text=True, timeout=600, check=True
    )
    result = json.loads(done.stdout)
    rows = result["contestants"]
    assert result["standard"] == "the other version"
    assert set(rows) == {"this version", "this version, 2", "the other version"}
    assert rows["the other version"]["speed_ratio"] == 1
    assert all(row["peak_bytes"] > 50e6 and row["images_per_second"] > 0 for row in rows.values())
