"""One ONNX file for any batch size, that says what goes in and comes out, and keeps our tensors under their names."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.storage.documents import read_json
from beit.finetune.weights.export import onnx as target
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.export.preprocessing import describe
from beit.finetune.weights.export.source import our_outputs, probe_images, read_source
from beit.finetune.weights.import_model import import_encoder
from beit.tests.export_models import CLASSES, SHAPE, write_model


def exported(tmp_path, kind, described=None, **options):
    model = write_model(tmp_path / "model", kind, **described or {})
    found = export_model(model, tmp_path / "out", module="onnx", **options)
    return onnx.load(tmp_path / "out/model.onnx"), read_json(tmp_path / "out/preprocessing.json"), found


def session(tmp_path):
    return onnxruntime.InferenceSession(tmp_path / "out/model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("encoder absolute with layer scale", ["features", "pooled"]),
        ("masked shared", ["features", "pooled", "logits"]),
        ("classifier mean", ["logits", "probabilities"]),
        ("segmenter upernet", ["logits", "probabilities"]),
    ],
)
def test_one_file_answers_every_batch_size_and_keeps_our_tensors(tmp_path, kind, names):
    model, described, found = exported(tmp_path, kind)
    assert [file.name for file in found.files] == ["model.onnx", "preprocessing.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "preprocessing.json"]
    onnx.checker.check_model(tmp_path / "out/model.onnx", full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)] and described["opset"] == 20
    assert [output.name for output in model.graph.output] == names and set(described["outputs"]) == set(names)
    side = described["img_size"]
    for count in (1, 5):
        given = {"images": np.random.default_rng(0).standard_normal((count, 3, side, side)).astype(np.float32)}
        given |= {"bool_masked_pos": np.zeros((count, 16), bool)} if "masked" in kind else {}
        for name, output in zip(names, session(tmp_path).run(None, given), strict=True):
            assert output.shape == (count, *described["outputs"][name]["shape"][1:]) and output.dtype == np.float32
    state = read_encoder_state(tmp_path / "model")
    kept = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in model.graph.initializer}
    left_out = target._left_out(read_source(tmp_path / "model"))
    assert state.keys() - kept.keys() == set(left_out)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items() if name not in left_out)
    assert b"site-packages" not in (tmp_path / "out/model.onnx").read_bytes()  # no trace of where it was made


@pytest.mark.slow
def test_without_a_mask_a_masked_image_model_gives_the_features_of_the_encoder(tmp_path):
    exported(tmp_path, "masked shared")
    images = probe_images(read_source(tmp_path / "model"))
    given = {"images": images.numpy(), "bool_masked_pos": np.zeros((len(images), 16), bool)}
    (features,) = session(tmp_path).run(["features"], given)
    with torch.no_grad():
        wanted = load_encoder(tmp_path / "model").forward_features(images)
    assert np.abs(features - wanted.numpy()).max() < 1e-5 * wanted.abs().max()


@pytest.mark.slow
def test_its_metadata_say_what_the_documents_say(tmp_path):
    model, described, _ = exported(tmp_path, "classifier cls", {"multi_label": True, "provenance": {"step": 7}})
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"]) == list(CLASSES) == described["class_names"]
    assert json.loads(metadata["preprocessing"]) == described
    assert json.loads(metadata["mean"]) == described["preprocessing"]["mean"] and metadata["img_size"] == "32"
    assert json.loads(metadata["provenance"]) == {"step": 7}
    assert json.loads(metadata["beit"])["architecture"]["num_heads"] == SHAPE.num_heads
    source = read_source(tmp_path / "model")
    images = probe_images(source)
    (found,) = session(tmp_path).run(["probabilities"], {"images": images.numpy()})
    assert np.allclose(found, our_outputs(source, images)["logits"].sigmoid(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked shared", "segmenter upernet"])
def test_float16_weights_keep_float32_at_both_ends(tmp_path, kind):
    model, described, found = exported(tmp_path, kind, dtype="float16")
    floats = {one.name: one.data_type for one in model.graph.initializer if one.name.startswith("blocks.")}
    assert floats and set(floats.values()) == {onnx.TensorProto.FLOAT16}
    ends = [*model.graph.input, *model.graph.output]
    assert {end.type.tensor_type.elem_type for end in ends} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL}
    assert described["weights"] == "float16" and "float16:" in found.summary


@pytest.mark.slow
def test_weights_too_large_for_one_file_stand_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "MAX_FILE_BYTES", 10_000)
    _, _, found = exported(tmp_path, "encoder per_block")
    assert [file.name for file in found.files] == ["model.onnx", "model.onnx.data", "preprocessing.json"]
    moved = tmp_path / "moved"
    (tmp_path / "out").rename(moved)
    onnxruntime.InferenceSession(moved / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_another_image_size_is_the_same_resize(tmp_path):
    model, described, _ = exported(tmp_path, "encoder absolute", img_size=48)
    assert (described["img_size"], described["trained_img_size"]) == (48, 32)
    assert [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 48, 48]


def test_bfloat16_is_refused(tmp_path):
    with pytest.raises(InputError, match="give float16 or float32"):
        exported(tmp_path, "encoder shared", dtype="bfloat16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_library_is_one_line_with_the_way_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "_NEEDED", ("onnx", "no_such_library"))
    with pytest.raises(InputError, match=r"^--to onnx needs no_such_library; pip install no_such_library$"):
        exported(tmp_path, "encoder shared")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("crop_pct", [None, 0.9])
@pytest.mark.parametrize("size", [(61, 47), (32, 200), (300, 40)])
def test_pixels_prepared_by_the_document_alone_are_ours(tmp_path, size, crop_pct):
    model = write_model(tmp_path / "model", "classifier mean", crop_pct=crop_pct)
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(noise)
    steps = describe(read_source(model))["preprocessing"]
    resize, (side, _) = steps["resize"], steps["center_crop"]
    short = min(image.size)
    width, height = (min(length, resize["max_aspect"] * short) for length in image.size)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(
        [int(resize["short_side"] * length / short) for length in image.size], Image.Resampling.BICUBIC
    )
    left, top = (round((length - side) / 2) for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side))) * steps["rescale_factor"]
    found = ((pixels - steps["mean"]) / steps["std"]).transpose(2, 0, 1)
    assert np.abs(found - load_encoder(model).transform(Image.fromarray(noise)).numpy()).max() < 1e-5


def test_a_segmentation_model_is_described_by_its_windows(tmp_path):
    described = describe(read_source(write_model(tmp_path / "model", "segmenter fpn")))
    assert described["preprocessing"]["windows"] | {"order": ""} == {
        "size": 64, "stride": 42, "mode": "slide", "short_side": None, "scales": [1.0], "flip": False, "order": ""
    }  # fmt: skip
    assert described["outputs"]["probabilities"]["shape"] == ["batch", 3, 64, 64]
    assert described["outputs"]["logits"]["shape"] == ["batch", 3, 16, 16] and described["class_names"] == list(CLASSES)


def test_a_graph_of_somebody_else_is_refused_in_one_line(tmp_path):
    weight = numpy_helper.from_array(np.zeros((2, 2), np.float32), "blocks.0.weight")
    graph = onnx.helper.make_graph([], "other", [], [], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"other\.onnx was not written by beit export") as error:
        import_encoder(tmp_path / "other.onnx", tmp_path / "in")
    assert "\n" not in str(error.value) and not (tmp_path / "in").exists()
