"""The commands of docs/plan.md run, and the check against real runs that it names does, too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images, write_store

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/plan.md").read_text()


@pytest.mark.docs
def test_the_commands_of_the_page_run(tmp_path):
    write_images(tmp_path / "photos", 60, size=96)
    store = Path(write_store(tmp_path / "made", images=60, views=64).location)
    store.rename(tmp_path / "store")
    commands = list(shown_commands(TEXT))
    assert len(commands) == 3 and all(command.startswith("beit plan ") for command in commands)
    printed = run_commands(commands, tmp_path, lambda _: "")
    assert "in all" in printed and "64 x A100" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.docs
def test_the_check_against_real_runs_states_every_figure(tmp_path):
    write_images(tmp_path / "photos", 40, size=96)
    labelled = [write_images(tmp_path / name, 520, size=32, classes=("a", "b")) for name in ("train", "val")]
    command = [sys.executable, ROOT / "benchmarks/plan_check.py", "--photos", tmp_path / "photos", "--steps", "2"]
    paths = ["--cifar", labelled[0], "--val", labelled[1], "--only", "fine-tuning", "--json"]
    done = subprocess.run([*command, *paths], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    rows = json.loads(done.stdout)
    assert {(row["stage"], row["figure"]) for row in rows} >= {
        (stage, figure) for stage in ("pretrain", "finetune") for figure in ("disk", "memory", "time")
    }
    assert all(row["found"] > 0 and row["planned"] > 0 for row in rows)
