"""The script behind the curve over unlabelled images makes its table and picture, and repeats nothing."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def write_parquet(file, count):
    rng = np.random.default_rng(count)
    rows = []
    for _ in range(count):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data, format="PNG")
        rows.append({"bytes": data.getvalue(), "path": None})
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": np.arange(count) % 4}), file)


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_the_curve_is_drawn_and_nothing_repeated(tmp_path):
    write_parquet(tmp_path / "train.parquet", 100)
    write_parquet(tmp_path / "val.parquet", 30)
    words = [sys.executable, str(ROOT / "benchmarks/unlabelled_images.py"), "--out", "out", "--train", "train.parquet"]
    words += ["--val", "val.parquet", "--images", "90", "--labels", "12", "--steps", "2", "--seeds", "0,1"]
    words += ["--finetune-epochs", "6", "--finetune-seeds", "0", "--val-images", "20"]
    words += ["--shape", "model.embed_dim=16,model.depth=2,model.num_heads=2"]
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 900}
    table = subprocess.run(words, **run).stdout
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line]
    assert [line[:2] for line in lines] == [
        [images, measure] for measure in ("k-NN", "linear probe", "fine-tuned") for images in ("random weights", "90")
    ]
    assert all("±" in line[2] for line in lines[:4])
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [len(row["by_seed"]) for row in rows] == [2] * 4 + [1] * 2
    pairs = [rows[1]["by_seed"][seed] - rows[0]["by_seed"][seed] for seed in ("0", "1")]
    assert rows[1]["difference"]["mean"] == pytest.approx(np.mean(pairs))
    with Image.open(tmp_path / "out/curve.png") as drawn:
        assert drawn.width > 3 * 380
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(before) > 2
    assert subprocess.run(words, **run).stdout == table
    assert {path: path.stat().st_mtime_ns for path in before} == before
