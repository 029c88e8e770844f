"""The classifier: pooling, head, and what it refuses."""

import pytest
import torch

from beit.common.errors import InputError
from beit.common.vit.config import ViTConfig
from beit.finetune.classification.model import ImageClassifier

CONFIG = ViTConfig(
    img_size=16,
    patch_size=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    pos_bias="per_block",
    use_mask_token=False,
    init="finetune",
)


def build(**settings):
    torch.manual_seed(0)
    return ImageClassifier(CONFIG, **({"num_classes": 5} | settings)).eval()


def test_mean_pooling_averages_the_patches_without_cls_and_then_normalises():
    model = build()
    hidden = torch.randn(2, 17, 16)
    wanted = torch.nn.functional.layer_norm(hidden[:, 1:].mean(1), (16,), eps=1e-6)
    torch.testing.assert_close(model.pool(hidden), wanted)
    moved = hidden.clone()
    moved[:, 0] += 1
    assert torch.equal(model.pool(moved), model.pool(hidden))


def test_cls_pooling_normalises_and_takes_cls():
    model = build(pooling="cls")
    hidden = torch.randn(2, 17, 16)
    torch.testing.assert_close(model.pool(hidden), torch.nn.functional.layer_norm(hidden[:, 0], (16,), eps=1e-6))


def test_logits_start_near_uniform():
    logits = build()(torch.randn(4, 3, 16, 16))
    assert logits.shape == (4, 5)
    assert logits.abs().max() < 1e-3


def test_no_classes_returns_the_representation():
    model = build(num_classes=0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 16)
    assert not any(name.startswith("head") for name in model.state_dict())


def test_every_parameter_learns():
    model = build().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("settings", "value"), [({"num_classes": -1}, "-1"), ({"pooling": "max"}, "max")])
def test_wrong_settings_are_refused(settings, value):
    with pytest.raises(InputError, match=value):
        build(**settings)
