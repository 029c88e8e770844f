"""Every command of the section on words by k-means runs, in order, on small data under the names it uses."""

import re
from pathlib import Path

import pytest
import torch

from beit.common.config import config_to_dict
from beit.common.encoder import save_model
from beit.common.tokenizer import load_tokenizer
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.tests.docs.run_commands import run_commands, shown_commands
from beit.tests.support import write_images
from beit.tokenize.clustering.config import ClusteringConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tokenizers.md").read_text()
SECTION = PAGE[PAGE.index("\n## Words by k-means\n") : PAGE.index("\n## A tokenizer of somebody else\n")]
# Appended to the shown commands: the same code, less of it.
LESS = (
    "--set model.vocab_size=16 --set data.num_eval_images=4 --set clustering.steps=2 --set clustering.painting_steps=1 "
    "--set clustering.global_batch_size=4 --set clustering.micro_batch_size=4 --set reader.num_workers=1"
)


@pytest.mark.docs
@pytest.mark.timeout(900)
def test_commands_run_in_order(tmp_path):
    write_images(tmp_path / "photos", 10, size=64)
    shape = ViTConfig(img_size=32, patch_size=4, embed_dim=12, depth=2, num_heads=2)
    described = EncoderConfig(architecture=shape, normalization=Normalization((0.5,) * 3, (0.5,) * 3), task="pretrain")
    torch.manual_seed(0)
    save_model(tmp_path / "runs/pretrain/encoder", VisionTransformer(shape).state_dict(), described)
    commands = list(shown_commands(SECTION))
    assert len(commands) == 3
    run_commands(commands, tmp_path, lambda words: LESS if words[1] == "train" else "--views 1")
    for name in ("pixels", "seen"):
        assert load_tokenizer(tmp_path / "tokenizers" / name, need_decoder=True).vocab_size == 16


def test_settings_it_names_exist():
    optional = {"model.patch_size", "model.anchor", "data.view_size"}
    fields = {name: set(section) for name, section in config_to_dict(ClusteringConfig()).items() if name != "seed"}
    named = set(re.findall(r"\b((?:model|data|clustering)\.[a-z_]+)", SECTION))
    assert len(named) > 7
    for setting in named - optional:
        section, key = setting.split(".")
        assert key in fields[section], setting
