"""Which tensors are decayed and how each layer's learning rate is scaled: the released code's groups."""

import pytest
import torch

from beit.common.vit.config import ViTConfig
from beit.common.vit.param_groups import is_decayed, param_groups
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel

MULTIPLIERS = [
    0.0036972, 0.005688, 0.0087508, 0.0134627, 0.0207119, 0.0318645, 0.0490223,
    0.0754189, 0.1160291, 0.1785063, 0.274625, 0.4225, 0.65, 1.0,
]  # fmt: skip


@pytest.fixture(scope="module")
def pretrain_model():
    with torch.device("meta"):
        return MaskedImageModel(ViTConfig(), vocab_size=8192, num_masked=75)


@pytest.fixture(scope="module")
def classifier():
    with torch.device("meta"):
        config = ViTConfig(pos_bias="per_block", use_mask_token=False, init="finetune")
        return ImageClassifier(config, num_classes=1000)


def names_of(model, group):
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_pretraining_decays_exactly_the_released_tensors(pretrain_model):
    decayed, spared = param_groups(pretrain_model, weight_decay=0.05)
    wanted = {"patch_embed.proj.weight", "lm_head.weight", "mask_token", "rel_pos_bias.relative_position_bias_table"}
    for i in range(12):
        wanted |= {f"blocks.{i}.{leaf}.weight" for leaf in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert names_of(pretrain_model, decayed) == wanted
    assert (len(decayed["params"]), len(spared["params"])) == (52, 137)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert decayed["lr_scale"] == spared["lr_scale"] == 1.0


def test_finetuning_has_28_groups_with_the_released_multipliers(classifier):
    groups = param_groups(classifier, weight_decay=0.05, layer_decay=0.65, depth=12)
    assert len(groups) == 28
    assert [group["lr_scale"] for group in groups[::2]] == pytest.approx(MULTIPLIERS, rel=1e-4)
    assert [group["lr_scale"] for group in groups[1::2]] == pytest.approx(MULTIPLIERS, rel=1e-4)
    assert [len(group["params"]) for group in groups[2:-2]] == [5, 11] * 12
    assert names_of(classifier, groups[0]) == {"patch_embed.proj.weight"}
    assert names_of(classifier, groups[1]) == {"cls_token", "patch_embed.proj.bias"}
    assert names_of(classifier, groups[-2]) == {"head.weight"}
    assert names_of(classifier, groups[-1]) == {"fc_norm.weight", "fc_norm.bias", "head.bias"}
    assert "blocks.3.attn.relative_position_bias_table" in names_of(classifier, groups[8])


def test_every_trainable_parameter_is_in_exactly_one_group(classifier):
    groups = param_groups(classifier, weight_decay=0.05, layer_decay=0.65, depth=12)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in classifier.parameters())


def test_frozen_parameters_are_left_out():
    model = ImageClassifier(ViTConfig(img_size=32, embed_dim=8, depth=1, num_heads=2), num_classes=2)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    groups = param_groups(model, weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_layer_decay_of_one_keeps_two_groups(classifier):
    assert len(param_groups(classifier, weight_decay=0.05, layer_decay=1.0, depth=12)) == 2


def test_biases_are_spared_whatever_their_shape():
    assert not is_decayed("head.bias", 2)
    assert not is_decayed("pos_embed", 3)
    assert is_decayed("head.weight", 2)


def test_position_tables_alone_get_their_factor_and_lose_their_decay(pretrain_model, classifier):
    decayed, spared, tables = param_groups(pretrain_model, weight_decay=0.05, position_lr_scale=10.0)
    assert names_of(pretrain_model, tables) == {"rel_pos_bias.relative_position_bias_table"}
    assert (tables["lr_scale"], tables["weight_decay"]) == (10.0, 0.0)
    assert (decayed["lr_scale"], spared["lr_scale"], decayed["weight_decay"]) == (1.0, 1.0, 0.05)
    assert (len(decayed["params"]), len(spared["params"])) == (51, 137)
    groups = param_groups(classifier, weight_decay=0.05, layer_decay=0.5, depth=12, position_lr_scale=10.0)
    of_tables = [group for group in groups if any("position" in name for name in names_of(classifier, group))]
    assert [group["lr_scale"] for group in of_tables] == pytest.approx([10 * 0.5 ** (12 - i) for i in range(12)])
