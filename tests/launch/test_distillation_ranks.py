"""`beit tokenizer train --teacher` as a process: killed at any moment, on two ranks, taught by one's own code."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.common.runs.metrics import read_metrics
from beit.common.tokenizer import load_tokenizer
from beit.tests.distillation import SETTINGS, write_encoder
from beit.tests.support import write_images

pytestmark = [pytest.mark.launch, pytest.mark.timeout(1800)]

STEPS = 30

CODE = '''
import torch
from torch.nn import functional as F


class MeanColours:
    """Features of a patch: its mean colour, and one."""

    img_size, grid_size, dim, fingerprint = 32, 4, 4, "1234" * 16

    def __init__(self, device, dtype):
        self.device = device

    def features(self, images):
        means = F.avg_pool2d(images.float(), 8)
        return torch.cat([means, torch.ones_like(means[:, :1])], dim=1)
'''


def start(folder: Path, out: Path, *options: str, teacher: str = "encoder", **changes: str) -> subprocess.Popen[str]:
    values = {f"{section}.{name}": value for section, entries in SETTINGS.items() for name, value in entries.items()}
    values |= {"train.steps": STEPS} | {name.replace("__", "."): value for name, value in changes.items()}
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "beit.cli", "tokenizer", "train", "images", str(out), "--teacher", teacher]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(folder / "cache")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *settings, *options], cwd=folder, text=True, env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", 12, size=24)
    write_encoder(tmp_path / "encoder")
    (tmp_path / "colours.py").write_text(CODE)
    return tmp_path


@pytest.mark.fault
def test_kill_at_random_moments_ends_in_the_same_words(folder: Path) -> None:
    finish(start(folder, folder / "whole"))
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    out = folder / "killed"
    for moment in sorted(rng.sample(range(1, STEPS), 2)) + [STEPS]:
        process = start(folder, out)
        while process.poll() is None:
            if max((record["step"] for record in read_metrics(out / "metrics.jsonl")), default=0) >= moment:
                break
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finish(start(folder, out))
    for name in ("model", "decoder", f"checkpoints/step_{STEPS}/model", f"checkpoints/step_{STEPS}/optimizer"):
        whole, killed = (load_file(root / f"{name}.safetensors") for root in (folder / "whole", out))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(value, killed[key]) for key, value in whole.items()), f"{name}, seed {seed}"
    assert load_tokenizer(out).fingerprint == load_tokenizer(folder / "whole").fingerprint


def test_two_ranks_equal_one(folder: Path) -> None:
    few = {"train__steps": "4", "train__early_stop_evals": "none"}
    output = finish(start(folder, folder / "two", "--gpus", "2", **few))
    assert output.count("to the teacher, of step") == 1
    finish(start(folder, folder / "one", **few))
    two, one = (load_file(folder / name / "checkpoints/step_4/model.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), (name, float((value - two[name]).abs().max()))


def test_a_teacher_of_ones_own_code_and_only_if_it_is_named(folder: Path) -> None:
    finish(start(folder, folder / "out", teacher="colours:MeanColours", train__steps="2"))
    training = json.loads((folder / "out/config.json").read_text())["training"]
    assert training["teacher"]["name"] == "colours:MeanColours" and training["teacher"]["dim"] == 4
    assert load_tokenizer(folder / "out").img_size == 16


def test_what_cannot_be_ends_in_one_line_and_code_2_on_every_number_of_ranks(folder: Path) -> None:
    for ranks in ((), ("--gpus", "2")):
        for process, line in (
            (
                start(folder, folder / "out", *ranks, model__patch_size="8"),
                "beit: --teacher encoder gives 4 x 4 features",
            ),
            (start(folder, folder / "out", *ranks, teacher="nothing"), "beit: nothing"),
        ):
            output, _ = process.communicate(timeout=600)
            assert process.returncode == 2, output
            assert output.strip().splitlines()[-1].startswith(line) and "Traceback" not in output, output
    assert not (folder / "out").exists()
