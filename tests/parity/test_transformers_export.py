"""Models of ours, exported and loaded by Hugging Face transformers as a user does: the same numbers, the same pixels.

Float32 on the CPU, random weights. Tolerance 1e-5 of the largest value: the order of summing differs. Pixels are
compared as such, before they are normalised, bit for bit.
"""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.vit.description import read_encoder_config
from beit.finetune.artifact import load_classifier
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.export.huggingface import AUTO_CLASSES
from beit.finetune.weights.export.huggingface_names import plan_export
from beit.finetune.weights.export.image_processor import PHOTO_SIZES, is_shifted, photos
from beit.finetune.weights.export.source import our_outputs, probe_images, probe_mask, read_source
from beit.finetune.weights.import_model import import_encoder
from beit.tests.export_models import KINDS, PLAIN, SCALED, SHAPE, classifier, encoder, masked, segmenter

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
CLASSES = {
    "masked": "BeitForMaskedImageModeling",
    "masked absolute": "BeitForMaskedImageModeling",
    "encoder": "BeitModel",
    "encoder shared": "BeitModel",
    "encoder absolute": "BeitModel",
    "vit": "ViTModel",
    "vit without biases": "ViTModel",
    "dinov2": "Dinov2Model",
    "classifier mean": "BeitForImageClassification",
    "classifier cls": "BeitForImageClassification",
    "classifier vit": "ViTForImageClassification",
    "classifier dinov2": "Dinov2ForImageClassification",
    "segmenter": "BeitForSemanticSegmentation",
    "segmenter below the top": "BeitForSemanticSegmentation",
}


def exported(tmp_path, write, **options):
    write(tmp_path / "ours")
    return export_model(tmp_path / "ours", tmp_path / "hf", module="huggingface", **options)


def loaded(tmp_path, kind):
    return getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(tmp_path / "hf").eval()


def close(ours, theirs):
    difference = (ours - theirs).abs().max()
    return ours.shape == theirs.shape and difference < TOLERANCE * max(1, ours.abs().max())


def images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_computes_what_ours_does(tmp_path, name):
    summary = exported(tmp_path, KINDS[name]).summary
    source = read_source(tmp_path / "ours")
    model = loaded(tmp_path, source.what)
    assert type(model).__name__ == CLASSES[name] and model.dtype == torch.float32
    batch, ours = probe_images(source), our_outputs(source, probe_images(source))
    mask = {"bool_masked_pos": probe_mask(source)} if source.what == "masked" else {}
    with torch.no_grad():
        theirs = model(pixel_values=batch, **mask)
    output = "features" if source.what == "encoder" else "logits"
    assert close(ours[output], theirs.last_hidden_state if output == "features" else theirs.logits)
    assert [line.split()[0] for line in summary.splitlines()][-2:] == [output, "pixels"]


def test_features_are_those_of_load_encoder(tmp_path):
    exported(tmp_path, lambda folder: encoder(folder, SHAPE))
    with torch.no_grad():
        ours = load_encoder(tmp_path / "ours").forward_features(images())
        assert close(ours, loaded(tmp_path, "encoder")(images()).last_hidden_state)


def test_features_of_a_masked_image_model_by_automodel(tmp_path):
    exported(tmp_path, masked)
    with torch.no_grad():
        ours = load_encoder(tmp_path / "ours").forward_features(images())
        assert close(ours, transformers.AutoModel.from_pretrained(tmp_path / "hf")(images()).last_hidden_state)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_logits_and_labels_are_those_of_the_classifier(tmp_path, pooling):
    exported(tmp_path, lambda folder: classifier(folder, pooling=pooling))
    ours, stored = load_classifier(tmp_path / "ours")
    theirs = loaded(tmp_path, "classifier")
    with torch.no_grad():
        assert close(ours(images()), theirs(images()).logits)
    assert tuple(theirs.config.id2label[i] for i in range(3)) == stored.class_names
    assert theirs.config.label2id == {name: i for i, name in enumerate(stored.class_names)}


def test_several_labels_per_image_are_said(tmp_path):
    exported(tmp_path, lambda folder: classifier(folder, multi_label=True))
    assert loaded(tmp_path, "classifier").config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("side", [32, 48])
def test_logits_of_a_segmenter_are_its_own(tmp_path, side):
    exported(tmp_path, segmenter, img_size=side)
    ours, _, _ = load_segmenter(tmp_path / "ours")
    theirs = loaded(tmp_path, "segmenter")
    with torch.no_grad():
        assert close(ours(images(side)), theirs(images(side)).logits)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    photo = photos()[0]
    with torch.no_grad():
        outputs = theirs(**processor(images=photo, return_tensors="pt"))
    (classes,) = processor.post_process_semantic_segmentation(outputs, [photo.size[::-1]])
    assert classes.shape == photo.size[::-1]
    assert theirs.config.id2label == {0: "red fox", 1: "cat|dog", 2: "été"}


@pytest.mark.parametrize("shape", [SHAPE, PLAIN, SCALED], ids=["beit", "vit", "dinov2"])
@pytest.mark.parametrize("side", [24, 64])
def test_another_size_is_resized_as_load_encoder_does(tmp_path, shape, side):
    exported(tmp_path, lambda folder: encoder(folder, shape), img_size=side)
    with torch.no_grad():
        ours = load_encoder(tmp_path / "ours", img_size=side).forward_features(images(side))
        assert close(ours, loaded(tmp_path, "encoder")(images(side)).last_hidden_state)
    assert f"trained at 32 px; positions were resized to {side} px" in (tmp_path / "hf/README.md").read_text()


@pytest.mark.parametrize(("side", "crop_pct"), [(32, None), (96, None), (224, None), (224, 0.9), (384, None)])
def test_pixels_of_five_sizes_of_photo_are_ours_bit_for_bit(tmp_path, side, crop_pct):
    """Where an odd margin is rounded otherwise, the crop is the same one a pixel further left or up."""
    encoder(tmp_path / "ours", PLAIN, img_size=side, depth=1, patch_size=16 if side > 32 else 8)
    config = tmp_path / "ours/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"crop_pct": crop_pct}))
    export_model(tmp_path / "ours", tmp_path / "hf", module="huggingface")
    transform = load_encoder(tmp_path / "ours").transform
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    short = int(side / transform.crop_pct)
    same = []
    for size, photo in zip(PHOTO_SIZES, photos(), strict=True):
        pixels = processor(images=photo, do_rescale=False, do_normalize=False)["pixel_values"][0].transpose(1, 2, 0)
        same.append(not is_shifted(size, short, side))
        ours = transform.pixels(photo) if same[-1] else shifted(photo, short, side)
        assert np.array_equal(pixels, ours), size
        if same[-1]:
            normalised = processor(images=photo, return_tensors="pt").pixel_values[0]
            assert (normalised - transform(photo)).abs().max() < 1e-6
    assert sum(same) >= 3


def shifted(photo, short, side):
    width, height = (int(short * length / min(photo.size)) for length in photo.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = photo.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
    """Opaque ones as with us; transparency is laid on white, which the card says."""
    exported(tmp_path, encoder)
    photo = photos()[0].convert(mode)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(images=photo, return_tensors="pt").pixel_values[0]
    assert (pixels - load_encoder(tmp_path / "ours").transform(photo)).abs().max() < 1e-6
    assert "laid on white" in (tmp_path / "hf/README.md").read_text()


def test_attention_maps_need_the_option_that_the_card_names(tmp_path):
    exported(tmp_path, encoder)
    assert 'attn_implementation="eager"' in (tmp_path / "hf/README.md").read_text()
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    with torch.no_grad():
        attentions = model(images(), output_attentions=True).attentions
        ours = load_encoder(tmp_path / "ours").attention_weights(images(), 1)
    assert close(ours, attentions[1])


@pytest.mark.parametrize("name", [*KINDS, "encoder with a norm"])
def test_back_again_everything_is_the_same(tmp_path, name):
    kinds = KINDS | {"encoder with a norm": lambda folder: encoder(folder, SHAPE, final_norm=True)}
    exported(tmp_path, kinds[name])
    import_encoder(tmp_path / "hf", tmp_path / "back")
    before, after = read_encoder_state(tmp_path / "ours"), read_encoder_state(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    ours, back = (read_encoder_config(tmp_path / folder) for folder in ("ours", "back"))
    assert (ours.task, ours.class_names, ours.pooling) == (back.task, back.class_names, back.pooling)
    assert np.allclose(ours.normalization, back.normalization)
    for field in ("final_norm", "pos_bias", "num_heads", "layer_norm_eps", "use_mask_token", "qkv_bias"):
        assert getattr(ours.architecture, field) == getattr(back.architecture, field), field
    if ours.segmentation is not None:
        assert ours.segmentation["head"]["blocks"] == back.segmentation["head"]["blocks"]


@pytest.mark.parametrize("name", KINDS)
def test_the_file_is_what_transformers_writes_itself(tmp_path, name):
    """Names, shapes and values, so that every version that reads the hub reads it."""
    exported(tmp_path, KINDS[name])
    kind = read_source(tmp_path / "ours").what
    loaded(tmp_path, kind).save_pretrained(tmp_path / "theirs")
    with safe_open(tmp_path / "hf/model.safetensors", "pt") as ours:
        assert ours.metadata() == {"format": "pt"}
        with safe_open(tmp_path / "theirs/model.safetensors", "pt") as theirs:
            names = {name for name in theirs.keys() if not name.endswith("relative_position_index")}
            assert set(ours.keys()) == names
            assert all(torch.equal(ours.get_tensor(name), theirs.get_tensor(name)) for name in names)


def test_a_base_shape_goes_through(tmp_path):
    exported(tmp_path, lambda folder: encoder(folder, SHAPE, embed_dim=768, num_heads=12, depth=2, img_size=64))
    plan = plan_export(read_source(tmp_path / "ours"))
    assert plan.tensors["encoder.layer.1.attention.attention.query.weight"].shape == (768, 768)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_what_transformers_loads(tmp_path, dtype):
    exported(tmp_path, classifier, dtype=dtype)
    model = loaded(tmp_path, "classifier")
    assert model.dtype == getattr(torch, dtype)
    ours, _ = load_classifier(tmp_path / "ours")
    with torch.no_grad():
        theirs = model(images().to(model.dtype)).logits.float()
        assert 0 < (ours(images()) - theirs).abs().max() < 0.1
    said = "above 128 it loses differences below 1" in (tmp_path / "hf/README.md").read_text()
    assert said == (dtype == "bfloat16")
