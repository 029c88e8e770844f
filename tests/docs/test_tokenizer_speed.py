"""The benchmark behind the figure "as fast as N DALL-E encoders" runs and states its ratio."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_tokenizer_speed_compares_with_dall_e_in_one_run():
    sizes = ["--view-size", "16", "--views", "2", "--dalle-views", "1", "--rounds", "1", "--json"]
    command = [sys.executable, ROOT / "benchmarks/tokenizer_speed.py", *sizes]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=280).stdout)
    mine, dalle = result["views_per_second"].values()
    assert result["ratio"] == pytest.approx(mine / dalle, rel=0.1)
