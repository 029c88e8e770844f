"""Two ranks through the launcher measure what one measures."""

import os
import subprocess
import sys

import pytest

from beit.common.metrics import read_metrics
from beit.tests.unit.finetune.colours import TINY, write_images

pytestmark = pytest.mark.launch


def finetune(data, val, run, *options):
    settings = [item for override in TINY for item in ("--set", override)]
    settings += ["--val", str(val), "--set", "train.steps=4", "--set", "train.eval_interval_steps=2"]
    settings += ["--set", "model.drop_path=0.0"]  # drop path draws per rank
    command = [sys.executable, "-m", "beit.cli", "finetune", "classification", str(data), str(run), *settings, *options]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    return read_metrics(run / "metrics.jsonl")


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_two_ranks_train_and_measure_like_one(tmp_path, zero_stage):
    train = write_images(tmp_path / "train", ("blue", "red"), 10)
    val = write_images(tmp_path / "val", ("blue", "red"), 7, start=50)
    stage = ["--set", f"deepspeed.zero_stage={zero_stage}"]
    alone = finetune(train, val, tmp_path / "one")
    shared = finetune(train, val, tmp_path / "two", "--gpus", "2", *stage)
    assert len(alone) == len(shared)
    for left, right in zip(alone, shared, strict=True):
        for name in ("step", "loss", "val_top1", "val_top5", "val_loss", "val_num_images"):
            assert left.get(name) == pytest.approx(right.get(name), rel=1e-4), name
