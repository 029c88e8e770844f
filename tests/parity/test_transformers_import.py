"""Models of Hugging Face transformers, saved as they save themselves and imported: the same features and logits.

Random weights, float32 on the CPU; eps as in each config. Tolerance 1e-5: the order of summing differs.
"""

import pytest
import torch
import transformers

from beit.common.encoder import load_encoder
from beit.common.errors import InputError
from beit.finetune.artifact import load_classifier
from beit.finetune.segmentation.artifact import load_segmenter
from beit.finetune.weights.import_model import import_encoder

pytestmark = pytest.mark.reference

SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
SHAPE |= {"image_size": 32, "patch_size": 8}
TOLERANCE = 1e-5


def build(kind, config_kind, **settings):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config_kind)(**{**SHAPE, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if "position" in name or "token" in name else 0.05))
    return model


def imported(model, tmp_path):
    model.save_pretrained(tmp_path / "hf")
    return import_encoder(tmp_path / "hf", tmp_path / "encoder")


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "config_kind", "settings"),
    [
        ("ViTModel", "ViTConfig", {}),
        ("ViTModel", "ViTConfig", {"layer_norm_eps": 1e-3, "qkv_bias": False}),
        ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}),
        ("BeitModel", "BeitConfig", {"use_shared_relative_position_bias": True, "use_mask_token": True}),
        ("BeitModel", "BeitConfig", {"use_relative_position_bias": True}),
        ("BeitModel", "BeitConfig", {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0}),
        ("Data2VecVisionModel", "Data2VecVisionConfig", {"use_relative_position_bias": True}),
        ("Dinov2Model", "Dinov2Config", {}),
    ],
)
def test_features_of_an_imported_model_are_its_own(tmp_path, kind, config_kind, settings):
    model = build(kind, config_kind, **settings)
    config = imported(model, tmp_path).config
    encoder = load_encoder(tmp_path / "encoder")
    with torch.no_grad():
        # MAE shuffles the patches; in this order they stay where they are.
        order = {"noise": torch.arange(16.0).expand(2, -1)} if kind == "ViTMAEModel" else {}
        theirs = model(images(), **order).last_hidden_state
        ours = encoder.forward_features(images())
    assert (ours - theirs).abs().max() < TOLERANCE
    assert config.architecture.final_norm == (kind not in ("BeitModel", "Data2VecVisionModel"))
    assert config.architecture.layer_norm_eps == model.config.layer_norm_eps


@pytest.mark.parametrize(
    ("kind", "config_kind", "settings", "pooling"),
    [
        ("ViTForImageClassification", "ViTConfig", {}, "cls"),
        ("BeitForImageClassification", "BeitConfig", {"use_relative_position_bias": True}, "mean"),
    ],
)
def test_logits_of_an_imported_classifier_are_its_own(tmp_path, kind, config_kind, settings, pooling):
    names = {0: "crane", 1: "crane", 2: "cat"}
    model = build(kind, config_kind, id2label=names, label2id={"crane": 1, "cat": 2}, **settings)
    imported(model, tmp_path)
    classifier, stored = load_classifier(tmp_path / "encoder")
    with torch.no_grad():
        assert (classifier(images()) - model(images()).logits).abs().max() < TOLERANCE
    assert (stored.pooling, stored.class_names) == (pooling, ("crane (0)", "crane (1)", "cat"))


def test_names_of_live_modules_are_known_too(tmp_path):
    model = build("ViTModel", "ViTConfig")
    torch.save(model.state_dict(), tmp_path / "live.pth")
    import_encoder(tmp_path / "live.pth", tmp_path / "encoder", num_heads=4)
    with torch.no_grad():
        ours = load_encoder(tmp_path / "encoder").forward_features(images())
        # A bare file says nothing of eps, and 1e-6 is what ours has then.
        assert (ours - model(images()).last_hidden_state).abs().max() < 1e-3


def test_masked_image_modelling_keeps_its_head(tmp_path):
    model = build("BeitForMaskedImageModeling", "BeitConfig", vocab_size=20, use_shared_relative_position_bias=True)
    config = imported(model, tmp_path).config
    assert (config.task, config.vocab_size) == ("pretrain", 20)


def test_a_training_model_of_mae_leaves_its_decoder(tmp_path):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    model = build("ViTMAEForPreTraining", "ViTMAEConfig", decoder_intermediate_size=32, **decoder)
    config = imported(model, tmp_path).config
    assert config.provenance["family"] == "MAE" and any("decoder" in name for name in config.provenance["left_out"])


def test_a_distilled_deit_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="distillation_token': a second class token"):
        imported(build("DeiTModel", "DeiTConfig"), tmp_path)


@pytest.mark.parametrize(
    ("kind", "config_kind", "settings", "reason"),
    [
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, "it has registers"),
        ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}, "SwiGLU"),
        ("DINOv3ViTModel", "DINOv3ViTConfig", {}, "RoPE"),
    ],
)
def test_models_that_compute_something_else_are_refused_by_name(tmp_path, kind, config_kind, settings, reason):
    with pytest.raises(InputError, match=reason) as error:
        imported(build(kind, config_kind, **settings), tmp_path)
    assert "\n" not in str(error.value)


def test_mask_tokens_of_dinov2_replace_patches_as_there(tmp_path):
    model = build("Dinov2Model", "Dinov2Config")
    imported(model, tmp_path)
    mask = torch.arange(16) % 3 == 0
    with torch.no_grad():
        theirs = model(images(), bool_masked_pos=mask.expand(2, -1)).last_hidden_state
        ours = load_encoder(tmp_path / "encoder").forward_features(images(), mask.expand(2, -1))
    assert (ours - theirs).abs().max() < TOLERANCE


def test_a_head_on_two_poolings_behind_one_norm_is_kept(tmp_path):
    model = build("Dinov2ForImageClassification", "Dinov2Config", id2label={0: "a", 1: "b"})
    imported(model, tmp_path)
    classifier, stored = load_classifier(tmp_path / "encoder")
    assert (stored.class_names, stored.pooling) == (("a", "b"), "cls_mean")
    with torch.no_grad():
        assert (classifier(images()) - model(images()).logits).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", ["Beit", "Data2VecVision"])
def test_logits_of_an_imported_segmenter_are_its_own(tmp_path, kind):
    names = {0: "wall", 1: "sky", 2: "tree"}
    shape = {"num_hidden_layers": 6, "out_indices": [2, 3, 4, 6], "use_relative_position_bias": True}
    model = build(f"{kind}ForSemanticSegmentation", f"{kind}Config", id2label=names, **shape)
    imported(model, tmp_path)
    segmenter, _stored, info = load_segmenter(tmp_path / "encoder")
    assert info.classes.names == ("wall", "sky", "tree") and info.head.blocks == (0, 1, 2, 4)
    with torch.no_grad():
        theirs = model(images()).logits
        assert (segmenter(images()) - theirs).abs().max() < TOLERANCE * theirs.abs().max().clamp(min=1)


def test_indices_of_the_released_segmenters_are_a_guess_that_can_be_set(tmp_path):
    model = build(
        "BeitForSemanticSegmentation",
        "BeitConfig",
        num_hidden_layers=12,
        out_indices=[3, 5, 7, 11],
        use_relative_position_bias=True,
        num_labels=3,
    )
    result = imported(model, tmp_path)
    line = next(line for line in result.summary.splitlines() if line.startswith("blocks under the head"))
    assert "a guess: 1, 3, 5, 9" in line and "--head-blocks released" in line
    import_encoder(tmp_path / "hf", tmp_path / "released", head_blocks="released")
    assert load_segmenter(tmp_path / "released")[2].head.blocks == (3, 5, 7, 11)


@pytest.mark.parametrize("side", [24, 48, 56])
def test_positions_at_another_resolution_are_those_of_transformers(tmp_path, side):
    model = build("ViTModel", "ViTConfig")
    imported(model, tmp_path)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = model(pixels, interpolate_pos_encoding=True).last_hidden_state
        ours = load_encoder(tmp_path / "encoder", img_size=side).forward_features(pixels)
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", ["BeitModel", "BeitForImageClassification", "ViTModel", "AutoModel"])
def test_transformers_refuses_an_encoder_instead_of_loading_random_weights(tmp_path, kind):
    imported(build("BeitModel", "BeitConfig", use_relative_position_bias=True), tmp_path)
    with pytest.raises(ValueError, match="load it with beit.common.encoder.load_encoder|Unrecognized model"):
        getattr(transformers, kind).from_pretrained(tmp_path / "encoder")
