"""Same weights, same inputs, same outputs as the BEiT of Hugging Face transformers, in float32 on the CPU.

Random weights and LayerNorm eps 1e-6 on both sides (the reference defaults to 1e-12, the released code has 1e-6).
Tolerance: 1e-5 relative to the largest logit, as two orders of summing the attention differ by about 3e-6.
"""

import re

import pytest
import torch
import transformers

from beit.common.vit.adapt import adapt_state
from beit.common.vit.config import ViTConfig
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel, mim_loss
from beit.tests.support import predict_all

pytestmark = pytest.mark.reference

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
TOLERANCE = 1e-5

RENAMES = [
    (r"^cls_token$", "beit.embeddings.cls_token"),
    (r"^mask_token$", "beit.embeddings.mask_token"),
    (r"^pos_embed$", "beit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "beit.embeddings.patch_embeddings.projection"),
    (r"^rel_pos_bias\.", "beit.shared_position_bias."),
    (r"^blocks\.(\d+)\.attn\.relative", r"beit.layers.\1.relative_position_bias.relative"),
    (r"^blocks\.(\d+)\.", r"beit.layers.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.q_bias$", ".attention.q_proj.bias"),
    (r"\.attn\.v_bias$", ".attention.v_proj.bias"),
    (r"\.gamma_", ".lambda_"),
    (r"^norm\.", "layernorm."),
    (r"^fc_norm\.", "beit.pooler.layernorm."),
    (r"^head\.", "classifier."),
]  # fmt: skip


def reference_state(state):
    """Official names to the live names of transformers 5."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("attn.qkv.weight"):
            prefix = name.removesuffix("attn.qkv.weight") + "attention."
            renamed |= {f"{prefix}{kind}_proj.weight": part for kind, part in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            renamed[name] = tensor
    return renamed


def reference_config(config, **settings):
    return transformers.BeitConfig(
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        image_size=config.img_size,
        patch_size=config.patch_size,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
        layer_scale_init_value=config.init_values,
        use_absolute_position_embeddings=config.use_abs_pos_emb,
        use_shared_relative_position_bias=config.pos_bias == "shared",
        use_relative_position_bias=config.pos_bias == "per_block",
        use_mask_token=config.use_mask_token,
        use_mean_pooling=True,
        attn_implementation="eager",
        **settings,
    )


def disturb(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15, generator=generator)
    return model.eval()


def assert_close(ours, theirs):
    difference = (ours - theirs).abs()
    assert difference.max() < TOLERANCE * max(1, theirs.abs().max()), (
        f"max difference {difference.max():.2e} at flat index {difference.argmax().item()}"
    )


@pytest.mark.parametrize(
    "settings", [{}, {"pos_bias": "none", "use_abs_pos_emb": True, "init_values": 0.0}], ids=["shared", "absolute"]
)
def test_masked_image_model(settings):
    config = ViTConfig(**SHAPE, **settings)
    model = disturb(MaskedImageModel(config, vocab_size=40, num_masked=6))
    reference = transformers.BeitForMaskedImageModeling(reference_config(config, vocab_size=40)).eval()
    result = reference.load_state_dict(reference_state(model.state_dict()), strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("relative_position_index") for key in result.missing_keys)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 2:8] = mask[1, 9:13] = True
    with torch.no_grad():
        wanted = reference(images, bool_masked_pos=mask).logits
        assert_close(predict_all(model, images, mask), wanted)
        prediction = model(images, mask)
    assert_close(prediction.logits[prediction.valid], wanted[mask])


def test_masked_image_model_loss_and_gradients():
    config = ViTConfig(**SHAPE, drop_path=0.0)
    model = disturb(MaskedImageModel(config, vocab_size=40, num_masked=6))
    reference = transformers.BeitForMaskedImageModeling(reference_config(config, vocab_size=40)).eval()
    reference.load_state_dict(reference_state(model.state_dict()), strict=False)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    token_ids = torch.randint(0, 40, (2, 16), generator=generator)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 2:8] = mask[1, 9:13] = True
    ours = mim_loss(model(images, mask), token_ids).loss
    theirs = reference(images, bool_masked_pos=mask, labels=token_ids[mask]).loss
    assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters()}
    gradients = reference_state({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_image_classifier():
    config = ViTConfig(**SHAPE, pos_bias="per_block", use_mask_token=False, init="finetune")
    model = disturb(ImageClassifier(config, num_classes=7))
    reference = transformers.BeitForImageClassification(reference_config(config, num_labels=7)).eval()
    result = reference.load_state_dict(reference_state(model.state_dict()), strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("relative_position_index") for key in result.missing_keys)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(model(images), reference(images).logits)


FILE_RENAMES = [
    (r"^cls_token$", "beit.embeddings.cls_token"),
    (r"^mask_token$", "beit.embeddings.mask_token"),
    (r"^patch_embed\.proj", "beit.embeddings.patch_embeddings.projection"),
    (r"^rel_pos_bias\.", "beit.encoder.relative_position_bias."),
    (r"^blocks\.(\d+)\.", r"beit.encoder.layer.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.gamma_", ".lambda_"),
    (r"^norm\.", "layernorm."),
]  # fmt: skip


def file_state(state):
    """Official names to those in files of the hub."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in FILE_RENAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("attn.qkv.weight"):
            prefix = name.removesuffix("attn.qkv.weight") + "attention.attention."
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            renamed |= {f"{prefix}{kind}.weight": part for kind, part in parts}
        else:
            renamed[name] = tensor
    return renamed


def test_our_names_are_those_of_released_files_on_every_tensor(tmp_path):
    """Ours to the reference and out again as a file: nothing but names changes."""
    from safetensors.torch import load_file

    config = ViTConfig(**SHAPE)
    model = disturb(MaskedImageModel(config, vocab_size=40, num_masked=6))
    reference = transformers.BeitForMaskedImageModeling(reference_config(config, vocab_size=40))
    reference.load_state_dict(reference_state(model.state_dict()), strict=False)
    reference.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    ours = file_state(model.state_dict())
    assert {name for name in written if not name.endswith("relative_position_index")} == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, written[name]), name


def test_an_official_file_with_index_buffers_loads_and_is_written_back_unchanged():
    """The released files keep the index as int64 buffers, which say nothing that the grid does not."""
    config = ViTConfig(**SHAPE)
    model = disturb(MaskedImageModel(config, vocab_size=40, num_masked=6))
    length = 1 + config.num_patches
    index = torch.zeros(length, length, dtype=torch.int64)
    official = {**model.state_dict(), "rel_pos_bias.relative_position_index": index}
    adapted = adapt_state(official, config, config)
    fresh = MaskedImageModel(config, vocab_size=40, num_masked=6)
    fresh.load_state_dict(adapted, strict=True)
    back = fresh.state_dict()
    assert back.keys() == official.keys() - {"rel_pos_bias.relative_position_index"}
    for name, tensor in back.items():
        assert torch.equal(tensor, official[name]), name


def test_with_everything_masked_the_image_does_not_matter_and_logits_agree():
    config = ViTConfig(**SHAPE)
    model = disturb(MaskedImageModel(config, vocab_size=40, num_masked=16))
    reference = transformers.BeitForMaskedImageModeling(reference_config(config, vocab_size=40)).eval()
    reference.load_state_dict(reference_state(model.state_dict()), strict=False)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 16, dtype=torch.bool)
    with torch.no_grad():
        ours, theirs = model(images, mask).logits, reference(images, bool_masked_pos=mask).logits
    assert torch.equal(ours[0], ours[1])
    assert_close(ours, theirs)
