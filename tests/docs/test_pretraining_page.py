"""Every `beit` command of docs/pretraining.md runs, in order, on small data under the names it uses."""

import re
from pathlib import Path

import pytest

from beit.common.runs.metrics import read_metrics
from beit.common.vit.description import read_encoder_config
from beit.tests.docs.run_commands import run_commands, shown_commands, write_public_weights
from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/pretraining.md").read_text()
pytestmark = [pytest.mark.docs, pytest.mark.timeout(1800)]

LESS = "--set train.steps=2 --set train.global_batch_size=8 --set reader.num_workers=0 --set model.depth=2"
"""Appended to the shown trainings: the same code, less of it."""


def test_commands_run_in_order(tmp_path):
    write_images(tmp_path / "photos", 80, size=72)
    for name in ("train", "val"):
        write_images(tmp_path / "labelled" / name, 16, size=72, classes=("rose", "tulip"))
    write_public_weights(tmp_path / "dino_vitbase16_pretrain.pth")
    commands = list(shown_commands(PAGE))
    assert len(commands) == PAGE.count("\nbeit ")

    def shorten(words):
        earlier = " --set profile.steps=1:2" if "runs/profiled" in words else ""
        return LESS + earlier if words[0] == "pretrain" else ""

    run_commands(commands, tmp_path, shorten)
    assert [file.name for file in (tmp_path / "runs/profiled/profile").iterdir()] == ["steps_1-1_rank0.trace.json.gz"]
    assert read_encoder_config(tmp_path / "runs/online").provenance["tokenizer_online"] is True
    assert read_encoder_config(tmp_path / "runs/probed").best_block in (0, 1)
    begun = read_encoder_config(tmp_path / "runs/continued").provenance["init"]
    assert begun["new"] == ["mask token", "head of 1024 words"]
    assert read_encoder_config(tmp_path / "runs/further").provenance["init"]["new"] == []
    named = set(re.findall(r"`((?:held_out|train|unigram|neighbour|mean)_(?:bits|acc|mse))`", PAGE))
    records = [read_metrics(path)[-1] for path in sorted((tmp_path / "runs").glob("*/metrics.jsonl"))]
    assert named <= {name for record in records for name in record}


def test_every_shipped_recipe_is_on_the_page():
    for path in (ROOT / "pretrain/recipes").glob("beit_*.toml"):
        assert f"`{path.stem}`" in PAGE
    for path in (ROOT / "pretrain/recipes").glob("ablation_*.toml"):
        assert f"`{path.stem}`" in PAGE
    for path in (ROOT / "pretrain/recipes").glob("continue_*.toml"):
        assert f"`{path.stem}`" in PAGE
