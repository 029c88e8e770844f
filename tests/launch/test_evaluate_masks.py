"""`beit evaluate` of a segmenter on two ranks through the launcher says what one says, of seven images and of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from beit.tests.unit.finetune.evaluation.streets import write_segmenter, write_streets

pytestmark = [pytest.mark.launch, pytest.mark.timeout(600)]


@pytest.mark.parametrize("num_images", [7, 1])
def test_two_ranks_say_what_one_says(tmp_path, num_images):
    val, run = write_streets(tmp_path / "streets/val", num_images), write_segmenter(tmp_path / "run")
    found = {}
    for name, words in {"one": (), "two": ("--gpus", "2")}.items():
        out = tmp_path / f"{name}.json"
        command = [sys.executable, "-m", "beit.cli", "evaluate", str(run), str(val), "--out", str(out), *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(tmp_path / "cache")}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("95 % interval") == (num_images > 1), "one rank speaks"
        found[name] = json.loads(out.read_text())
    assert found["one"] == found["two"] and found["one"]["num_images"] == num_images
