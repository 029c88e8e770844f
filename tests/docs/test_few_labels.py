"""The benchmark behind the few-label table runs from images to table, and goes on where it was stopped."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
def test_few_labels_makes_its_table_and_repeats_nothing(tmp_path):
    for name, count in (("train", 80), ("val", 20)):
        write_images(tmp_path / name, count, size=32, classes=("a", "b"))
    command = [sys.executable, ROOT / "benchmarks/few_labels.py", "--train", "train", "--val", "val", "--out", "out"]
    command += ["--labels", "20", "--views", "1", "--seeds", "0"]
    for key, value in {
        "train.steps": 3,
        "train.global_batch_size": 8,
        "model.depth": 1,
        "reader.num_workers": 0,
    }.items():
        command += ["--pretrain-set", f"{key}={value}"]
        command += ["--finetune-set", f"{key}={value}"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=280)
    table = (tmp_path / "out/table.md").read_text()
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["random weights", "pre-trained"]
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [len(row["scores"]) for row in rows] == [1, 1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*/model.safetensors")}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=280)
    assert {path: path.stat().st_mtime_ns for path in before} == before
