"""The benchmark behind "colours jittered after the crop" runs and compares what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_jitter_order_compares_pixels_and_words():
    command = [sys.executable, ROOT / "benchmarks/jitter_order.py", "--images", "4", "--img-size", "64", "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=280).stdout)
    assert result["images"] == 4
    assert 0 < result["mean_grey_levels"] < result["mean_of_worst_image"] < result["largest_of_a_pixel"] <= 255
    assert 0 <= result["words_kept_of_worst_image"] <= result["words_kept"] <= 1
