"""Every command of docs/finetuning.md runs, in order, on small data under the names it uses."""

import json
import re
from pathlib import Path

import pytest
import torch

from beit.common.config import config_to_dict
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.commands import RECIPES
from beit.finetune.config import FinetuneConfig
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.encoders import save_encoder
from beit.tests.foreign_weights import timm_vit
from beit.tests.support import write_images

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "finetuning.md").read_text()
LESS = "--set train.steps=2 --set train.global_batch_size=4 --set optimizer.warmup_epochs=0 --set reader.num_workers=0"


def write_encoder(folder):
    shape = ViTConfig(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    torch.manual_seed(0)
    state = VisionTransformer(shape).state_dict()
    save_encoder(folder, state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3, provenance={"steps": 0})


@pytest.mark.docs
@pytest.mark.timeout(1800)
def test_commands_run_in_order(tmp_path):
    write_encoder(tmp_path / "runs/pretrain/encoder")
    torch.save(timm_vit(dim=64), tmp_path / "dino_vitbase16_pretrain.pth")
    write_images(tmp_path / "new-photos", 3, size=40)
    for name in ("train", "val", "test"):
        write_images(tmp_path / "labelled" / name, 12, size=40, classes=("rose", "tulip"))
        images = write_images(tmp_path / "scenes" / f"{name}-images", 8, size=40)
        rows = [f"{path.relative_to(tmp_path / 'scenes')}," for path in sorted(images.rglob("*.png"))]
        labels = ("beach|sunset", "beach", "", "sunset") * 2
        lines = ["path,label", *map("".join, zip(rows, labels, strict=True))]
        (tmp_path / "scenes" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    commands = list(shown_commands(TEXT))
    assert len(commands) >= 8
    run_commands(commands, tmp_path, lambda words: LESS if words[:2] == ["finetune", "classification"] else "")
    for file in ("test.html", "labels.csv", "labels.parquet"):
        assert (tmp_path / file).stat().st_size > 100
    assert json.loads((tmp_path / "test.json").read_text())["num_images"] == 12
    assert len((tmp_path / "embeddings.jsonl").read_text().splitlines()) == 3
    for task in ("linear-probe", "knn"):
        assert len(json.loads((tmp_path / "runs/probe" / f"{task}.json").read_text())["blocks"]) == 2


def test_settings_it_names_exist():
    known = config_to_dict(FinetuneConfig())
    optional = {"train.ema_decay", "train.early_stop_evals", "train.micro_batch_size", "image.img_size"}
    optional |= {
        "data.num_labels",
        "data.label_fraction",
        "data.num_val_images",
        "data.class_names",
        "data.label_column",
    }
    named = set(re.findall(r"`((?:augment|mix|classifier|model|train|data|probe|image)\.[a-z_0-9]+)", TEXT))
    assert len(named) > 15
    for setting in named - optional:
        section, key = setting.split(".")
        assert key in known[section], setting


def test_recipes_it_names_exist():
    named = set(re.findall(r"`((?:small|beit|cifar10)_[a-z0-9_]+)`", TEXT))
    shipped = {path.stem for path in RECIPES.glob("*.toml")}
    assert len(named) >= 8
    assert named <= shipped
