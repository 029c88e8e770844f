"""The benchmark behind "checking tokens costs a few microseconds" runs, against another interpreter, too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_token_checks_compares_readers_with_and_without():
    words = ["--images", "6", "--views", "2", "--rounds", "1", "--other", sys.executable, "--json"]
    command = [sys.executable, ROOT / "benchmarks/token_checks.py", *words]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=280).stdout)
    for kind in ("reading", "records"):
        assert list(result[kind]) == ["checked", "unchecked", "hashed", "other"]
        assert all(row["rate"] > 0 and row["ratio"] > 0 for row in result[kind].values())
