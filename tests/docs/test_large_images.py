"""The commands of "Large images" run, on small scenes under the names it uses, and the benchmarks behind it."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.workplace import write_workplace

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_the_commands_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    place = write_workplace(tmp_path / "place")
    (place / "slides").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 520, 3), dtype=np.uint8)
    tifffile.imwrite(place / "slides/a.tif", pixels, photometric="rgb", tile=(128, 128), compression="deflate")
    Image.fromarray(pixels[:200, :90]).save(place / "slides/b.png")
    page = re.search(
        r"^## Large images\n(.*?)(?=^## |\Z)", (ROOT / "docs/images.md").read_text(), re.DOTALL | re.MULTILINE
    )
    commands = list(shown_commands(page[1]))
    assert len(commands) == 3
    run_commands(commands, place, lambda words: "--set bad_sample_budget=0" if words[0] == "tokenize" else "")
    rows = list(csv.DictReader((place / "tiles.csv").open()))
    assert [sum(row["key"] == key for row in rows) for key in ("a.tif", "b.png")] == [6 + 1, 1 + 1]
    assert np.asarray(Image.open(place / "masks/masks/a.png")).shape == (300, 520)


@pytest.mark.docs
def test_the_benchmarks_measure(tmp_path):
    for case, side in (("jpeg", 640), ("tiff", 2048)):
        command = [sys.executable, ROOT / "benchmarks/large_images.py", "--case", case, "--side", str(side)]
        command += ["--folder", tmp_path / "images", "--json"]
        printed = subprocess.run(command, check=True, capture_output=True, timeout=280, text=True).stdout
        found = json.loads(printed.splitlines()[-1])
        assert found["exit_code"] == 0 and 50 < found["resident_megabytes"] <= found["peak_megabytes"]
    assert not (tmp_path / "images").exists()
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(tmp_path / f"photos/{number}.jpg")
    command = [sys.executable, ROOT / "benchmarks/decode_speed.py", tmp_path / "photos", "--pairs", "2", "--json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=280).stdout)
    assert len(found) == 6 and min(found.values()) > 0
