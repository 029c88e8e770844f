"""Attention maps and distances, and the picture of both."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from beit.cli import beit
from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.attention import attention_distances, parse_query, patch_distances
from beit.tests.encoders import save_encoder
from beit.tests.support import write_images

CONFIG = ViTConfig(img_size=16, patch_size=4, embed_dim=12, depth=3, num_heads=2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VisionTransformer(CONFIG).eval()


@pytest.fixture
def folder(model, tmp_path):
    save_encoder(
        tmp_path / "encoder",
        model.state_dict(),
        architecture=CONFIG,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        best_block=1,
        provenance={},
    )
    write_images(tmp_path / "images", 5, size=20)
    return tmp_path


def show(folder, *words):
    out = ["--out", str(folder / "a.png"), "--json", str(folder / "a.json")]
    return CliRunner().invoke(
        beit, ["show", "attention", str(folder / "encoder"), str(folder / "images"), *words, *out]
    )


def test_distances_between_patches_are_those_of_their_centres():
    distances = patch_distances((3, 4))
    assert distances.shape == (12, 12)
    assert distances[0, 11].item() == pytest.approx(np.hypot(2, 3))
    assert torch.equal(distances, distances.T)
    assert distances.diagonal().abs().max() == 0


@torch.no_grad()
def test_attention_to_all_alike_is_as_far_as_the_mean_patch_and_to_oneself_no_way(model):
    for block in model.blocks:
        block.attn.qkv.weight.zero_()
    images = torch.randn(2, 3, 16, 16)
    mean = 4 * patch_distances((4, 4)).mean().item()  # patches of 4 px
    assert attention_distances(model, images) == pytest.approx(np.full((3, 2), mean))
    # A bias for the distance 0 alone makes each patch look at itself; one head only.
    same_place = model.relative_position_index[1, 1]
    model.rel_pos_bias.relative_position_bias_table[same_place, 1] = 100.0
    found = attention_distances(model, images)
    assert found[:, 0] == pytest.approx(np.full(3, mean))
    assert found[:, 1] == pytest.approx(np.zeros(3), abs=1e-6)


def test_the_picture_shows_the_block_that_a_probe_found_best(folder, model):
    result = show(folder, "--rows", "2")
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "a.json").read_text())
    assert found["block"] == 1
    assert np.shape(found["mean_distance_px"]) == (3, 2)
    one_query = Image.open(folder / "a.png").size
    assert show(folder, "--rows", "2", "--block", "0", "--query", "0,3", "--query", "cls").exit_code == 0
    assert json.loads((folder / "a.json").read_text())["block"] == 0
    more = Image.open(folder / "a.png").size
    assert (more[0], more[1] > one_query[1]) == (one_query[0], True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--query", "4,0"), r"--query \(4,0\) is outside the encoder's grid of 4 x 4"),
        (("--query", "left"), r"--query \(left\) must be ROW,COLUMN"),
        (("--block", "3"), r"--block \(3\) must be in \[0, 2\]"),
    ],
)
def test_what_is_not_there_is_refused(folder, words, message):
    result = show(folder, *words)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert not (folder / "a.png").exists()


def test_queries_are_positions_behind_cls():
    assert [parse_query(text, (3, 4)) for text in ("cls", "0,0", "2,3")] == [0, 1, 12]
