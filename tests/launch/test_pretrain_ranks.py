"""Pre-training measures on two ranks what it does on one: partitioned weights, tokens online, uneven batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.metrics import read_metrics
from beit.tests.support import write_images, write_tokenizer

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

SETTINGS = """
    model.embed_dim=32 model.num_heads=2 model.depth=2 train.steps=2 train.global_batch_size=8 train.precision=fp32
    reader.num_workers=0 deepspeed.zero_stage=3 held_out.micro_batch_size=5 held_out.train_images=31
    probe.micro_batch_size=7 probe.data=labelled
""".split()


def beit(*words: str, cwd: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "beit.cli", *words]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    write_images(path / "photos", 100)
    write_images(path / "labelled", 40, classes=("blue", "red"))
    write_tokenizer(path / "tokenizer")
    size = ("--img-size", "16", "--patch-size", "4")
    beit("tokenize", "photos", "bare", "--views", "0", *size, cwd=path)
    beit("tokenize", "photos", "store", "--views", "2", "--tokenizer", "tokenizer", *size, cwd=path)
    return path


@pytest.mark.parametrize(
    ("store", "setting"),
    [("bare", "tokenizer.online=tokenizer"), ("store", "objective.kind=masked_pixels")],
    ids=["online", "pixels"],
)
def test_two_ranks_measure_what_one_does(folder: Path, store: str, setting: str) -> None:
    records = []
    for ranks in ("1", "2"):
        run = f"{store}-{ranks}"
        sets = [word for assignment in (*SETTINGS, setting) for word in ("--set", assignment)]
        beit("pretrain", store, run, "--recipe", "beit_tiny_patch4_32", "--gpus", ranks, *sets, cwd=folder)
        records.append(read_metrics(folder / run / "metrics.jsonl")[-1])
        assert (folder / run / "reconstruction.png").is_file()
    assert {"probe_linear_acc", "train_bits" if store == "bare" else "train_mse"} <= records[0].keys()
    assert records[1] == pytest.approx(records[0], rel=1e-3)
