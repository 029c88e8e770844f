"""Every command of docs/segmentation-evaluation.md runs, in order, on small data under the names it uses."""

import json
from pathlib import Path

import pytest

from beit.finetune.evaluation.segmentation_scores import DEFINITIONS
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.unit.finetune.evaluation.streets import write_segmenter, write_streets

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "segmentation-evaluation.md").read_text()


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_commands_run_in_order(tmp_path):
    write_streets(tmp_path / "streets/val", 6)
    for number, name in enumerate(("streets", "random")):
        write_segmenter(tmp_path / f"runs/{name}", seed=number)
    commands = list(shown_commands(TEXT))
    assert len(commands) == 6
    printed = run_commands(commands, tmp_path, lambda words: "")
    assert "segmentation, mIoU" in printed and "B - A" in printed
    assert json.loads((tmp_path / "val.json").read_text())["num_images"] == 6
    assert (tmp_path / "val.html").stat().st_size < 5_000_000
    assert "Comparison of" in (tmp_path / "comparison.html").read_text()


def test_names_of_means_are_those_of_the_page():
    assert all(f"`{name}`" in TEXT for name in DEFINITIONS)
