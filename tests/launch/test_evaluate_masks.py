"""A segmenter is measured on two ranks through the launcher as on one, also where each has a part of the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from beit.common.vit.description import read_encoder_config
from beit.finetune.evaluation.segmentation import evaluate_segmenter
from beit.tests.unit.finetune.evaluation.streets import write_segmenter, write_streets
from beit.tests.unit.finetune.evaluation.test_segmentation_run import TINY

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]


def beit(folder, *words):
    command = [sys.executable, "-m", "beit.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(folder / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("num_images", [7, 1])
def test_two_ranks_say_what_one_says(tmp_path, num_images):
    val, run = write_streets(tmp_path / "streets/val", num_images), write_segmenter(tmp_path / "run")
    found = {}
    for name, words in {"one": (), "two": ("--gpus", "2")}.items():
        out = tmp_path / f"{name}.json"
        printed = beit(tmp_path, "evaluate", run, val, "--out", out, *words)
        assert printed.count("95 % interval") == (num_images > 1), "one rank speaks"
        found[name] = json.loads(out.read_text())
    assert found["one"] == found["two"] and found["one"]["num_images"] == num_images


def test_ranks_with_parts_of_the_weights_wait_for_each_other(tmp_path, monkeypatch):
    """Five images on two ranks, with 1 to 28 windows each: ZeRO 3 gathers every layer on both or on none."""
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    data, val = write_streets(tmp_path / "data/train", 8), write_streets(tmp_path / "data/val", 5, start=50)
    changes = (
        "train.steps=2",
        "train.eval_interval_steps=2",
        "deepspeed.zero_stage=3",
        "evaluation.micro_batch_size=1",
    )
    settings = [word for setting in (*TINY, *changes) for word in ("--set", setting)]
    beit(tmp_path, "finetune", "segmentation", data, tmp_path / "run", "--val", val, "--gpus", "2", *settings)
    kept = read_encoder_config(tmp_path / "run/model").provenance["metrics"]
    report = evaluate_segmenter(tmp_path / "run", str(val))
    assert {name: getattr(report.metrics, name) for name in kept} == kept and kept["num_images"] == 5
