"""Counted arithmetic equals what torch's own counter sees in a forward and backward pass."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from beit.common.forecast.hardware import known_peak_flops
from beit.common.training.measure import peak_flops
from beit.common.vit.adaptation import Adaptation, adapt
from beit.common.vit.config import ViTConfig
from beit.common.vit.flops import training_flops
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "mlp_ratio": 3.0}


def counted(model, *arguments):
    with FlopCounterMode(display=False) as counter:
        output = model(*arguments)
        getattr(output, "logits", output).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("pos_bias", ["shared", "per_block"])
def test_masked_image_model(pos_bias):
    config = ViTConfig(**SHAPE, pos_bias=pos_bias)
    model = MaskedImageModel(config, vocab_size=32, num_masked=6)
    total = counted(model, torch.randn(5, 3, 16, 16), torch.ones(5, 16, dtype=torch.bool))
    assert total == 5 * training_flops(config, head_rows=6, head_outputs=32, last_rows=6)


@pytest.mark.parametrize(("setting", "frozen"), [("all", None), ("last:3", 0), ("last:1", 2), ("last:0", 3)])
def test_classifier(setting, frozen):
    config = ViTConfig(**SHAPE, pos_bias="per_block", use_mask_token=False, init="finetune")
    model = ImageClassifier(config, num_classes=10)
    adapt(model, Adaptation.parse(setting))
    total = counted(model, torch.randn(5, 3, 16, 16))
    assert total == 5 * training_flops(config, head_rows=1, head_outputs=10, frozen_blocks=frozen)


@pytest.mark.parametrize(
    ("setting", "fresh", "expected"),
    [
        ("lora:4", (), {"lora_rank": 4, "is_input_trained": True}),
        ("last:1", (), {"frozen_blocks": 2}),
        ("last:2", ("mask_token",), {"frozen_blocks": 1, "is_input_trained": True}),
    ],
)
def test_masked_image_model_adapted(setting, fresh, expected):
    config = ViTConfig(**SHAPE, pos_bias="shared")
    model = MaskedImageModel(config, vocab_size=32, num_masked=6)
    adapt(model, Adaptation.parse(setting), fresh=fresh)
    total = counted(model, torch.randn(5, 3, 16, 16), torch.ones(5, 16, dtype=torch.bool))
    assert total == 5 * training_flops(config, head_rows=6, head_outputs=32, last_rows=6, **expected)


def test_classifier_with_updates():
    config = ViTConfig(**SHAPE, pos_bias="per_block", use_mask_token=False, init="finetune")
    model = ImageClassifier(config, num_classes=10)
    adapt(model, Adaptation.parse("lora:4"))
    total = counted(model, torch.randn(5, 3, 16, 16))
    assert total == 5 * training_flops(config, head_rows=1, head_outputs=10, lora_rank=4)


def test_vit_base_is_what_the_literature_says():
    """17.6 billion multiply-adds forward at 224 px (BEiT, DeiT), without the vocabulary's head."""
    config = ViTConfig(img_size=224, patch_size=16)
    assert training_flops(config, head_rows=0, head_outputs=0) / 6 == pytest.approx(17.6e9, rel=0.02)


def test_peaks_are_found_by_name():
    assert known_peak_flops("NVIDIA H200", "bf16") == 989e12
    assert known_peak_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert known_peak_flops("NVIDIA H100 80GB HBM3", "fp32") == 67e12
    assert known_peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert known_peak_flops("Something else", "bf16") is None
    assert peak_flops(torch.device("cpu"), "fp32", None) is None
    assert peak_flops(torch.device("cpu"), "fp32", 0.2) == 2e11
