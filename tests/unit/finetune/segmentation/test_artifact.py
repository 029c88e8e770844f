"""Segmentation models on disk, and what a new one starts from."""

import json
from dataclasses import replace

import pytest
import torch

from beit.common.encoder import load_encoder, save_model
from beit.common.errors import InputError
from beit.common.vit.config import Normalization, ViTConfig
from beit.finetune.artifact import load_classifier, starting_point
from beit.finetune.config import ImageConfig
from beit.finetune.in_force import in_force
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.segmentation.artifact import SegmentationInfo, build_segmenter, describe, load_segmenter
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig, SceneTrainConfig, SegmentationConfig
from beit.pretrain.model import MaskedImageModel
from beit.tests.encoders import save_encoder

SHAPE = ViTConfig(img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=2, drop_path=0.0)
CLASSES = MaskClasses(names=("road", "sky", "tree"), colours=voc_colours(3))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(1)
    model = MaskedImageModel(SHAPE, vocab_size=7, num_masked=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(
        tmp_path / "encoder", model.state_dict(), architecture=SHAPE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
        vocab_size=7, best_block=2,
    )  # fmt: skip
    return tmp_path / "encoder"


def settings(encoder, **given):
    return SegmentationConfig(encoder=str(encoder), **given)


def written(directory, config):
    """Build the model of a configuration and write it, as training does."""
    start = starting_point(config)
    model = build_segmenter(config, start, CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    info = SegmentationInfo(head=model.head_config, classes=CLASSES, inference=config.evaluation)
    save_model(directory, model.state_dict(), describe(start.architecture, start.normalization, info))
    return model.eval(), info


def test_features_are_those_of_the_encoder(encoder):
    config = settings(encoder, head=HeadConfig(kind="fpn"))
    model = build_segmenter(config, starting_point(config), CLASSES).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = load_encoder(encoder).get_intermediate_layers(images, n=model.blocks_used, reshape=True)
        for found, wanted in zip(model.block_maps(images), expected, strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["linear", "fpn", "upernet"])
def test_model_comes_back_as_it_was_written(tmp_path, encoder, kind):
    config = settings(encoder, head=HeadConfig(kind=kind), evaluation=InferenceConfig(stride=5, flip=True))
    model, info = written(tmp_path / "model", config)
    loaded, stored, found = load_segmenter(tmp_path / "model")
    assert found == info and stored.task == "segmentation" and not loaded.training
    assert loaded.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_encoder_of_a_segmentation_model_is_one_like_others(tmp_path, encoder):
    model, _ = written(tmp_path / "model", settings(encoder, head=HeadConfig(blocks=(3,))))
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            load_encoder(tmp_path / "model").forward_features(images), model.forward_features(images)
        )


def test_linear_head_stands_on_the_block_that_the_probe_found(encoder):
    config = settings(encoder)
    assert build_segmenter(config, starting_point(config), CLASSES).head_config.blocks == (2,)


def test_head_is_kept_for_the_same_classes_only(tmp_path, encoder):
    config = settings(encoder, head=HeadConfig(kind="fpn"))
    model, _ = written(tmp_path / "model", config)
    again = replace(config, encoder=str(tmp_path / "model"))
    same = build_segmenter(again, starting_point(again), CLASSES)
    assert torch.equal(same.decode_head.conv_seg.weight, model.decode_head.conv_seg.weight)
    assert torch.equal(same.neck.fpn1[1].running_var, model.neck.fpn1[1].running_var)
    others = MaskClasses(names=("a", "b", "c"), colours=voc_colours(3))
    fresh = build_segmenter(again, starting_point(again), others)
    assert not torch.equal(fresh.decode_head.conv_seg.weight, model.decode_head.conv_seg.weight)
    assert fresh.neck.fpn1[1].running_var.eq(1).all()
    wider = replace(again, head=HeadConfig(kind="upernet"))
    assert build_segmenter(wider, starting_point(wider), CLASSES).auxiliary_head is not None


def test_frozen_blocks_and_a_frozen_encoder(encoder):
    config = settings(encoder, freeze_blocks=2, head=HeadConfig(kind="fpn"))
    model = build_segmenter(config, starting_point(config), CLASSES)
    frozen = {
        name.split(".")[1] for name, one in model.named_parameters() if "blocks" in name and not one.requires_grad
    }
    assert frozen == {"0", "1"} and not model.cls_token.requires_grad
    whole = replace(config, freeze_blocks=4, model=replace(config.model, drop_path=0.5))
    model = build_segmenter(whole, starting_point(whole), CLASSES)
    assert all(block.drop_path == 0 for block in model.blocks)
    images = torch.randn(1, 3, 16, 16)
    features = load_encoder(encoder).get_intermediate_layers(images, n=model.blocks_used, reshape=True)
    for level, wanted in zip(model.train().block_maps(images), features, strict=True):
        assert not level.requires_grad
        torch.testing.assert_close(level, wanted)
    assert model(torch.randn(2, 3, 16, 16)).requires_grad


def test_norm_that_is_used_follows_the_settings_and_is_recorded(tmp_path, encoder):
    lone = SceneTrainConfig(global_batch_size=4, micro_batch_size=1)
    _, info = written(tmp_path / "model", settings(encoder, head=HeadConfig(kind="upernet"), train=lone))
    assert info.head.norm == "group"
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["segmentation"]["head"]["norm"] == "group"


def test_crop_that_patches_do_not_divide_is_refused_in_a_line(encoder):
    with pytest.raises(InputError, match=r"img_size \(18\) must be a multiple of patch_size \(4\), .*; take 16 or 20"):
        starting_point(settings(encoder, image=ImageConfig(img_size=18)))


def test_settings_in_force_are_those_of_the_encoder(encoder):
    config = settings(encoder)
    start = starting_point(config)
    filled = in_force(config, start.architecture, start.normalization)
    assert filled.image.patch_size == 4 and filled.model.depth == 4 and isinstance(filled, SegmentationConfig)


def test_other_models_are_refused_in_words(tmp_path, encoder):
    with pytest.raises(InputError, match="is no segmentation model"):
        load_segmenter(encoder)
    written(tmp_path / "model", settings(encoder))
    with pytest.raises(InputError, match="without a classification head"):
        load_classifier(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": {"names": ["a", 2], "colours": [[0, 0, 0], [1, 1, 1]]}},
        {"classes": {"names": ["a", "b"], "colours": [[0, 0, 0]]}},
        {"classes": {"names": ["a", "b"], "colours": [[0, 0, 0], [0, 0, 999]]}},
        {"classes": None},
        {"head": {"kind": "linear"}},
        {"head": {"kind": "unknown"}},
        {"inference": 3},
    ],
)
def test_damaged_descriptions_are_refused_in_words(tmp_path, encoder, change):
    written(tmp_path / "model", settings(encoder))
    file = tmp_path / "model" / "config.json"
    value = json.loads(file.read_text())
    value["segmentation"] |= change
    file.write_text(json.dumps(value))
    with pytest.raises(InputError, match="segmentation|must hold keys|kind"):
        load_segmenter(tmp_path / "model")
