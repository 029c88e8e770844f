"""The command behind the few-label table runs from an encoder to the table, and repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from beit.common.vit.config import ViTConfig
from beit.pretrain.model import MaskedImageModel
from beit.tests.encoders import save_encoder
from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def write_encoder(folder):
    torch.manual_seed(0)
    config = ViTConfig(img_size=32, patch_size=4, **SHAPE)
    model = MaskedImageModel(config, vocab_size=8, num_masked=24)
    save_encoder(folder, model.state_dict(), architecture=config, mean=[0.5] * 3, std=[0.5] * 3, provenance={})


@pytest.fixture
def command(tmp_path):
    for name, count in (("train", 80), ("val", 20)):
        write_images(tmp_path / name, count, size=32, classes=("a", "b"))
    write_encoder(tmp_path / "encoder")
    words = [sys.executable, str(ROOT / "benchmarks/few_labels.py"), "--train", "train", "--val", "val"]
    words += ["--encoder", "encoder", "--out", "out", "--labels", "20:1,all:1", "--seeds", "0,1", "--val-images", "10"]
    for key, value in {"train.global_batch_size": 8, "reader.num_workers": 0}.items():
        words += ["--set", f"{key}={value}"]
    for key, value in SHAPE.items():
        words += ["--set", f"model.{key}={value}"]
    return words


def table_of(printed):
    """Return the cells of the table's rows."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:] if line[:1] == "|"]


@pytest.mark.docs
def test_few_labels_makes_its_table_and_repeats_nothing(tmp_path, command):
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 280}
    subprocess.run([*command, "--rows", "probe-20", "--seeds", "0"], **run)
    table = table_of(subprocess.run([*command, "--rows", "finetune-20"], **run).stdout)
    assert [row[:2] for row in table] == [
        ["20 (25 %)", "fine-tuned, 1 epoch"],
        ["20 (25 %)", "linear probe"],
        ["20 (25 %)", "k-NN"],
        ["80 (100 %)", "fine-tuned, 1 epoch"],
        ["80 (100 %)", "linear probe"],
        ["80 (100 %)", "k-NN"],
    ]
    assert all("±" in cell for cell in table[0][2:5]) and table[0][5] == "2"
    assert all("not run" not in row and row[5] == "1 of 2" for row in table[1:3])
    assert all(row[2:5] == ["not run"] * 3 for row in table[3:])
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [len(rows[0]["runs"][start]) for start in ("pre-trained", "random")] == [2, 2]
    assert {scores["num_images"] for scores in rows[0]["runs"]["random"]} == {20}
    with Image.open(tmp_path / "out/table.png") as drawn:
        assert drawn.width > 3 * 380  # fine-tuned, linear probe and k-NN beside each other
    means = [rows[0]["top1"][start]["mean"] for start in ("pre-trained", "random")]
    assert rows[0]["difference"]["mean"] == pytest.approx(means[0] - means[1])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*/model.safetensors")}
    again = table_of(subprocess.run([*command, "--rows", "finetune-20"], **run).stdout)
    assert again == table
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = subprocess.run([*command, "--set", "optimizer.lr=1e-3"], **run | {"check": False})
    assert other.returncode == 2 and "was made with other settings" in other.stderr


@pytest.mark.docs
def test_a_stopped_script_stops_its_run_and_goes_on(tmp_path, command):
    command += ["--rows", "finetune-20", "--seeds", "0"]
    slow = [part.replace("20:1,", "20:4000,") for part in command]
    process = subprocess.Popen(slow, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    run = tmp_path / "out/finetune-20-pre-trained-seed0"
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    second = subprocess.run(slow, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert second.returncode == 2 and "at work in out" in second.stderr
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 75, said
    assert "start the same command again" in said.splitlines()[-1]
    assert any((run / "checkpoints").glob("*/COMMIT.json"))
