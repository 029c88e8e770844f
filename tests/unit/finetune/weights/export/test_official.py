"""What is written for the released code: its names, buffers and containers, and nothing it has no place for."""

import re

import pytest
import torch

from beit.common.encoder import read_encoder_state
from beit.common.errors import InputError
from beit.common.vit.position_bias import relative_position_index
from beit.finetune.weights.export.exporter import export_model
from beit.tests.export_models import CLASSES, CLASSIFIERS, ENCODERS, MASKED, NORMALIZATION, SHAPE, write_model


def exported(tmp_path, kind, **options):
    model = write_model(tmp_path / "model", kind)
    found = export_model(model, tmp_path / "out", module="official", **options)
    assert [file.name for file in found.files] == ["model.pth"]
    return read_encoder_state(model), torch.load(found.files[0], weights_only=True), " ".join(found.summary.split())


@pytest.mark.parametrize("kind", [*ENCODERS, *MASKED, *CLASSIFIERS])
def test_every_tensor_keeps_its_official_name_and_value(tmp_path, kind):
    state, value, summary = exported(tmp_path, kind)
    written = value["model"]
    index = [name for name in written if name.endswith("relative_position_index")]
    assert written.keys() - set(index) == state.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in state.items())
    assert all(torch.equal(written[name], relative_position_index((4, 4)).long()) for name in index)
    shared = "rel_pos_bias.relative_position_bias_table" in state
    own = "blocks.0.attn.relative_position_bias_table" in state
    tables = ["rel_pos_bias"] if shared else [f"blocks.{i}.attn" for i in range(SHAPE.depth)] if own else []
    assert index == [f"{table}.relative_position_index" for table in tables]
    assert re.search(r"features +0\.0e\+00", summary)


def test_the_arguments_of_the_released_code_stand_beside(tmp_path):
    _, value, summary = exported(tmp_path, "classifier mean")
    args = value["args"]
    assert (args["model"], args["input_size"], args["nb_classes"]) == ("VisionTransformer", 32, 3)
    assert args["use_mean_pooling"] and args["rel_pos_bias"] and not args["shared_rel_pos_bias"]
    assert (tuple(args["mean"]), tuple(args["std"])) == tuple(NORMALIZATION)
    assert "the released code reads it as its VisionTransformer" in summary


def test_a_segmentation_model_has_the_names_of_mmsegmentation(tmp_path):
    state, value, _ = exported(tmp_path, "segmenter upernet")
    written = value["state_dict"]
    assert value["meta"]["CLASSES"] == list(CLASSES) and len(value["meta"]["PALETTE"]) == 3
    assert {name.split(".")[0] for name in written} == {"backbone", "decode_head", "auxiliary_head"}
    for name in (
        "backbone.cls_token",
        "backbone.blocks.3.attn.relative_position_index",
        "backbone.fpn1.1.running_mean",
        "backbone.fpn2.0.weight",
        "decode_head.psp_modules.3.1.conv.weight",
        "decode_head.psp_modules.0.1.bn.running_var",
        "decode_head.bottleneck.bn.num_batches_tracked",
        "decode_head.lateral_convs.2.conv.weight",
        "decode_head.fpn_bottleneck.conv.weight",
        "decode_head.conv_seg.bias",
        "auxiliary_head.convs.0.conv.weight",
        "auxiliary_head.conv_seg.weight",
    ):
        assert name in written
    assert len(written) == len(state) + 6  # the indices
    assert value["meta"]["out_indices"] == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("classifier cls_mean", "side by side"),
        ("segmenter linear", "with the head linear; that of the released code is UPerNet"),
        ("segmenter fpn", "with the head fpn"),
    ],
)
def test_what_the_released_code_has_no_place_for_is_refused_in_one_line(tmp_path, kind, said):
    with pytest.raises(InputError, match=said) as error:
        exported(tmp_path, kind)
    assert "\n" not in str(error.value) and "--to onnx" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_tables_and_indices_are_those_of_another_image_size(tmp_path):
    _, value, _ = exported(tmp_path, "masked shared", img_size=48)
    assert value["model"]["rel_pos_bias.relative_position_bias_table"].shape == (11 * 11 + 3, 2)
    assert value["model"]["rel_pos_bias.relative_position_index"].shape == (37, 37)
    assert value["args"]["input_size"] == 48


def test_half_precision_halves_the_weights(tmp_path):
    _, value, summary = exported(tmp_path, "classifier cls", dtype="float16")
    assert value["model"]["cls_token"].dtype == torch.float16 and "float16" in summary
