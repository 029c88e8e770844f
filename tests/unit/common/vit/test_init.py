"""Initial values against the released code's rules."""

import math

import pytest
import torch

from beit.common.vit.config import ViTConfig
from beit.common.vit.init import scale_to_width
from beit.common.vit.position_bias import near_first
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}
EFFECTIVE_STD = 0.010793  # of a normal with std 0.02 cut at one standard deviation


@pytest.fixture(scope="module")
def pretrained():
    torch.manual_seed(0)
    return MaskedImageModel(ViTConfig(**SHAPE), vocab_size=1024, num_masked=6).state_dict()


@pytest.fixture(scope="module")
def finetuned():
    torch.manual_seed(0)
    config = ViTConfig(**SHAPE, pos_bias="per_block", use_mask_token=False, init="finetune")
    return ImageClassifier(config, num_classes=100).state_dict()


@pytest.mark.parametrize(
    "name", ["patch_embed.proj.weight", "blocks.5.attn.qkv.weight", "blocks.5.mlp.fc1.weight", "lm_head.weight"]
)
def test_pretraining_weights_are_cut_at_one_std(pretrained, name):
    assert pretrained[name].std().item() == pytest.approx(EFFECTIVE_STD, rel=0.02)
    assert pretrained[name].abs().max() <= 0.02
    assert abs(pretrained[name].mean().item()) < 3e-4


@pytest.mark.parametrize("name", ["cls_token", "mask_token"])
def test_pretraining_embeddings_are_cut_too(pretrained, name):
    assert pretrained[name].std().item() == pytest.approx(EFFECTIVE_STD, rel=0.2)
    assert pretrained[name].abs().max() <= 0.02


@pytest.mark.parametrize("layer", [1, 6, 12])
@pytest.mark.parametrize("leaf", ["attn.proj.weight", "mlp.fc2.weight"])
def test_branch_outputs_shrink_with_depth(pretrained, finetuned, layer, leaf):
    name = f"blocks.{layer - 1}.{leaf}"
    assert pretrained[name].std().item() * math.sqrt(2 * layer) == pytest.approx(EFFECTIVE_STD, rel=0.02)
    assert finetuned[name].std().item() * math.sqrt(2 * layer) == pytest.approx(0.02, rel=0.02)


def test_finetuning_weights_are_practically_not_cut(finetuned):
    weight = finetuned["blocks.5.mlp.fc1.weight"]
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert 0.07 < weight.abs().max() <= 0.12  # six standard deviations: no outliers of 2.0


def test_finetuning_leaves_the_patch_convolution_at_its_default(finetuned):
    bound = 1 / math.sqrt(3 * 8 * 8)
    assert finetuned["patch_embed.proj.weight"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert 0 < finetuned["patch_embed.proj.bias"].abs().max() <= bound


def test_classification_head_is_scaled_down(finetuned):
    assert finetuned["head.weight"].std().item() == pytest.approx(2e-5, rel=0.02)
    assert not finetuned["head.bias"].any()


def test_vectors_and_tables(pretrained, finetuned):
    for state in (pretrained, finetuned):
        for name, tensor in state.items():
            if name.endswith(("q_bias", "v_bias", "relative_position_bias_table")):
                assert not tensor.any(), name
            elif name.endswith(("gamma_1", "gamma_2")):
                assert (tensor == 0.1).all(), name
            elif "norm" in name:
                assert (tensor == float(name.endswith("weight"))).all(), name
            elif name.endswith(".bias") and not name.startswith("patch_embed"):
                assert not tensor.any(), name
    assert not pretrained["patch_embed.proj.bias"].any()


def test_initial_values_follow_the_global_seed():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(
            VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)).state_dict()
        )
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["cls_token"], states[2]["cls_token"])


@pytest.mark.parametrize("pos_bias", ["shared", "per_block", "none"])
def test_scaled_weights_pass_on_what_comes_in_whatever_the_width(pos_bias):
    for width in (64, 256):
        config = ViTConfig(img_size=32, patch_size=4, embed_dim=width, depth=2, num_heads=4, pos_bias=pos_bias)
        torch.manual_seed(0)
        model = VisionTransformer(config)
        scale_to_width(model, config.grid_size)
        with torch.no_grad():
            patches = model.patch_embed(torch.randn(64, 3, 32, 32))
            keys = model.blocks[0].attn.qkv(torch.randn(1000, width))
        assert patches.std().item() == pytest.approx(0.7, rel=0.1)
        assert keys.std().item() == pytest.approx(0.7, rel=0.1)
        first, second = (block.mlp.fc2.weight.std().item() for block in model.blocks)
        assert first / second == pytest.approx(2**0.5, rel=0.05)  # what branches write still adds up over the depth
        tables = [value for name, value in model.named_parameters() if name.endswith("bias_table")]
        assert len(tables) == {"shared": 1, "per_block": 2, "none": 0}[pos_bias]
        assert all(torch.equal(table, near_first((8, 8), 4)) for table in tables)


def test_scaled_weights_leave_norms_scales_and_biases_alone():
    config = ViTConfig(img_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=4)
    torch.manual_seed(0)
    model = VisionTransformer(config)
    before = {name: value.clone() for name, value in model.state_dict().items() if value.ndim == 1}
    scale_to_width(model, config.grid_size)
    assert before
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
