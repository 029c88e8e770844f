"""The benchmark behind "memory does not grow with the store" runs, and memory does not grow with the store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def measure(*options):
    command = [sys.executable, ROOT / "benchmarks/reader_seek.py", "--json", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=600).stdout)


@pytest.mark.docs
def test_reader_seek_reports_times_and_memory():
    sizes = (
        "--shards",
        "40",
        "--samples",
        "20",
        "--batch-size",
        "64",
        "--lanes",
        "4",
        "--seeks",
        "2",
        "--resumes",
        "2",
    )
    result = measure(*sizes)
    assert result["samples"] == 800
    assert all(value >= 0 for value in result.values())


@pytest.mark.slow
def test_a_store_of_100_million_samples_takes_bounded_memory():
    """Its samples as one table would take gigabytes; each of the ten resumes reads other shards."""
    result = measure("--shards", "100000", "--samples", "1000", "--seeks", "3", "--resumes", "10")
    assert result["samples"] == 100_000_000
    assert result["opened_mb"] < 200
    assert result["after_last_resume_mb"] < result["after_first_resume_mb"] + 60
    assert result["tables_in_memory"] <= 128
