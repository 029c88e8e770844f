"""The command behind the table of few masks runs from images to the table, and repeats nothing."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from beit.tests.unit.finetune.probe.test_segmentation import write_scenes

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"embed_dim": 16, "depth": 4, "num_heads": 2}


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    for part, count in (("train", 10), ("val", 3)):
        write_scenes(tmp_path / "data" / part, count, start=count, size=(72, 64))
    (tmp_path / "photos").mkdir()
    with tarfile.open(tmp_path / "photos/a.tar", "w") as archive:
        buffer = io.BytesIO()
        Image.new("RGB", (80, 70), (9, 99, 199)).save(buffer, "JPEG")
        member = tarfile.TarInfo("0.jpg")
        member.size = buffer.tell()
        buffer.seek(0)
        archive.addfile(member, buffer)
    words = [sys.executable, str(ROOT / "benchmarks/few_masks.py"), "--data", "data", "--photos", "photos"]
    words += ["--out", "out", "--labels", "20:2,100:2", "--seeds", "0", "--views", "1", "--val-images", "2"]
    words += [
        "--pretrain-recipe",
        "demo",
        "--pretrain-set",
        "train.steps=2",
        "--pretrain-set",
        "train.eval_interval_steps=2",
    ]
    words += ["--pretrain-set", "train.global_batch_size=2", "--pretrain-set", "optimizer.warmup_steps=1"]
    for key, value in SHAPE.items():
        words += ["--pretrain-set", f"model.{key}={value}"]
    for setting in ("train.global_batch_size=2", "optimizer.warmup_steps=1", "image.img_size=64"):
        words += ["--set", setting]
    for setting in ("augment.short_side=64", "evaluation.short_side=64"):
        words += ["--set", setting]
    words += ["--probe-set", "evaluation.short_side=64"]
    return words


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_few_masks_makes_its_table_and_repeats_nothing(tmp_path, command):
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 800}
    rows = ["--rows", "linear-20,fpn-20,probe-100"]
    printed = subprocess.run([*command, *rows], **run).stdout
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:] if line[:1] == "|"]
    assert [row[:2] for row in table] == [
        ["20 %", "linear head, 2 steps"], ["20 %", "fpn head, 2 steps"], ["20 %", "linear probe"],
        ["100 %", "linear head, 2 steps"], ["100 %", "fpn head, 2 steps"], ["100 %", "linear probe"],
    ]  # fmt: skip
    done = [row[2] != "not run" for row in table]
    assert done == [True, True, False, False, False, True]
    found = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert {run["num_images"] for run in found[0]["runs"]["random"]} == {3}
    assert not list((tmp_path / "out/images").glob("*mask*")) and len(list((tmp_path / "out/images").iterdir())) == 12
    assert all((tmp_path / "out" / name).is_file() for name in ("table.png", "linear-20-random.png"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*/model.safetensors")}
    assert subprocess.run([*command, *rows], **run).stdout == printed
    assert before and {path: path.stat().st_mtime_ns for path in before} == before
    other = subprocess.run([*command, *rows, "--set", "optimizer.lr=1e-3"], **run | {"check": False})
    assert other.returncode == 2 and "was made with other settings" in other.stderr
