"""The backbone: published parameter counts and names, what a forward does, and its precision."""

import pytest
import torch

from beit.common.vit import vit
from beit.common.vit.config import ModelConfig, ViTConfig, build_vit_config
from beit.common.vit.vit import VisionTransformer, grid_features
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}

BLOCK_KEYS = {
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.qkv.weight", "attn.q_bias", "attn.v_bias",
    "attn.proj.weight", "attn.proj.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias",
    "gamma_1", "gamma_2",
}  # fmt: skip
STEM_KEYS = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}


def build(seed=0, **settings):
    torch.manual_seed(seed)
    return VisionTransformer(ViTConfig(**(SMALL | settings)))


def disturb(model):
    """Give every tensor a random value, so that zero tables and unit norms hide nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def official_keys(*names, depth=3, block_extra=()):
    blocks = {f"blocks.{i}.{key}" for i in range(depth) for key in BLOCK_KEYS | set(block_extra)}
    return STEM_KEYS | blocks | set(names)


@pytest.mark.parametrize(
    ("size", "block", "pretrain", "without_head", "plain"),
    [
        ("base", 7_088_640, 91_965_776, 85_666_128, 92_089_856),
        ("large", 12_597_248, 311_534_016, 303_137_216, 311_674_880),
    ],
)
def test_pretraining_parameter_counts(size, block, pretrain, without_head, plain):
    with torch.device("meta"):
        config = build_vit_config(ModelConfig(size=size), img_size=224, patch_size=16)
        model = MaskedImageModel(config, vocab_size=8192, num_masked=75)
        simple = ModelConfig(size=size, pos_bias="none", use_abs_pos_emb=True, init_values=0.0)
        config = build_vit_config(simple, img_size=224, patch_size=16)
        plain_model = MaskedImageModel(config, vocab_size=8192, num_masked=75)
    assert count(model.blocks[0]) == block
    assert count(model) == pretrain
    assert count(model) - count(model.lm_head) == without_head
    assert count(plain_model) == plain


@pytest.mark.parametrize(
    ("size", "img_size", "num_classes", "total"),
    [
        ("base", 224, 1000, 86_530_984),
        ("base", 224, 21841, 102_557_713),
        ("base", 384, 1000, 86_744_104),
        ("base", 512, 1000, 86_997_544),
        ("large", 224, 1000, 304_430_568),
        ("large", 224, 21841, 325_792_593),
        ("large", 384, 1000, 304_998_888),
        ("large", 512, 1000, 305_674_728),
    ],
)
def test_finetuning_parameter_counts(size, img_size, num_classes, total):
    model = ModelConfig(size=size, pos_bias="per_block")
    config = build_vit_config(model, img_size=img_size, patch_size=16, use_mask_token=False, init="finetune")
    with torch.device("meta"):
        assert count(ImageClassifier(config, num_classes=num_classes)) == total


def test_state_dict_keys_of_pretraining_are_the_official_ones():
    model = MaskedImageModel(ViTConfig(**SMALL), vocab_size=32, num_masked=4)
    assert set(model.state_dict()) == official_keys(
        "mask_token", "norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias",
        "rel_pos_bias.relative_position_bias_table",
    )  # fmt: skip


def test_state_dict_keys_of_finetuning_are_the_official_ones():
    config = ViTConfig(**SMALL, pos_bias="per_block", use_mask_token=False, init="finetune")
    table = ("attn.relative_position_bias_table",)
    names = ("head.weight", "head.bias")
    mean = ImageClassifier(config, num_classes=5)
    assert set(mean.state_dict()) == official_keys("fc_norm.weight", "fc_norm.bias", *names, block_extra=table)
    cls = ImageClassifier(config, num_classes=5, pooling="cls")
    assert set(cls.state_dict()) == official_keys("norm.weight", "norm.bias", *names, block_extra=table)


def test_hidden_states_have_cls_first_and_full_precision():
    model = build()
    hidden = model.forward_features(torch.randn(2, 3, 16, 16))
    assert hidden.shape == (2, 17, 16)
    assert hidden.dtype == torch.float32


def test_residual_stream_stays_float32_under_autocast():
    model = build(init_values=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.forward_features(torch.randn(2, 3, 16, 16), torch.zeros(2, 16, dtype=torch.bool))
        assert model.attention_biases()[0].dtype == torch.bfloat16
    assert hidden.dtype == torch.float32
    hidden.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters() if parameter.grad is not None)


def test_autocast_is_close_to_float32():
    model = disturb(build()).eval()
    images = torch.randn(2, 3, 16, 16)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
    assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_masked_pixels_have_no_influence():
    model = disturb(build()).eval()
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True  # row 1, column 1
    images = torch.randn(1, 3, 16, 16)
    other = images.clone()
    other[:, :, 4:8, 4:8] += 1.0
    assert torch.equal(model.forward_features(images, mask), model.forward_features(other, mask))
    assert not torch.equal(model.forward_features(images), model.forward_features(other))


def test_shared_table_equals_its_copies_per_block():
    shared = disturb(build()).eval()
    separate = build(pos_bias="per_block").eval()
    state = shared.state_dict()
    table = state.pop("rel_pos_bias.relative_position_bias_table")
    state |= {f"blocks.{i}.attn.relative_position_bias_table": table for i in range(3)}
    separate.load_state_dict(state)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(shared(images), separate(images))


def test_attention_is_the_written_out_formula():
    model = disturb(build(depth=1, init_values=0.0)).eval()
    attention = model.blocks[0].attn
    hidden = torch.randn(2, 17, 16)
    bias = model.attention_biases()[0]
    weight = attention.qkv.weight
    query = hidden @ weight[:16].T + attention.q_bias
    key = hidden @ weight[16:32].T
    value = hidden @ weight[32:].T + attention.v_bias
    heads = [tensor.view(2, 17, 2, 8).transpose(1, 2) for tensor in (query, key, value)]
    logits = heads[0] @ heads[1].transpose(-2, -1) / 8**0.5 + bias
    mixed = (logits.softmax(-1) @ heads[2]).transpose(1, 2).reshape(2, 17, 16)
    torch.testing.assert_close(attention(hidden, bias), attention.proj(mixed), atol=1e-5, rtol=1e-5)


def test_written_out_attention_agrees_with_the_fused_kernel(monkeypatch):
    from beit.common.vit import vit

    model = disturb(build()).eval()
    images = torch.randn(2, 3, 16, 16)
    written_out = model(images)
    monkeypatch.setattr(vit, "_attend_on_cpu", torch.nn.functional.scaled_dot_product_attention)
    torch.testing.assert_close(model(images), written_out, atol=1e-4, rtol=1e-4)


def test_attention_weights_are_probabilities_of_the_chosen_block():
    model = disturb(build()).eval()
    images = torch.randn(2, 3, 16, 16)
    weights = model.attention_weights(images, 1)
    assert weights.shape == (2, 2, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 17))
    block, bias = model.blocks[1], model.attention_biases()[1]
    hidden = model.forward_intermediates(images, [0])[0]
    _, _, value = block.attn.project(block.norm1(hidden))
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.attn.proj(mixed), block.attn(block.norm1(hidden), bias), atol=1e-5, rtol=1e-5)


def test_intermediates_are_the_stream_after_each_block():
    model = disturb(build()).eval()
    images = torch.randn(2, 3, 16, 16)
    first, last = model.forward_intermediates(images, [0, 2])
    assert torch.equal(last, model.forward_features(images))
    assert not torch.equal(first, last)
    with pytest.raises(ValueError, match="3"):
        model.forward_intermediates(images, [3])


def test_drop_path_rates_rise_linearly_from_zero():
    assert [block.drop_path for block in build(drop_path=0.2).blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert [block.drop_path for block in build(drop_path=0.2, depth=1).blocks] == [0.0]


def test_drop_path_skips_whole_samples_and_keeps_the_mean():
    model = build(drop_path=0.5)
    block = model.blocks[-1].train()
    hidden, branch = torch.zeros(4000, 2, 16), torch.ones(4000, 2, 16)
    added = block._add(hidden, branch, None)
    assert set(added.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(added.amin((1, 2)), added.amax((1, 2)))
    assert added.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(block.eval()._add(hidden, branch, None), branch)


def test_layer_scale_multiplies_the_branch():
    block = build(init_values=0.25, drop_path=0.0).blocks[0].train()
    assert torch.equal(
        block._add(torch.ones(2, 1, 16), torch.ones(2, 1, 16), block.gamma_1), torch.full((2, 1, 16), 1.25)
    )
    assert build(init_values=0.0).blocks[0].gamma_1 is None


def test_eval_is_deterministic():
    model = build(drop_path=0.9).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), model(images))


def test_double_precision_models_stay_double():
    assert build().double()(torch.randn(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_absolute_positions_are_added():
    model = build(use_abs_pos_emb=True, pos_bias="none").eval()
    images = torch.randn(1, 3, 16, 16)
    embedded = model.embed(images)
    with torch.no_grad():
        model.pos_embed.add_(1.0)
    torch.testing.assert_close(model.embed(images), embedded + 1)
    assert model.attention_biases() == [None] * 3


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="16x16"):
        build()(torch.randn(1, 3, 20, 20))
    with pytest.raises(ValueError, match="mask token"):
        build(use_mask_token=False).forward_features(torch.randn(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.bool))


def test_images_of_another_shape_are_taken_with_their_grid():
    model = build(use_abs_pos_emb=True, pos_bias="per_block").eval()
    images = torch.randn(2, 3, 8, 24)
    with torch.no_grad():
        (hidden,) = model.forward_intermediates(images, [1], (2, 6))
    assert hidden.shape == (2, 13, 16) and grid_features(hidden, (2, 6)).shape == (2, 16, 2, 6)
    with pytest.raises(ValueError, match="8x24 pixels, their grid_size"):
        model.forward_intermediates(torch.randn(1, 3, 16, 16), [1], (2, 6))


def test_fused_attention_of_long_sequences_is_the_same_function(monkeypatch):
    model, images = build().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(images)
        monkeypatch.setattr(vit, "_LONG", 1)
        torch.testing.assert_close(model(images), expected)
