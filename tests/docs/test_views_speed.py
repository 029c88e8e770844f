"""The benchmark behind "training views per second and core" runs and states its ratios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_views_speed_compares_stores_with_the_reference_pipeline():
    sizes = ["--images", "6", "--views", "1", "--img-size", "32", "--short-side", "64", "--rounds", "1", "--json"]
    command = [sys.executable, ROOT / "benchmarks/views_speed.py", *sizes]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=280).stdout)
    rates = result["views_per_second_per_core"]
    assert list(rates) == [
        "reference pipeline",
        "token store",
        "resized by Pillow",
        "short side 64",
        "materialised, quality 90",
        "materialised, quality 95",
    ]
    for name, rate in rates.items():
        assert result["ratio"][name] == pytest.approx(rate / rates["reference pipeline"], abs=0.02)
    assert result["kilobytes_read"]["materialised, quality 90"] < result["kilobytes_read"]["token store"]
