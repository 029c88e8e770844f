"""Every command of docs/segmentation.md runs, in order, on small data under the names it uses; what it names exists."""

import re
from pathlib import Path

import pytest
import torch

from beit.common.config import config_to_dict
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.commands import SEGMENTATION_RECIPES
from beit.finetune.segmentation.config import SegmentationConfig
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.encoders import save_encoder
from beit.tests.unit.finetune.segmentation.scenes import write_scenes

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "segmentation.md").read_text()
LESS = "--set train.steps=3 --set train.global_batch_size=4 --set optimizer.warmup_steps=0 --set reader.num_workers=0"


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_commands_run_in_order(tmp_path):
    shape = ViTConfig(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2)
    torch.manual_seed(0)
    encoder, state = tmp_path / "runs/pretrain/encoder", VisionTransformer(shape).state_dict()
    save_encoder(encoder, state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3, provenance={"steps": 0})
    write_scenes(tmp_path / "streets/train", 6)
    write_scenes(tmp_path / "streets/val", 3, start=50)
    commands = list(shown_commands(TEXT))
    assert len(commands) == 2
    run_commands(commands, tmp_path, lambda words: "" if "--check" in words else LESS)
    for file in ("model/config.json", "last/model.safetensors", "predictions.png"):
        assert (tmp_path / "runs/streets" / file).is_file()


def test_settings_it_names_exist():
    known = config_to_dict(SegmentationConfig())
    named = set(re.findall(r"`((?:augment|head|model|train|data|image|optimizer|evaluation)\.[a-z_0-9]+)", TEXT))
    optional = {"train.micro_batch_size", "train.steps", "image.img_size", "augment.short_side", "evaluation.stride"}
    optional |= {"evaluation.short_side", "data.num_labels", "data.label_fraction", "data.classes"}
    assert len(named) > 15
    for setting in named - optional:
        section, key = setting.split(".")
        assert key in known[section], setting


def test_recipes_it_names_are_all_there_are():
    named = set(re.findall(r"`((?:segmentation|beit)_[a-z0-9_]+)`", TEXT))
    assert named == {path.stem for path in SEGMENTATION_RECIPES.glob("*.toml")}
