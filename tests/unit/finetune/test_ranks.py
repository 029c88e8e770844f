"""Two ranks through the launcher measure what one measures."""

import os
import subprocess
import sys

import pytest

from beit.common.metrics import read_metrics
from beit.tests.unit.finetune.colours import TINY, write_images

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]


def finetune(data, val, run, *options):
    settings = [item for override in TINY for item in ("--set", override)]
    settings += ["--val", str(val), "--set", "train.steps=4", "--set", "train.eval_interval_steps=2"]
    settings += ["--set", "model.drop_path=0.0"]  # drop path draws per rank
    command = [sys.executable, "-m", "beit.cli", "finetune", "classification", str(data), str(run), *settings, *options]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    return read_metrics(run / "metrics.jsonl")


def numbers(records):
    names = ("step", "loss", "val_top1", "val_top5", "val_loss", "val_num_images")
    return [record[name] for record in records for name in names if name in record]


def test_two_ranks_train_and_measure_like_one(tmp_path):
    train = write_images(tmp_path / "train", ("blue", "red"), 10)
    val = write_images(tmp_path / "val", ("blue", "red"), 7, start=50)
    alone = numbers(finetune(train, val, tmp_path / "one"))
    for zero_stage in (0, 3):
        stage = ["--set", f"deepspeed.zero_stage={zero_stage}"]
        shared = numbers(finetune(train, val, tmp_path / f"two-{zero_stage}", "--gpus", "2", *stage))
        assert shared == pytest.approx(alone, rel=1e-4)
