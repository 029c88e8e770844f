"""Where a fine-tuning run starts from, and the model it leaves."""

from dataclasses import replace

import pytest
import torch

from beit.common.encoder import save_model
from beit.common.errors import InputError
from beit.common.vit.config import ModelConfig, build_vit_config
from beit.finetune.artifact import build_classifier, load_classifier, starting_point
from beit.finetune.classification.model import ImageClassifier
from beit.pretrain.model import MaskedImageModel
from beit.tests.encoders import save_encoder
from beit.tests.unit.finetune.colours import finetune_config

SHAPE = build_vit_config(ModelConfig(embed_dim=24, depth=2, num_heads=2, drop_path=0.0), img_size=16, patch_size=4)


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(1)
    model = MaskedImageModel(SHAPE, vocab_size=7, num_masked=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(
        tmp_path / "encoder",
        model.state_dict(),
        architecture=SHAPE,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        vocab_size=7,
        provenance={"store": "s"},
    )
    return tmp_path / "encoder", model


def pretrained(path, *overrides):
    config = finetune_config("image.img_size=none", "image.patch_size=none", f"encoder={path}", *overrides)
    return config, starting_point(config)


def test_shape_and_normalisation_come_from_the_encoder(encoder):
    config, start = pretrained(encoder[0], "model.drop_path=0.3")
    assert start.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    expected = replace(SHAPE, drop_path=0.3, pos_bias="per_block", use_mask_token=False, init="finetune")
    assert start.architecture == expected


def test_pretrained_classifier_computes_the_features_of_the_encoder(encoder):
    path, model = encoder
    config, start = pretrained(path)
    classifier = build_classifier(config, start, ("a", "b")).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        features = model.eval().forward_features(images)
        torch.testing.assert_close(classifier.forward_features(images), features)
    assert classifier.fc_norm.weight.eq(1).all()
    assert classifier.head.weight.abs().max() < 1e-3


def test_random_and_pretrained_models_of_one_recipe_have_the_same_shape(encoder):
    # A recipe gives the shape for random weights; comparing with an encoder needs the very same network.
    random = starting_point(finetune_config("model.drop_path=0.0"))
    _, start = pretrained(encoder[0], "model.drop_path=0.0")
    assert random.architecture == start.architecture


def test_other_resolution_resizes_the_tables(encoder):
    config, start = pretrained(encoder[0], "image.img_size=32")
    classifier = build_classifier(config, start, ("a", "b"))
    assert classifier(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_position_tables_that_an_encoder_lacks_start_at_zero(tmp_path):
    shape = replace(SHAPE, pos_bias="none", use_abs_pos_emb=True, use_mask_token=False)
    model = ImageClassifier(shape, num_classes=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    normalization = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    save_encoder(tmp_path / "e", model.state_dict(), architecture=shape, **normalization, vocab_size=7, provenance={})
    images, features = torch.randn(2, 3, 16, 16), []
    for overrides in ((), ("model.pos_bias=per_block",)):
        config, start = pretrained(tmp_path / "e", *overrides)
        classifier = build_classifier(config, start, ("a", "b")).eval()
        features.append(classifier.forward_features(images))
    assert len([name for name in classifier.state_dict() if name.endswith("relative_position_bias_table")]) == 2
    torch.testing.assert_close(*features)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["image.img_size=18"], r"img_size \(18\) must be a multiple of patch_size \(4\)"),
        (["image.patch_size=8"], r"patch_size \(8\) must be 4"),
        (["encoder=nowhere"], "nowhere is not an encoder"),
        (["model.pos_bias=none"], r"model.pos_bias \(none\) would drop the position tables .*leave it out"),
    ],
)
def test_unusable_start_is_one_clear_line(encoder, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        pretrained(encoder[0], *overrides)
    assert "\n" not in str(caught.value)


def test_missing_encoder_option_is_one_clear_line():
    config = replace(finetune_config(), encoder=None)
    with pytest.raises(InputError, match="--encoder is missing"):
        starting_point(config)


def test_grid_that_does_not_divide_is_refused_for_random_weights():
    with pytest.raises(InputError, match=r"img_size \(30\)"):
        starting_point(finetune_config("image.img_size=30"))


def test_encoder_without_head_is_no_classifier(encoder):
    with pytest.raises(InputError, match="without a classification head"):
        load_classifier(encoder[0])


def test_saved_classifier_loads_and_its_head_is_kept_for_the_same_classes_only(tmp_path, encoder):
    config, start = pretrained(encoder[0])
    classifier = build_classifier(config, start, ("a", "b")).eval()
    torch.nn.init.normal_(classifier.head.weight)
    description = replace(
        start.encoder,
        architecture=start.architecture,
        task="classification",
        class_names=("a", "b"),
        pooling="mean",
        vocab_size=None,
    )
    save_model(tmp_path / "model", classifier.state_dict(), description)
    images = torch.randn(2, 3, 16, 16)
    loaded, stored = load_classifier(tmp_path / "model")
    assert stored == description
    assert torch.equal(loaded(images), classifier(images))
    config, start = pretrained(tmp_path / "model")
    same, other = (build_classifier(config, start, names) for names in (("a", "b"), ("a", "c")))
    assert torch.equal(same.head.weight, classifier.head.weight)
    assert not torch.equal(other.head.weight, classifier.head.weight)
    assert torch.equal(other.blocks[0].mlp.fc1.weight, classifier.blocks[0].mlp.fc1.weight)
