"""The script behind the table of microscopy and X-ray: its images are what it says, and it makes the table."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beit.benchmarks.science import CELLS, CHESTS, DARK_COUNTS, INTERCEPT, field, write_chest, write_field
from beit.common.images.decode import read_samples
from beit.common.images.decoding import Decoding

ROOT = Path(__file__).resolve().parents[2]


def test_cells_differ_in_texture_and_not_in_brightness():
    means, jumps = {}, {}
    for kind in CELLS:
        slices = np.stack([field(np.random.default_rng(number), kind) for number in range(12)]).astype(float)
        assert slices.shape == (12, 3, 96, 96) and slices.min() >= DARK_COUNTS and slices.max() < 4095
        means[kind] = slices[:, 1].mean()
        jumps[kind] = np.abs(np.diff(slices[:, 1], axis=1)).mean()
        assert np.abs(np.diff(slices[:, 0], axis=1)).mean() < jumps[kind]  # out of focus
    assert max(means.values()) < 1.02 * min(means.values())
    assert jumps["granular"] > 1.5 * jumps["smooth"]


def test_files_are_what_microscopes_and_detectors_write(tmp_path):
    write_field(tmp_path / "cells.ome.tif", np.random.default_rng(0), "granular")
    cells = read_samples((tmp_path / "cells.ome.tif").read_bytes(), Decoding(frame="middle"))
    assert (cells.kind, cells.num_frames, cells.array.dtype) == ("grey", 3, np.uint16)
    assert np.array_equal(cells.array[..., 0], field(np.random.default_rng(0), "granular")[1])
    for kind in CHESTS:
        write_chest(tmp_path / "chest.dcm", np.random.default_rng(0), kind)
        chest = read_samples((tmp_path / "chest.dcm").read_bytes())
        assert chest.is_inverted and chest.limits == (INTERCEPT, 2**14 - 1 + INTERCEPT)
        low, high = chest.window
        assert 0.5 < ((chest.array > low) & (chest.array < high)).mean() < 1


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_the_table_is_made_and_nothing_repeated(tmp_path):
    words = [sys.executable, str(ROOT / "benchmarks/science.py"), "--out", "out", "--kinds", "xray", "--share", "0.05"]
    words += ["--steps", "2", "--views", "1", "--report-images", "8"]
    words += ["--shape", "model.embed_dim=16,model.depth=1,model.num_heads=2"]
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 800}
    table = subprocess.run(words, **run).stdout
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line]
    assert [line[:2] for line in lines] == [["X-ray, DICOM", "`dtype`"], ["X-ray, DICOM", "`window`"]]
    assert int(lines[1][2]) > 3 * int(lines[0][2])  # grey levels
    assert all(re.fullmatch(r"-?\d+\.\d\d( ± \d+\.\d\d)? \(\d+\.\d\d\)", line[5]) for line in lines)
    assert all(line[8].endswith("% of 6") for line in lines)
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [set(row["top1"]) for row in rows] == [{"probe", "random"}] * 2
    with Image.open(tmp_path / "out/examples.png") as drawn:
        assert drawn.width > 3 * 128
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert subprocess.run(words, **run).stdout == table
    assert before and {path: path.stat().st_mtime_ns for path in before} == before
