"""Two ranks through the launcher measure what one measures."""

import json
import os
import subprocess
import sys

import pytest

from beit.common.runs.metrics import read_metrics
from beit.tests.unit.finetune.colours import TINY, write_images

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]


WHOLE_RECIPE = (
    "augment.rand_augment=rand-m9-mstd0.5-inc1",
    "augment.erase_prob=0.5",
    "mix.prob=1.0",
    "train.ema_decay=0.9",
    "freeze_blocks=1",
)


def finetune(data, val, run, *options):
    # What is set has the last word, and would override --encoder.
    settings = [item for override in TINY if override != "encoder=random" for item in ("--set", override)]
    settings += ["--val", str(val), "--set", "train.steps=4", "--set", "train.eval_interval_steps=2"]
    settings += ["--set", "model.drop_path=0.0"]  # drop path draws per rank
    for setting in WHOLE_RECIPE:
        settings += ["--set", setting]
    command = [sys.executable, "-m", "beit.cli", "finetune", "classification", str(data), str(run), *settings, *options]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    return read_metrics(run / "metrics.jsonl")


def numbers(records):
    names = ("step", "loss", "val_top1", "val_top5", "val_loss", "val_num_images")
    return [record[name] for record in records for name in names if name in record]


def test_two_ranks_train_and_measure_like_one(tmp_path, finished):
    train = write_images(tmp_path / "train", ("blue", "red"), 10)
    val = write_images(tmp_path / "val", ("blue", "red"), 7, start=50)
    encoder = ["--encoder", str(finished.run / "model")]
    alone = numbers(finetune(train, val, tmp_path / "one", *encoder))
    for zero_stage in (0, 3):
        stage = ["--set", f"deepspeed.zero_stage={zero_stage}"]
        shared = numbers(finetune(train, val, tmp_path / f"two-{zero_stage}", *encoder, "--gpus", "2", *stage))
        assert shared == pytest.approx(alone, rel=1e-4)


def test_two_ranks_evaluate_to_the_numbers_of_one(finished, tmp_path):
    val = write_images(tmp_path / "val", ("blue", "red", "green"), 5, start=50)
    (val / "green").rename(val / "blue-and-red")
    for place, path in enumerate(sorted((val / "blue-and-red").iterdir())):
        path.rename(val / ("red", "blue")[place % 2] / f"odd{place}.png")
    (val / "blue-and-red").rmdir()
    (val / "red" / "broken.png").write_bytes(b"no image")
    found = {}
    for name, options in (("one", []), ("two", ["--gpus", "2"])):
        out = [tmp_path / f"{name}.json", tmp_path / f"{name}.html"]
        command = [sys.executable, "-m", "beit.cli", "evaluate", finished.run / "model", val, *options]
        result = subprocess.run(
            [*map(str, command), "--out", str(out[0]), "--html", str(out[1])],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr
        told = [line for line in result.stdout.splitlines() if not line.startswith("wrote ")]
        found[name] = json.loads(out[0].read_text()), told[-5:], out[1].read_text()
    (one, table, page), (two, other_table, other_page) = found["one"], found["two"]
    assert one["num_images"] == two["num_images"] == 15
    assert one.pop("loss") == pytest.approx(two.pop("loss"), rel=1e-5)
    assert one.pop("calibration_error") == pytest.approx(two.pop("calibration_error"), rel=1e-4)
    for left, right in zip(one.pop("mistakes"), two.pop("mistakes"), strict=True):
        assert left.pop("confidence") == pytest.approx(right.pop("confidence"), rel=1e-4)
        assert left == right
    assert one == two
    assert table[2:] == other_table[2:]
    assert page.count("<img") == other_page.count("<img")
