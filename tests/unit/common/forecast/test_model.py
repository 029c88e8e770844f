"""Counts of parameters and of what is kept, against the modules themselves."""

from dataclasses import replace

import pytest
import torch

from beit.common.forecast.model import vit_model, vit_parameters
from beit.common.vit.adaptation import adapt
from beit.common.vit.config import Adaptation, ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel, mim_loss

SHAPE = ViTConfig(img_size=32, patch_size=4, embed_dim=48, depth=3, num_heads=3, drop_path=0.2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pos_bias": "per_block"},
        {"pos_bias": "none", "use_abs_pos_emb": True, "final_norm": True},
        {"init_values": 0.0, "qkv_bias": False, "mlp_ratio": 3.0, "use_mask_token": False},
    ],
)
def test_parameters_are_counted_exactly(changes):
    shape = replace(SHAPE, **changes)
    assert vit_parameters(shape) == sum(weight.numel() for weight in VisionTransformer(shape).parameters())


@pytest.mark.parametrize("setting", ["all", "last:1", "lora:4"])
def test_what_is_trained_of_a_classifier_is_counted_exactly(setting):
    shape = replace(SHAPE, pos_bias="per_block", use_mask_token=False)
    model, adaptation = ImageClassifier(shape, num_classes=7), Adaptation.parse(setting)
    adapt(model, adaptation)
    found = vit_model(
        shape,
        head_rows=1,
        head_outputs=7,
        frozen_blocks=adaptation.frozen_blocks(shape.depth),
        lora_rank=adaptation.rank,
    )
    assert found.parameters == sum(weight.numel() for weight in model.parameters())
    assert found.trained == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def kept_by(run):
    """Return the bytes of what a computation keeps for its backward pass, weights apart."""
    kept, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(run())
    return kept


@pytest.mark.parametrize("changes", [{}, {"pos_bias": "per_block"}, {"drop_path": 0.0, "embed_dim": 96}])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_a_training_step_keeps_is_what_was_counted(changes, recompute):
    shape, rows, words = replace(SHAPE, **changes), 24, 256
    model = MaskedImageModel(shape, vocab_size=words, num_masked=rows).train()
    model.recompute_blocks = recompute
    mask = torch.zeros(8, shape.num_patches, dtype=torch.bool)
    mask[:, :rows] = True
    ids = torch.randint(0, words, (8, shape.num_patches))

    def bytes_of(images):
        kept = kept_by(lambda: mim_loss(model(torch.randn(images, 3, 32, 32), mask[:images]), ids[:images]).loss)
        return sum(size for place, size in kept.items() if place not in weights)

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    per_image = (bytes_of(8) - bytes_of(2)) / 6
    found = vit_model(shape, head_rows=rows, head_outputs=words, last_rows=rows, is_recomputed=recompute)
    expected = found.kept_bytes - 3 * 32 * 32  # the image as bytes, which is not part of this
    if recompute:  # one block is there as a whole, but only in the backward pass
        expected -= found.kept_bytes - vit_model(replace(shape, depth=1), head_rows=rows, head_outputs=words).kept_bytes
        assert per_image < found.kept_bytes
        return
    assert per_image == pytest.approx(expected, rel=0.06)
