"""What is written for timm has the names, shapes and settings of its models; by timm itself in tests/parity."""

import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from beit.common.encoder import read_encoder_state
from beit.common.errors import InputError, RunFailed
from beit.common.storage.documents import read_json
from beit.common.storage.tensor_check import read_shapes
from beit.common.vit.config import ViTConfig
from beit.finetune.weights.export import timm
from beit.finetune.weights.export.exporter import export_model
from beit.finetune.weights.export.source import read_source
from beit.tests.export_models import (
    CLASSES,
    CLASSIFIERS,
    ENCODERS,
    LIKE_DINO,
    MASKED,
    NORMALIZATION,
    TUNED,
    write_model,
)


@pytest.fixture(autouse=True)
def without_timm(monkeypatch):
    """As on most machines; where it is installed it is tried in tests/parity."""
    monkeypatch.setitem(sys.modules, "timm", None)


def exported(tmp_path, kind, described=None, **options):
    model = write_model(tmp_path / "model", kind, **described or {})
    found = export_model(model, tmp_path / "out", module="timm", **options)
    assert [file.name for file in found.files] == ["model.safetensors", "config.json"]
    return load_file(found.files[0]), read_json(found.files[1]), " ".join(found.summary.split())


@pytest.mark.parametrize("kind", [*ENCODERS, *MASKED, *CLASSIFIERS])
def test_names_and_shapes_are_those_of_its_module(tmp_path, kind):
    tensors, config, summary = exported(tmp_path, kind)
    assert read_shapes(tmp_path / "out/model.safetensors") == timm.expected_shapes(read_source(tmp_path / "model"))
    assert "timm cannot be imported: names and shapes were checked" in summary
    is_vit = "absolute" in kind and "tables" not in kind and "masked" not in kind
    assert config["architecture"] == ("vit_base_patch16_224" if is_vit else "beit_base_patch16_224")
    assert "mask_token" not in tensors and not any(name.startswith("lm_head") for name in tensors)
    state = read_encoder_state(tmp_path / "model")
    kept = tensors.keys() & state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in kept) and len(kept) > 20
    if "masked" in kind:
        assert (
            "left out, since timm has no place for them: 3 tensors, lm_head.bias, lm_head.weight, mask_token" in summary
        )


def test_its_settings_say_how_pixels_become_input_and_what_the_classes_are(tmp_path):
    _, config, _ = exported(tmp_path, "classifier mean", {"crop_pct": 0.9})
    cfg = config["pretrained_cfg"]
    assert (tuple(cfg["mean"]), tuple(cfg["std"])) == tuple(NORMALIZATION)
    assert cfg["input_size"] == [3, 32, 32] and cfg["fixed_input_size"] and cfg["crop_pct"] == 0.9
    assert (cfg["interpolation"], cfg["first_conv"], cfg["classifier"]) == ("bicubic", "patch_embed.proj", "head")
    assert config["num_classes"] == cfg["num_classes"] == 3 and config["label_names"] == list(CLASSES)
    assert (config["global_pool"], config["num_features"]) == ("avg", 24)


def described_as(tmp_path, kind, **shape):
    """Return name and arguments of a model of another shape than what is on the disk; no tensor is looked at."""
    source = read_source(write_model(tmp_path / kind, kind))
    return timm.name_and_arguments(replace(source, config=replace(source.config, architecture=ViTConfig(**shape))))


def test_models_that_timm_has_a_name_for_need_no_arguments(tmp_path):
    large = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
    small = {"embed_dim": 384, "depth": 12, "num_heads": 6}
    assert described_as(tmp_path, "classifier mean", **TUNED) == ("beit_base_patch16_224", {})
    assert described_as(tmp_path, "classifier mean", **TUNED, img_size=384) == ("beit_base_patch16_384", {})
    assert described_as(tmp_path, "classifier mean", **TUNED, **large, img_size=512) == ("beit_large_patch16_512", {})
    assert described_as(tmp_path, "classifier absolute", **LIKE_DINO) == ("vit_base_patch16_224", {})
    assert described_as(tmp_path, "classifier absolute", **LIKE_DINO, **small) == ("vit_small_patch16_224", {})
    assert described_as(tmp_path, "masked shared") == (
        "beit_base_patch16_224",
        {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False},
    )
    assert described_as(tmp_path, "classifier cls", **TUNED, img_size=448) == (
        "beit_base_patch16_224",
        {"img_size": 448, "global_pool": "token"},
    )


@pytest.mark.parametrize(
    ("kind", "said"), [("classifier cls_mean", "side by side"), ("segmenter upernet", "timm has none")]
)
def test_what_timm_has_no_place_for_is_refused_in_one_line(tmp_path, kind, said):
    with pytest.raises(InputError, match=said) as error:
        exported(tmp_path, kind)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_eps_is_refused(tmp_path):
    model = write_model(tmp_path / "model", "encoder shared")
    source = read_source(model)
    shape = replace(source.config.architecture, layer_norm_eps=1e-5)
    with pytest.raises(InputError, match="layer_norm_eps 1e-05, and timm's models 1e-06"):
        timm._require_place(replace(source, config=replace(source.config, architecture=shape)))


def test_a_file_that_is_not_what_timm_has_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "_added", lambda source: {})
    with pytest.raises(RunFailed, match=r"not what timm's model has: fc_norm\.bias, fc_norm\.weight"):
        exported(tmp_path, "encoder shared")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
