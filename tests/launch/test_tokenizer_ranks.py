"""`beit tokenizer train` as a process: killed at any moment, and on two ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beit.common.runs.metrics import read_metrics
from beit.common.tokenizer import load_tokenizer
from beit.tests.support import write_images

pytestmark = [pytest.mark.launch, pytest.mark.timeout(1800)]

STEPS = 60
SETTINGS = (
    "model.vocab_size=16",
    "model.width=16",
    "model.num_blocks=1",
    "model.code_dim=4",
    "data.view_size=32",
    "data.crop_size=16",
    "data.crops_per_image=2",
    "data.num_eval_images=4",
    "objective.revive_interval_steps=5",
    "objective.revive_threshold=0.9",
    f"train.steps={STEPS}",
    "train.global_batch_size=4",
    "train.precision=fp32",
    "train.log_interval_steps=1",
    "train.eval_interval_steps=7",
    "train.ema_decay=0.9",
    "train.early_stop_evals=50",
    "optimizer.warmup_steps=0",
    "checkpoint.interval_steps=5",
    "reader.num_workers=1",
)


def start(source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "beit.cli", "tokenizer", "train", str(source), str(out), *settings, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(source.parent / "cache")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def commit(out: Path, step: int) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / f"checkpoints/step_{step}/COMMIT.json").read_text())["record"]
    return record


def last_logged_step(out: Path) -> int:
    return max((record["step"] for record in read_metrics(out / "metrics.jsonl")), default=0)


@pytest.mark.fault
def test_kill_at_random_moments_loses_the_steps_since_the_last_save_only(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 12, size=32)
    finish(start(source, tmp_path / "whole"))
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    out = tmp_path / "killed"
    moments = sorted(rng.sample(range(1, STEPS), 4)) + [STEPS]  # the last while it saves, or just before or after
    for moment in moments:
        process = start(source, out)
        while last_logged_step(out) < moment and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        saved = [int(path.name[5:]) for path in (out / "checkpoints").glob("step_*") if path.suffix != ".tmp"]
        # One save may have been under way; nothing older than the one before it is lost.
        assert max(saved, default=0) >= moment - moment % 5 - 5, f"seed {seed}"
    finish(start(source, out))
    for name in ("model", f"checkpoints/step_{STEPS}/optimizer", f"checkpoints/step_{STEPS}/best"):
        whole, killed = (load_file(root / f"{name}.safetensors") for root in (tmp_path / "whole", out))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(value, killed[key]) for key, value in whole.items()), f"{name}, seed {seed}"
    assert load_tokenizer(out).fingerprint == load_tokenizer(tmp_path / "whole").fingerprint
    assert commit(out, STEPS)["best"] == commit(tmp_path / "whole", STEPS)["best"]


def test_two_ranks_train_one_tokenizer_on_the_batches_of_one(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 12, size=32)
    output = finish(start(source, tmp_path / "two", "--gpus", "2"))
    assert output.count("dB on held-out images") == 1
    finish(start(source, tmp_path / "one"))
    two, one = (commit(tmp_path / name, STEPS) for name in ("two", "one"))
    assert (two["world_size"], one["world_size"]) == (2, 1)
    assert two["data"] == one["data"]
    tokenizer = load_tokenizer(tmp_path / "two")
    assert tokenizer.vocab_size == 16
    averages = load_file(tmp_path / f"two/checkpoints/step_{STEPS}/optimizer.safetensors")
    assert torch.isfinite(averages["ema/vae.codebook"]).all()


def test_wrong_setting_is_one_line_and_code_2_on_every_number_of_ranks(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 12, size=32)
    for ranks in ((), ("--gpus", "2")):
        process = start(source, tmp_path / "out", "--set", "data.crop_size=20", *ranks)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 2
        assert output.strip().startswith("beit: data.crop_size (20)") and output.count("\n") == 1
