"""Segmentation on two ranks: the losses and measurements of one, at every ZeRO stage, and after a rank is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.common.runs.metrics import read_metrics
from beit.tests.unit.finetune.segmentation.scenes import TINY, write_scenes

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

SETTINGS = """
    head.kind=upernet head.channels=8 head.dropout=0.0 model.drop_path=0.0 train.ema_decay=0.9 train.steps=4
    train.eval_interval_steps=2 class_weights=balanced
""".split()


def segment(folder: Path, run: str, *words: str, fault: str = "") -> list[dict[str, float]]:
    sets = [word for setting in (*TINY, *SETTINGS) for word in ("--set", setting)]
    command = [sys.executable, "-m", "beit.cli", "finetune", "segmentation", "scenes", run, *sets, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_FAULT": fault, "BEIT_CACHE": str(folder / "cache")}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == (1 if fault else 0), result.stderr
    names = ("step", "loss", "auxiliary_loss", "train_pixel_accuracy", "val_miou", "val_pixel_accuracy")
    names += ("val_num_images", "val_num_pixels")
    records = read_metrics(folder / run / "metrics.jsonl")
    return [{name: record[name] for name in names if name in record} for record in records]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    write_scenes(path / "scenes/train", 9)
    write_scenes(path / "scenes/val", 7, start=100)  # an odd number, of which each counts once
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, float]]:
    return segment(folder, "one")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_and_measure_like_one(folder: Path, alone: list[dict[str, float]], stage: int) -> None:
    shared = segment(folder, f"two-{stage}", "--gpus", "2", "--set", f"deepspeed.zero_stage={stage}")
    assert [record["val_num_images"] for record in shared if "val_num_images" in record] == [7, 7]
    for one, two in zip(alone, shared, strict=True):
        assert two == pytest.approx(one, rel=2e-3)
    left, right = (load_file(folder / run / "last/model.safetensors") for run in ("one", f"two-{stage}"))
    assert left.keys() == right.keys()
    # Weights may differ where the gradient is nothing but rounding: biases before a norm, which takes them out again.
    for name in left:
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(left[name], right[name], rtol=1e-2, atol=2e-3)


@pytest.mark.fault
def test_a_rank_pair_that_dies_at_a_commit_goes_on_to_the_same_model(folder: Path) -> None:
    extra = ("--gpus", "2", "--set", "checkpoint.interval_steps=2")
    segment(folder, "whole", *extra)
    segment(folder, "cut", *extra, fault="commit:1")
    segment(folder, "cut", *extra)
    left, right = (load_file(folder / run / "last/model.safetensors") for run in ("whole", "cut"))
    assert not [name for name in left if not torch.equal(left[name], right[name])]
