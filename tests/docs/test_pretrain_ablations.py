"""The benchmark behind the pre-training ablations makes its rows, repeats nothing, and marks what was not run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_ablations_make_their_rows_and_repeat_nothing(tmp_path):
    for name, count in (("train", 90), ("val", 20)):
        write_images(tmp_path / name, count, size=32, classes=("a", "b"))
    command = [sys.executable, ROOT / "benchmarks/pretrain_ablations.py", "--train", "train", "--val", "val"]
    command += ["--out", "out", "--images", "80", "--steps", "2", "--labels", "20", "--seeds", "0", "--model", "16,1,2"]
    command += ["--rows", "views-1,online,pixels"]
    for option, key in (
        ("--pretrain-set", "train.global_batch_size=8"),
        ("--pretrain-set", "train.micro_batch_size=8"),
    ):
        command += [option, key]
    command += ["--finetune-set", "train.steps=2", "--finetune-set", "train.global_batch_size=8"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=1500)
    rows = {row["row"]: row for row in json.loads((tmp_path / "out/table.json").read_text())}
    stored, online = rows["views-1"]["evaluation"], rows["online"]["evaluation"]
    # The same images, views, masks and words, whether stored or computed: only training differs.
    assert stored["held_out_images"] == online["held_out_images"]
    assert stored["held_out_bits"] == pytest.approx(online["held_out_bits"], abs=0.2)
    assert rows["pixels"]["evaluation"]["held_out_mse"] > 0
    assert [len(rows[name]["top1"]) for name in ("views-1", "online", "pixels", "blockwise")] == [1, 1, 1, 0]
    table = (tmp_path / "out/table.md").read_text().splitlines()
    assert [line for line in table if "`blockwise`" in line][0].count("not run") == 8
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    again = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300)
    assert "$ beit" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
