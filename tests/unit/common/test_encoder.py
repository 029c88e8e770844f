"""The encoder on disk: round trip, adaptation on load, atomicity, and clear errors."""

import json
import stat

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from beit.common import encoder as encoder_module
from beit.common.encoder import load_encoder, load_weights, read_encoder_state, save_model
from beit.common.errors import InputError
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.vit import VisionTransformer
from beit.finetune.classification.model import FRESH_PREFIXES, ImageClassifier
from beit.pretrain.model import MaskedImageModel
from beit.tests.encoders import save_encoder

CONFIG = ViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=2)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PROVENANCE = {"step": 7, "store_sha256": "ab", "metrics": {"loss": 6.5}}


def pretrain_model(seed=0, config=CONFIG):
    torch.manual_seed(seed)
    model = MaskedImageModel(config, vocab_size=32, num_masked=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def write(directory, model, **changes):
    described = {"architecture": model.config, "mean": MEAN, "std": STD, "vocab_size": 32, "provenance": PROVENANCE}
    save_encoder(directory, model.state_dict(), **(described | changes))


@pytest.fixture
def saved(tmp_path):
    model = pretrain_model()
    write(tmp_path / "encoder", model)
    return tmp_path / "encoder", model


def classifier(**changes):
    config = ViTConfig(img_size=24, patch_size=4, embed_dim=16, depth=2, num_heads=2, pos_bias="per_block",
                       use_mask_token=False, init="finetune")  # fmt: skip
    return ImageClassifier(config, num_classes=3, **changes)


def test_every_tensor_is_written_under_its_official_name(saved):
    directory, model = saved
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    stored = load_file(directory / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())


def test_config_round_trips(saved):
    directory, _ = saved
    config = read_encoder_config(directory)
    assert config.architecture == CONFIG
    assert config.normalization == Normalization(MEAN, STD)
    assert (config.task, config.vocab_size, config.class_names) == ("pretrain", 32, None)
    assert config.provenance == PROVENANCE
    assert json.loads((directory / "config.json").read_text())["format_version"] == 1


def test_transformers_is_told_that_it_cannot_load_the_folder(saved):
    """Without these it loads random weights of its default shape; 4.57.1 and 5.24.0 heed the first, 4.49.0 the other.

    Tried with BeitModel.from_pretrained; a folder without config.json, or under another name, they load all the same.
    """
    weights = json.loads((saved[0] / "config.json").read_text())["transformers_weights"]
    assert "load it with beit.common.encoder.load_encoder" in weights
    assert not weights.endswith((".safetensors", ".safetensors.index.json"))
    with safe_open(saved[0] / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "beit-encoder"}


def test_an_encoder_without_the_word_for_transformers_loads_as_before(saved):
    path = saved[0] / "config.json"
    document = json.loads(path.read_text())
    del document["transformers_weights"]
    path.write_text(json.dumps(document))
    assert read_encoder_config(saved[0]).architecture == CONFIG


def test_loaded_encoder_computes_the_same(saved):
    directory, model = saved
    encoder = load_encoder(directory)
    images, mask = torch.randn(2, 3, 16, 16), torch.rand(2, 16) < 0.4
    assert torch.equal(encoder.forward_features(images, mask), model.forward_features(images, mask))
    assert not encoder.training
    assert encoder.normalization == Normalization(MEAN, STD)
    assert encoder.provenance == PROVENANCE
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_loading_leaves_the_random_stream_alone(saved):
    torch.manual_seed(5)
    wanted = torch.randn(3)
    torch.manual_seed(5)
    load_encoder(saved[0])
    assert torch.equal(torch.randn(3), wanted)


def test_run_directory_is_understood(saved):
    assert torch.equal(load_encoder(saved[0].parent).cls_token, saved[1].cls_token)


def test_encoder_adapts_to_another_size_and_position_mode(saved):
    encoder = load_encoder(saved[0], img_size=24, pos_bias="per_block", drop_path=0.3)
    assert encoder.config.img_size == 24
    assert encoder.rel_pos_bias is None
    assert encoder.blocks[1].drop_path == 0.3
    assert encoder(torch.randn(1, 3, 24, 24)).shape == (1, 37, 16)


def test_position_mode_alone_leaves_the_function_unchanged(saved):
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(load_encoder(saved[0], pos_bias="per_block")(images), load_encoder(saved[0])(images))


def test_classifier_starts_from_the_encoder_with_a_fresh_head(saved):
    directory, model = saved
    fresh = load_weights(classifier(), directory, fresh=FRESH_PREFIXES)
    assert sorted(fresh) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    target = classifier()
    load_weights(target, directory, fresh=FRESH_PREFIXES)
    assert torch.equal(target.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert (target.fc_norm.weight == 1).all()
    assert target.normalization == Normalization(MEAN, STD)


def test_cls_pooling_takes_over_the_final_norm(saved):
    target = classifier(pooling="cls")
    assert sorted(load_weights(target, saved[0], fresh=FRESH_PREFIXES)) == ["head.bias", "head.weight"]
    assert torch.equal(target.norm.weight, saved[1].norm.weight)


def test_classification_model_round_trips_with_its_head(tmp_path):
    model = classifier().eval()
    config = EncoderConfig(
        architecture=model.config, normalization=Normalization(MEAN, STD), task="classification",
        class_names=("cat", "dog", "eel"), pooling="mean",
    )  # fmt: skip
    save_model(tmp_path, model.state_dict(), config)
    assert read_encoder_config(tmp_path) == config
    target = classifier()
    assert load_weights(target, tmp_path) == []
    images = torch.randn(1, 3, 24, 24)
    assert torch.equal(target.eval()(images), model(images))
    kept = load_weights(classifier(), tmp_path, skip=("head.",))
    assert sorted(kept) == ["head.bias", "head.weight"]


def test_missing_and_mismatched_tensors_are_refused(saved):
    directory, _ = saved
    with pytest.raises(InputError, match=r"fc_norm\.weight"):
        load_weights(classifier(), directory)
    state = load_file(directory / "model.safetensors")
    state["cls_token"] = torch.zeros(1, 1, 8)
    save_file(state, directory / "model.safetensors")
    with pytest.raises(InputError, match=r"cls_token.*\(1, 1, 8\).*\(1, 1, 16\)"):
        load_encoder(directory)


def test_meta_models_must_be_filled_completely(saved):
    with torch.device("meta"):
        target = classifier()
    with pytest.raises(InputError, match="head"):
        load_weights(target, saved[0], fresh=FRESH_PREFIXES)


def test_an_encoder_is_replaced_by_a_newer_one(saved):
    directory, _ = saved
    newer = pretrain_model(seed=1)
    write(directory, newer, provenance={"step": 8})
    assert torch.equal(load_encoder(directory).cls_token, newer.cls_token)
    assert read_encoder_config(directory).provenance == {"step": 8}


def test_interrupted_write_leaves_the_old_encoder(saved, monkeypatch):
    directory, model = saved

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write(directory, pretrain_model(seed=1))
    assert torch.equal(load_encoder(directory).cls_token, model.cls_token)
    assert len(list(directory.iterdir())) == 2


def test_one_bit_of_the_weights_is_noticed(saved):
    path = saved[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    for load in (load_encoder, read_encoder_state, lambda folder: load_weights(pretrain_model(), folder)):
        with pytest.raises(InputError, match=r"model\.safetensors is damaged, or not the file .*sha256 is not"):
            load(saved[0])


def test_descriptions_of_earlier_versions_state_no_hash_and_their_weights_are_believed(saved):
    path = saved[0] / "config.json"
    value = json.loads(path.read_text())
    del value["weights_sha256"]
    path.write_text(json.dumps(value))
    load_encoder(saved[0])
    write(saved[0], pretrain_model(seed=1))
    assert "weights_sha256" in json.loads(path.read_text())


def test_new_weights_with_the_old_description_are_whole(saved, monkeypatch):
    """Killed between the two renames: the description allows both weights."""
    directory, newer = saved[0], pretrain_model(seed=1)
    steps = iter([encoder_module.write_json])
    monkeypatch.setattr(encoder_module, "write_json", lambda *args: next(steps, fail_as_killed)(*args))
    with pytest.raises(OSError, match="killed"):
        write(directory, newer)
    assert torch.equal(load_encoder(directory).cls_token, newer.cls_token)
    assert len(json.loads((directory / "config.json").read_text())["weights_sha256"]) == 2
    monkeypatch.undo()
    write(directory, newer)
    assert isinstance(json.loads((directory / "config.json").read_text())["weights_sha256"], str)


def fail_as_killed(*args):
    raise OSError("killed")


def test_a_full_disk_is_an_os_error_that_names_the_file(saved, monkeypatch):
    """As checkpoints have it: the training goes on, and the old encoder stays."""

    def fill_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fill_disk)
    with pytest.raises(OSError, match=r"model\.safetensors could not be written: .*No space left"):
        write(saved[0], pretrain_model(seed=1))
    assert torch.equal(load_encoder(saved[0]).cls_token, saved[1].cls_token)
    assert len(list(saved[0].iterdir())) == 2


def test_new_architecture_never_meets_the_old_description(saved, monkeypatch):
    directory, _ = saved
    other = pretrain_model(config=ViTConfig(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2))
    monkeypatch.setattr(encoder_module, "write_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write(directory, other)
    with pytest.raises(InputError, match="interrupted"):
        load_encoder(directory)


def test_no_encoder_says_so(tmp_path):
    with pytest.raises(InputError, match="is not an encoder"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: value | {"format": "zip"}, "is not a beit-encoder file"),
        (lambda value: value | {"format_version": 9}, "format_version 9"),
        (lambda value: {key: value[key] for key in value if key != "architecture"}, "malformed"),
        (lambda value: value | {"architecture": value["architecture"] | {"deptj": 1}}, "deptj"),
    ],
)
def test_damaged_description_is_refused(saved, damage, message):
    path = saved[0] / "config.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message):
        load_encoder(saved[0])


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("architecture", {"depth": 10**9}),
        ("architecture", {"depth": 0}),
        ("architecture", {"depth": 1.5}),
        ("architecture", {"depth": "many"}),
        ("architecture", {"img_size": 10**6}),
        ("architecture", {"img_size": 4}),
        ("architecture", {"patch_size": 8}),
        ("architecture", {"embed_dim": -16}),
        ("architecture", {"embed_dim": 2**40}),
        ("architecture", {"num_heads": 0}),
        ("architecture", {"num_heads": 4}),
        ("architecture", {"in_chans": 10**9}),
        ("architecture", {"mlp_ratio": 1e300}),
        ("architecture", {"mlp_ratio": float("inf")}),
        ("architecture", {"mlp_ratio": float("nan")}),
        ("architecture", []),
        ("normalization", {"mean": "abc"}),
        ("normalization", {"std": [0.0, 0.5, 0.5]}),
        ("normalization", {"std": [float("nan"), 0.5, 0.5]}),
        ("normalization", {"mean": [0.5]}),
        ("normalization", None),
        ("best_block", 10**9),
        ("best_block", "last"),
        ("vocab_size", -1),
        ("class_names", 3),
        ("class_names", [1, 2]),
        ("task", []),
        ("multi_label", "no"),
        ("crop_pct", 0.0),
        ("crop_pct", 1.5),
        ("crop_pct", "all"),
        ("provenance", "none"),
        ("weights_sha256", 5),
        ("weights_sha256", {}),
    ],
)
@pytest.mark.parametrize("weights", ["there", "missing"])
def test_numbers_that_cannot_be_true_are_one_line_before_anything_is_built(saved, section, change, weights):
    path = saved[0] / "config.json"
    value = json.loads(path.read_text())
    value[section] = value[section] | change if isinstance(change, dict) and change else change
    path.write_text(json.dumps(value))
    if weights == "missing":
        (saved[0] / "model.safetensors").unlink()
    with pytest.raises(InputError) as caught:
        load_encoder(saved[0])
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(saved):
    path = saved[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        read_encoder_state(saved[0])


def test_loaded_type_is_the_bare_encoder(saved):
    encoder = load_encoder(saved[0])
    assert type(encoder) is VisionTransformer
    assert not any(name.startswith(("norm", "lm_head")) for name in encoder.state_dict())


def test_weights_may_be_read_by_whoever_may_read_the_description(saved):
    modes = {stat.S_IMODE((saved[0] / name).stat().st_mode) for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1
