"""The door by which a command and a plan learn what a fine-tuning will take."""

from dataclasses import replace

import pytest

from beit.common.forecast.hardware import named
from beit.common.forecast.training import RUN_BYTES
from beit.common.vit.config import Adaptation, ViTConfig
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.forecast import forecast, forecast_segmentation, load
from beit.finetune.segmentation.config import HeadConfig, SegmentationConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter

SMALL = ("encoder=random", "model.size=tiny", "image.img_size=32", "image.patch_size=4")
SHAPE = ViTConfig(
    img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=3, pos_bias="per_block", use_mask_token=False
)


def test_a_classifier_is_counted_exactly_and_its_disk_is_kept_twice():
    found = forecast(load(None, SMALL), num_images=500, num_classes=7, num_val=100, hardware=named("A100"))
    shape = ViTConfig(
        img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3, pos_bias="per_block", use_mask_token=False
    )
    parameters = sum(weight.numel() for weight in ImageClassifier(shape, num_classes=7).parameters())
    assert found.model.parameters == parameters
    assert found.checkpoint_bytes == 12 * parameters
    assert found.disk_bytes == 2 * found.checkpoint_bytes + 8 * parameters + RUN_BYTES


def test_training_less_takes_less():
    found = {
        adapt: forecast(
            load("small_500", ["encoder=none"]),
            num_images=500,
            num_classes=7,
            hardware=named("A100"),
            shape=SHAPE,
            adaptation=Adaptation.parse(adapt),
        )
        for adapt in ("all", "last:1", "lora:4")
    }
    whole = found["all"]
    for less in ("last:1", "lora:4"):
        assert found[less].model.trained < whole.model.trained
        assert found[less].checkpoint_bytes < whole.checkpoint_bytes


@pytest.mark.parametrize("kind", ["linear", "fpn", "upernet"])
def test_a_segmenter_is_counted_exactly(kind):
    head = resolve_head(HeadConfig(kind=kind, channels=None if kind == "linear" else 16), SHAPE, images=8)
    found = forecast_segmentation(
        SegmentationConfig(),
        shape=SHAPE,
        adaptation=Adaptation(),
        head=head,
        num_images=300,
        num_classes=5,
        hardware=named("A100"),
    )
    model = Segmenter(SHAPE, num_classes=5, head=head)
    assert found.model.parameters == sum(weight.numel() for weight in model.parameters())
    assert replace(found, problems=()).lines()[0].startswith("expected: about ")
