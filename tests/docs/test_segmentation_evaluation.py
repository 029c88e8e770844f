"""Every command of docs/segmentation-evaluation.md runs, in order, on small data under the names it uses."""

import json
from pathlib import Path

import pytest

from beit.finetune.evaluation.segmentation_scores import DEFINITIONS
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.unit.finetune.evaluation.streets import write_segmenter, write_streets

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "segmentation-evaluation.md").read_text()
LESS = "--set train.steps=3 --set train.global_batch_size=4 --set optimizer.warmup_steps=0 --set reader.num_workers=0"


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_commands_run_in_order(tmp_path):
    write_streets(tmp_path / "streets/train", 8)
    write_streets(tmp_path / "streets/val", 6, start=20)
    write_segmenter(tmp_path / "runs/streets")
    commands = list(shown_commands(TEXT))
    assert len(commands) == 7
    printed = run_commands(commands, tmp_path, lambda words: LESS if words[0] == "finetune" else "")
    assert "segmentation, mIoU" in printed and "B - A" in printed
    assert json.loads((tmp_path / "val.json").read_text())["num_images"] == 6
    assert (tmp_path / "val.html").stat().st_size < 5_000_000
    assert "Comparison of" in (tmp_path / "comparison.html").read_text()


def test_names_of_means_are_those_of_the_page():
    assert all(f"`{name}`" in TEXT for name in DEFINITIONS)
