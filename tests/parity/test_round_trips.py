"""Out and in again is the identity: every tensor bit for bit, and the description, through all forms in turn."""

from dataclasses import replace

import pytest
import torch

from beit.common.encoder import read_encoder_state, save_model
from beit.common.errors import InputError
from beit.common.storage.documents import read_json, write_json
from beit.common.vit.config import ViTConfig
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.finetune.masks.classes import MaskClasses
from beit.finetune.segmentation.artifact import SegmentationInfo, describe, segmentation_info
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.finetune.weights.export import timm
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.export.source import read_source
from beit.finetune.weights.import_model import import_encoder
from beit.pretrain.model import MaskedImageModel
from beit.tests.export_models import CLASSIFIERS, ENCODERS, MASKED, NORMALIZATION, write_model

FORMS = ("official", "huggingface", "timm")
NOT_IN_TIMM = ("mask_token", "lm_head.weight", "lm_head.bias")
"""What no model of timm has a place for."""
ADDED_BY_HUGGING_FACE = ("q_bias", "v_bias")
"""Of zeros, where a BEiT has none."""


def through(folder, model, form):
    """Export a model in one form, import what was written, and return the folder of that."""
    export_model(model, folder / f"{form} out", module=form)
    import_encoder(folder / f"{form} out", folder / f"{form} in")
    return folder / f"{form} in"


def same(found, wanted, *, without=(), beyond=()):
    """Assert that two models have the same tensors, and the same description apart from what only training needs."""
    states = [read_encoder_state(folder) for folder in (found, wanted)]
    names = [{name for name in state if not name.endswith(tuple(beyond))} for state in states]
    assert names[0] == names[1] - set(without)
    for name in names[0]:
        assert states[0][name].dtype == states[1][name].dtype and torch.equal(states[0][name], states[1][name]), name
    configs = [read_encoder_config(folder) for folder in (found, wanted)]
    shapes = [
        replace(one.architecture, drop_path=0.0, init="pretrain", use_mask_token=True, qkv_bias=True,
                init_values=float(one.architecture.init_values > 0))
        for one in configs
    ]  # fmt: skip
    assert shapes[0] == shapes[1]
    for name in ("normalization", "task", "class_names", "pooling", "multi_label", "crop_pct", "best_block"):
        assert getattr(configs[0], name) == getattr(configs[1], name), name
    assert configs[0].architecture.qkv_bias == configs[1].architecture.qkv_bias or beyond
    if not without:
        assert configs[0].vocab_size == configs[1].vocab_size


@pytest.mark.parametrize("kind", [*ENCODERS, *MASKED, *CLASSIFIERS])
def test_official_hugging_face_and_timm_in_turn_give_every_tensor_back(tmp_path, kind):
    model = first = write_model(tmp_path / "model", kind)
    beyond = ADDED_BY_HUGGING_FACE if "without bias" in kind else ()
    for form in FORMS:
        model = through(tmp_path, model, form)
        same(model, first, without=NOT_IN_TIMM if form == "timm" else (), beyond=beyond if form != "official" else ())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder absolute", "encoder shared", "masked shared", "classifier mean"])
def test_onnx_gives_back_every_tensor_that_an_output_needs(tmp_path, kind):
    first = write_model(tmp_path / "model", kind)
    same(through(tmp_path, first, "onnx"), first, without=("mask_token",) if kind == "encoder shared" else ())


@pytest.mark.parametrize("form", ["official", "huggingface"])
def test_a_segmentation_model_comes_back_with_its_head(tmp_path, form):
    first = write_model(tmp_path / "model", "segmenter upernet")
    model = through(tmp_path, first, form)
    same(model, first)
    assert read_encoder_config(model).segmentation == read_encoder_config(first).segmentation


@pytest.mark.parametrize("form", FORMS)
def test_how_a_model_is_used_comes_back(tmp_path, form):
    told = {"multi_label": True, "crop_pct": 0.9, "best_block": 1}
    first = write_model(tmp_path / "model", "classifier mean", **told)
    same(through(tmp_path, first, form), first)


@pytest.mark.parametrize("form", ["official", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_head_comes_back_on_the_blocks_that_it_saw(tmp_path, form):
    shape = ViTConfig(img_size=32, patch_size=16, embed_dim=48, depth=6, num_heads=4, use_mask_token=False)
    head = resolve_head(HeadConfig(kind="upernet", blocks=(0, 1, 2, 4), norm="batch", auxiliary_weight=0.0), shape)
    classes = MaskClasses(names=("sky", "road"), colours=((1, 2, 3), (4, 5, 6)))
    info = SegmentationInfo(head=head, classes=classes, inference=InferenceConfig(mode="whole"))
    state = Segmenter(shape, num_classes=2, head=head).state_dict()
    save_model(tmp_path / "model", state, describe(shape, NORMALIZATION, info))
    found = read_encoder_config(through(tmp_path, tmp_path / "model", form))
    assert segmentation_info(found, origin=tmp_path) == info


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmenter linear", "segmenter fpn"])
def test_every_head_comes_back_from_onnx(tmp_path, kind):
    first = write_model(tmp_path / "model", kind)
    found = through(tmp_path, first, "onnx")
    same(found, first)
    assert read_encoder_config(found).segmentation == read_encoder_config(first).segmentation


@pytest.mark.parametrize("damage", [{"crop_pct": "all"}, {"multi_label": 1}, {"best_block": 9}, {"final_norm": "no"}])
def test_what_an_export_cannot_say_is_refused_and_nothing_is_left(tmp_path, damage):
    export_model(write_model(tmp_path / "model", "classifier mean"), tmp_path / "out", module="timm")
    config = read_json(tmp_path / "out/config.json")
    config["beit_export"] |= damage
    write_json(tmp_path / "out/config.json", config)
    with pytest.raises(InputError, match=f"{next(iter(damage))} cannot be what an export says"):
        import_encoder(tmp_path / "out", tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.slow
def test_a_base_model_goes_through_all_forms(tmp_path):
    shape = ViTConfig(init_values=0.1)
    model = MaskedImageModel(shape, vocab_size=8192, num_masked=75)
    config = EncoderConfig(architecture=shape, normalization=NORMALIZATION, task="pretrain", vocab_size=8192)
    save_model(tmp_path / "model", model.state_dict(), config)
    found = tmp_path / "model"
    for form in FORMS:
        found = through(tmp_path, found, form)
    same(found, tmp_path / "model", without=NOT_IN_TIMM)
    assert timm.describe(read_source(tmp_path / "model"))["architecture"] == "beit_base_patch16_224"
