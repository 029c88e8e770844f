"""The encoder with a segmentation head: its parameters, shapes, and what it looks at."""

from dataclasses import replace

import pytest
import torch

from beit.common.errors import InputError
from beit.common.vit.config import ModelConfig, ViTConfig, build_vit_config
from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.heads import level_blocks, resolve_head
from beit.finetune.segmentation.model import Segmenter

SHAPE = ViTConfig(
    img_size=32, patch_size=8, embed_dim=24, depth=6, num_heads=2, pos_bias="per_block", use_mask_token=False,
    init="finetune", drop_path=0.0,
)  # fmt: skip


def segmenter(kind="linear", shape=SHAPE, **settings):
    torch.manual_seed(0)
    return Segmenter(shape, num_classes=5, head=resolve_head(HeadConfig(kind=kind, **settings), shape))


@pytest.mark.parametrize(
    ("size", "img_size", "total"),
    [
        ("base", 512, 163_080_812),
        ("base", 640, 163_407_980),
        ("large", 512, 440_398_636),
        ("large", 640, 441_271_084),
    ],
)
def test_upernet_has_the_published_number_of_parameters(size, img_size, total):
    shape = build_vit_config(
        ModelConfig(size=size, pos_bias="per_block"), img_size=img_size, patch_size=16, use_mask_token=False
    )
    with torch.device("meta"):
        model = Segmenter(shape, num_classes=150, head=resolve_head(HeadConfig(kind="upernet"), shape))
    # With the auxiliary head and 150 classes, without running statistics.
    assert sum(parameter.numel() for parameter in model.parameters()) == total


def test_names_of_the_heads_are_those_of_mmsegmentation():
    names = set(segmenter("upernet").state_dict())
    assert {
        "neck.fpn1.0.weight", "neck.fpn1.1.running_mean", "neck.fpn1.3.bias", "neck.fpn2.0.weight",
        "decode_head.psp_modules.3.1.conv.weight", "decode_head.bottleneck.bn.running_var",
        "decode_head.lateral_convs.2.bn.bias", "decode_head.fpn_convs.0.conv.weight",
        "decode_head.fpn_bottleneck.conv.weight", "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.conv.weight", "auxiliary_head.conv_seg.weight",
    } <= names  # fmt: skip


@pytest.mark.parametrize(("kind", "factor"), [("linear", 1), ("fpn", 4), ("upernet", 4)])
def test_logits_are_on_the_grid_of_the_head(kind, factor):
    model = segmenter(kind)
    logits, auxiliary = model(torch.randn(2, 3, 32, 32), with_auxiliary=True)
    assert logits.shape == (2, 5, 4 * factor, 4 * factor)
    assert auxiliary is None if kind != "upernet" else auxiliary.shape == (2, 5, 4, 4)
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 16, 40)).shape == (1, 5, 2 * factor, 5 * factor)
        assert model(torch.randn(1, 3, 8, 8)).shape == (1, 5, factor, factor)


def test_no_auxiliary_head_without_weight():
    assert segmenter("upernet", auxiliary_weight=0.0).auxiliary_head is None


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (12, (3, 5, 7, 11)),
        (24, (7, 11, 15, 23)),
        (1, (0, 0, 0, 0)),
        (2, (0, 0, 0, 1)),
        (4, (0, 1, 2, 3)),
        (6, (1, 2, 3, 5)),
    ],
)
def test_blocks_of_the_neck_by_depth(depth, blocks):
    assert level_blocks(depth) == blocks


def test_linear_head_takes_the_best_block_or_the_last_four():
    assert resolve_head(HeadConfig(), SHAPE, best_block=3).blocks == (3,)
    assert resolve_head(HeadConfig(), SHAPE).blocks == (2, 3, 4, 5)
    assert resolve_head(HeadConfig(blocks=(-3, -1)), SHAPE, best_block=2).blocks == (3, 5)


def test_norm_is_chosen_by_the_images_at_a_time():
    assert resolve_head(HeadConfig(kind="fpn"), SHAPE, images=2).norm == "batch"
    assert resolve_head(HeadConfig(kind="fpn"), SHAPE, images=1).norm == "group"
    names = set(segmenter("fpn", norm="group").state_dict())
    assert "decode_head.fpn_conv.gn.weight" in names and not any("running" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks": (1, 2, 3), "kind": "upernet"}, "must be four for upernet"),
        ({"blocks": ()}, "at least one"),
        ({"blocks": (3, 1)}, "must ascend"),
        ({"blocks": (6,)}, r"lie in \[-6, 5\]"),
        ({"blocks": (2, -4)}, "twice"),
    ],
)
def test_blocks_that_cannot_be_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        resolve_head(HeadConfig(**settings), SHAPE)


def test_only_what_the_head_looks_at_is_run_and_trained():
    model = segmenter(blocks=(2,))
    for block in model.blocks[3:]:
        block.forward = None
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    assert not any(name.startswith(("blocks.3.", "blocks.5.")) for name in trained)


def test_images_of_another_shape_are_seen_as_by_a_model_of_that_shape():
    # A model made for 64x64 px, with resized tables and embeddings, is what the rule for any grid must agree with.
    from beit.common.vit.adapt import adapt_state

    shape = replace(SHAPE, use_abs_pos_emb=True)
    model = segmenter("linear", shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "table" in name or name == "pos_embed":
                parameter.normal_()
        larger = replace(shape, img_size=64)
        other = segmenter("linear", larger).eval()
        other.load_state_dict(adapt_state(model.state_dict(), shape, larger))
        images = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(model(images), other(images))


@pytest.mark.parametrize("kind", ["linear", "upernet"])
def test_models_are_exported_with_an_open_batch(kind):
    model = segmenter(kind).eval()
    images = torch.randn(3, 3, 32, 32)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))


def test_recomputed_blocks_give_the_same_gradients():
    images, gradients = torch.randn(2, 3, 32, 32), []
    for recompute in (False, True):
        model = segmenter("fpn")
        model.recompute_blocks = recompute
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
