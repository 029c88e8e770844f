"""docs/images.md: its commands run, and its numbers are those of the benchmark."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.tests.docs.run_commands import run_commands, shown_commands

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/images.md").read_text()
DEPTH = PAGE.partition("\n## Depth\n")[2].partition("\n## ")[0]


@pytest.mark.docs
def test_commands_about_depth_run(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(4):
        values = np.random.default_rng(number).integers(100, 1100, (64, 64)).astype(np.uint16)
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, "PNG")
        (tmp_path / f"scans/{number}.png").write_bytes(buffer.getvalue())
    commands = list(shown_commands(DEPTH))
    assert commands
    run_commands(commands, tmp_path, lambda _: "--views 1 --img-size 32 --patch-size 16")


@pytest.mark.docs
def test_the_table_of_ranges_is_what_the_benchmark_prints():
    command = [sys.executable, ROOT / "benchmarks/value_ranges.py"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.findall(r"^\| `(?:dtype|\[|perc).*\|$", printed, re.MULTILINE)
    assert printed.strip() in DEPTH
