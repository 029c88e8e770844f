"""Neck, UPerNet and auxiliary head against BeitForSemanticSegmentation of transformers, layer by layer, shared weights.

In float32 on the CPU, in eval mode with running statistics that are not the first ones, and in training mode; 1e-5 of
the largest value. The same maps go into both: transformers feeds its neck from other blocks than the released code does
(of 12 the outputs of blocks 1, 3, 5, 9, counted from 0, where that has 3, 5, 7, 11), as it takes hidden_states[i - 1].
Ours are the released code's, so whole models agree only where its indices name the same blocks, which the last test
arranges. Both resize with align_corners off. Its pictures are scaled by 0.5, where the released configuration has
ImageNet's mean and std; ours are the encoder's.
"""

import re

import pytest
import torch
import transformers

from beit.common.vit.config import ViTConfig
from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.tests.parity.test_transformers_beit import reference_config, reference_state

pytestmark = pytest.mark.reference

SHAPE = ViTConfig(
    img_size=64, patch_size=8, embed_dim=48, depth=6, num_heads=4, pos_bias="per_block", use_mask_token=False,
    init="finetune", drop_path=0.0,
)  # fmt: skip
NUM_CLASSES = 7
RENAMES = [
    (r"^neck\.fpn1\.0\.", "fpn.fpn1.conv_transpose1."),
    (r"^neck\.fpn1\.1\.", "fpn.fpn1.normalization."),
    (r"^neck\.fpn1\.3\.", "fpn.fpn1.conv_transpose2."),
    (r"^neck\.fpn2\.0\.", "fpn.fpn2."),
    (r"\.psp_modules\.(\d)\.1\.", r".psp_modules.blocks.\1.conv."),
    (r"^decode_head\.bottleneck\.", "decode_head.psp_bottleneck."),
    (r"\.conv\.weight$", ".convolution.weight"),
    (r"\.bn\.", ".normalization."),
    (r"\.conv_seg\.", ".classifier."),
]  # fmt: skip


def reference_names(state):
    heads, encoder = {}, {}
    for name, tensor in state.items():
        if not name.startswith(("neck.", "decode_head.", "auxiliary_head.")):
            encoder[name] = tensor
            continue
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        heads[name] = tensor
    return reference_state(encoder) | heads


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    # transformers counts outputs from the embedding on, and takes the one before: 2, 3, 4, 6 are blocks 0, 1, 2, 4.
    head = resolve_head(HeadConfig(kind="upernet", blocks=(0, 1, 2, 4), dropout=0.0), SHAPE)
    ours = Segmenter(SHAPE, num_classes=NUM_CLASSES, head=head)
    with torch.no_grad():
        for name, tensor in ours.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.15)
    config = reference_config(
        SHAPE, num_labels=NUM_CLASSES, out_indices=[2, 3, 4, 6], pool_scales=[1, 2, 3, 6], auxiliary_channels=256,
        use_auxiliary_head=True,
    )  # fmt: skip
    theirs = transformers.BeitForSemanticSegmentation(config)
    missing, unexpected = theirs.load_state_dict(reference_names(ours.state_dict()), strict=False)
    assert not unexpected and all(name.startswith("beit.pooler") for name in missing), (missing, unexpected)
    return ours.eval(), theirs.eval()


def maps(side=8, batch=3):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, SHAPE.embed_dim, side, side, generator=generator) for _ in range(4)]


def assert_close(ours, theirs):
    difference = (ours - theirs).abs().max()
    assert ours.shape == theirs.shape
    assert difference < 1e-5 * max(1, theirs.abs().max()), f"max difference {difference:.2e}"


def outputs(modules, run):
    """Run and return what each of the modules gave, by its name."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, name=name: found.update({name: output}))
        for name, module in modules.items()
    ]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, found


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("side", [8, 7, 5])
def test_neck_and_heads_agree_layer_by_layer(pair, is_training, side):
    ours, theirs = (model.train(is_training) for model in pair)
    state = {name: value.clone() for name, value in ours.state_dict().items()}
    their_state = {name: value.clone() for name, value in theirs.state_dict().items()}
    with torch.no_grad():
        levels, their_levels = ours.neck(maps(side)), theirs.fpn(tuple(maps(side)))
        for level, other in zip(levels, their_levels, strict=True):
            assert_close(level, other)
        head, other = ours.decode_head, theirs.decode_head
        names = {f"pool {i}": module for i, module in enumerate(head.psp_modules)}
        their_names = {f"pool {i}": module.conv for i, module in enumerate(other.psp_modules.blocks)}
        for kind in ("lateral_convs", "fpn_convs"):
            names |= {f"{kind} {i}": module for i, module in enumerate(getattr(head, kind))}
            their_names |= {f"{kind} {i}": module for i, module in enumerate(getattr(other, kind))}
        names |= {"bottleneck": head.bottleneck}
        their_names |= {"bottleneck": other.psp_bottleneck}
        logits, layers = outputs(names, lambda: head(levels))
        their_logits, their_layers = outputs(their_names, lambda: other(their_levels))
        assert layers.keys() == their_layers.keys() and len(layers) == 11
        for name in layers:
            assert_close(layers[name], their_layers[name])
        assert_close(logits, their_logits)
        assert_close(ours.auxiliary_head(levels), theirs.auxiliary_head(their_levels))
        for name, value in reference_names(ours.state_dict()).items():  # running statistics, too
            assert_close(value.float(), theirs.state_dict()[name].float())
        ours.load_state_dict(state)
        theirs.load_state_dict(their_state)


def test_whole_models_agree_where_the_same_blocks_are_named(pair):
    ours, theirs = (model.eval() for model in pair)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        assert_close(ours(images), theirs(images).logits)


def test_gradients_of_the_heads_agree(pair):
    ours, theirs = (model.eval() for model in pair)
    gradients = []
    for run in (
        lambda levels: ours.decode_head(ours.neck(levels)),
        lambda levels: theirs.decode_head(theirs.fpn(levels)),
    ):
        levels = [level.requires_grad_() for level in maps()]
        run(levels).square().mean().backward()
        gradients.append([level.grad for level in levels])
    for own, other in zip(*gradients, strict=True):
        assert_close(own, other)
