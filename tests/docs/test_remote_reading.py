"""The benchmark of reading from an object store runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_remote_reading_reports_rates_and_processor_time():
    command = [sys.executable, ROOT / "benchmarks/remote_reading.py", "--json", "--samples", "64", "--images", "8"]
    found = json.loads(subprocess.run([*command, "--rounds", "1"], check=True, capture_output=True, timeout=600).stdout)
    assert all(found["this"][name] > 0 for name in ("samples_per_second", "cpu_ms_per_sample", "images_per_second"))
