"""The script behind docs/speedrun.md makes its tables from commands that it repeats none of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.docs.test_unlabelled_images import write_parquet

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_trials_and_race_write_their_tables_and_repeat_nothing(tmp_path):
    write_parquet(tmp_path / "train.parquet", 100)
    write_parquet(tmp_path / "val.parquet", 30)
    words = [sys.executable, str(ROOT / "benchmarks/speedrun.py")]
    common = ["--train", "train.parquet", "--val", "val.parquet", "--out", "out", "--labels", "12", "--views", "1"]
    common += ["--shape", "model.embed_dim=16,model.depth=2,model.num_heads=2"]
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 900}
    trials = [*words, "trials", *common, "--names", "revised", "--steps", "2"]
    table = subprocess.run(trials, **run).stdout
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:] if line]
    assert [line[0].split(":")[0] for line in lines] == ["`revised`"]
    assert (lines[0][3], lines[0][7], lines[0][9]) == ("1.00", "+0.0", "-")
    rows = list(json.loads((tmp_path / "out/trials.json").read_text())["rows"].values())
    assert all(row[0]["seconds"] > 0 and row[0]["store_seconds"] > 0 for row in rows)
    race = [*words, "race", *common, "--seeds", "0", "--scale", "1e-4", "--other", sys.executable, "--shares", "half"]
    subprocess.run(race, **run)
    names = list(json.loads((tmp_path / "out/race.json").read_text())["rows"])
    assert names == ["365d2fa", "revised, half of its seconds"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(before) >= 9  # of three runs: encoder, probe, features
    assert subprocess.run(trials, **run).stdout == table
    subprocess.run(race, **run)
    assert {path: path.stat().st_mtime_ns for path in before} == before
