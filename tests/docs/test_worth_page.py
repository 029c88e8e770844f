"""The command of docs/worth.md runs on small data, from scratch to a table, and repeats nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from beit.common.vit.config import ViTConfig
from beit.pretrain.model import MaskedImageModel
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.encoders import save_encoder
from beit.tests.support import write_images

TEXT = (Path(__file__).resolve().parents[2] / "docs/worth.md").read_text()
LESS = (
    "--labels 8:1 --seeds 0,1 --starts random,weights,scratch --steps 2 --threads 1 --set reader.num_workers=0 "
    "--set train.global_batch_size=8 --pretrain-set reader.num_workers=0 --pretrain-set train.global_batch_size=8"
)


@pytest.mark.docs
@pytest.mark.timeout(1200)
def test_the_command_of_the_page_runs(tmp_path):
    for name, count in (("flowers/train", 24), ("flowers/val", 8)):
        write_images(tmp_path / name, count, size=32, classes=("a", "b"))
    write_images(tmp_path / "photos", 24, size=32)
    torch.manual_seed(0)
    shape = ViTConfig(img_size=32, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    state = MaskedImageModel(shape, vocab_size=8, num_masked=4).state_dict()
    save_encoder(tmp_path / "encoders/dino", state, architecture=shape, mean=[0.5] * 3, std=[0.5] * 3, provenance={})
    words = ["tokenize", "photos", "store", "--img-size", "32", "--patch-size", "4", "--views", "2"]
    subprocess.run([sys.executable, "-m", "beit.cli", *words], cwd=tmp_path, check=True, capture_output=True)
    commands = list(shown_commands(TEXT))
    assert len(commands) == 1
    printed = run_commands(commands, tmp_path, lambda _: LESS)
    assert "With 8 labels (fine-tuned)" in printed and "wrote worth/worth.md" in printed
    document = json.loads((tmp_path / "worth/worth.json").read_text())
    assert document["encoders"]["scratch"]["steps"] == 2
    assert [row["task"] for row in document["rows"]] == ["classification", "linear-probe", "knn"]
    runs = [str(path.relative_to(tmp_path)) for path in sorted((tmp_path / "worth/runs").glob("finetune-*"))]
    compared = subprocess.run(
        [sys.executable, "-m", "beit.cli", "compare", *runs], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "fine" in compared.stdout or "classification" in compared.stdout
