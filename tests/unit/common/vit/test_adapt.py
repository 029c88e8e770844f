"""Weights for another resolution or position mode."""

from dataclasses import replace

import pytest
import torch

from beit.common.errors import InputError
from beit.common.vit.adapt import SHARED_TABLE, adapt_state, resize_pos_embed
from beit.common.vit.config import ViTConfig
from beit.common.vit.position_bias import resize_table
from beit.common.vit.vit import VisionTransformer

CONFIG = ViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)


def random_state(config):
    torch.manual_seed(0)
    model = VisionTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.state_dict()


def test_shared_table_is_copied_to_every_block_and_resized():
    state = random_state(CONFIG)
    adapted = adapt_state(state, CONFIG, replace(CONFIG, img_size=24, pos_bias="per_block"))
    wanted = resize_table(state[SHARED_TABLE], (4, 4), (6, 6))
    tables = [adapted[f"blocks.{i}.attn.relative_position_bias_table"] for i in range(2)]
    assert all(torch.equal(table, wanted) for table in tables)
    assert tables[0].data_ptr() != tables[1].data_ptr()
    assert SHARED_TABLE not in adapted
    assert SHARED_TABLE in state


def test_same_shape_changes_nothing():
    state = random_state(CONFIG)
    adapted = adapt_state(state, CONFIG, CONFIG)
    assert adapted.keys() == state.keys()
    assert all(adapted[name] is state[name] for name in state)


def test_index_buffers_of_released_files_are_dropped():
    state = random_state(CONFIG) | {"rel_pos_bias.relative_position_index": torch.zeros(17, 17)}
    assert "rel_pos_bias.relative_position_index" not in adapt_state(state, CONFIG, CONFIG)


@pytest.mark.parametrize("pos_bias", ["shared", "per_block"])
def test_tables_added_to_a_model_without_leave_its_function_unchanged(pos_bias):
    source = replace(CONFIG, pos_bias="none", use_abs_pos_emb=True)
    target = replace(source, pos_bias=pos_bias)
    state = random_state(source)
    before, after = VisionTransformer(source).eval(), VisionTransformer(target).eval()
    before.load_state_dict(state)
    after.load_state_dict(adapt_state(state, source, target))
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(after(images), before(images), atol=1e-5, rtol=1e-5)


def test_absolute_positions_are_resized_bicubically():
    pos_embed = torch.randn(1, 17, 8)
    resized = resize_pos_embed(pos_embed, (4, 4), (6, 6))
    assert resized.shape == (1, 37, 8)
    assert torch.equal(resized[:, 0], pos_embed[:, 0])
    patches = pos_embed[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(patches, size=(6, 6), mode="bicubic", align_corners=False)
    assert torch.equal(resized[0, 1:].T.reshape(8, 6, 6), wanted[0])
    assert resize_pos_embed(pos_embed, (4, 4), (4, 4)) is pos_embed


@pytest.mark.parametrize(
    ("source", "target", "values"),
    [
        ({}, {"patch_size": 8}, ("patch_size", "4", "8")),
        ({}, {"embed_dim": 32}, ("embed_dim", "16", "32")),
        ({}, {"use_abs_pos_emb": True}, ("use_abs_pos_emb",)),
        ({"pos_bias": "per_block"}, {"pos_bias": "shared"}, ("per_block", "shared")),
        ({"pos_bias": "shared"}, {"pos_bias": "none"}, ("shared", "none")),
    ],
)
def test_impossible_changes_are_refused(source, target, values):
    source, target = replace(CONFIG, **source), replace(CONFIG, **target)
    with pytest.raises(InputError) as error:
        adapt_state({}, source, target)
    assert all(value in str(error.value) for value in values)
