"""Settings: recipes, the defaults that differ from pre-training, ranges."""

import tomllib
from dataclasses import replace

import pytest

from beit.common.config import config_from_dict, config_to_toml, load_config
from beit.common.errors import InputError
from beit.finetune.commands import RECIPES
from beit.finetune.config import FinetuneConfig

RECIPE_FILES = sorted(RECIPES.rglob("*.toml"))


def load(*overrides, recipe=None):
    return load_config(FinetuneConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)


def test_there_are_recipes():
    assert len(RECIPE_FILES) >= 4


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_recipe_loads_and_survives_the_run_directory(path):
    config = load(recipe=path.stem)
    assert config_from_dict(FinetuneConfig, tomllib.loads(config_to_toml(config))) == config


PUBLISHED = {  # beit-spec 8.1: batch, lr, warmup, epochs, layer decay, drop path, weight decay, mixing, clipping
    "beit_base_patch16_224_1k": (1024, 4e-3, 20, 100, 0.65, 0.1, 0.05, True, None),
    "beit_large_patch16_224_1k": (1024, 1e-3, 5, 50, 0.75, 0.2, 0.05, True, None),
    "beit_base_patch16_224_22k": (4096, 3e-3, 5, 90, 0.65, 0.2, 0.05, False, 3.0),
    "beit_large_patch16_224_22k": (2048, 2e-3, 5, 90, 0.75, 0.2, 0.05, False, 1.0),
    "beit_base_patch16_224_22k_1k": (512, 2e-5, 5, 30, 0.85, 0.1, 1e-8, False, None),
    "beit_base_patch16_384_22k_1k": (512, 2e-5, 5, 30, 0.85, 0.1, 1e-8, False, None),
    "beit_large_patch16_224_22k_1k": (512, 2e-5, 5, 30, 0.9, 0.4, 1e-8, False, None),
    "beit_large_patch16_384_22k_1k": (512, 2e-5, 5, 30, 0.9, 0.4, 1e-8, False, None),
    "beit_large_patch16_512_22k_1k": (512, 2e-5, 5, 30, 0.9, 0.4, 1e-8, False, None),
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_numbers(recipe):
    config = load(recipe=recipe)
    train, optimizer = config.train, config.optimizer
    found = (train.global_batch_size, optimizer.lr, optimizer.warmup_epochs, train.epochs, config.layer_decay)
    found += (config.model.drop_path, optimizer.weight_decay, config.mix.is_on, optimizer.clip_grad)
    assert found == PUBLISHED[recipe]
    assert (optimizer.min_lr, optimizer.betas, optimizer.eps) == (1e-6, (0.9, 0.999), 1e-8)
    assert config.classifier.label_smoothing == 0.1
    augment = config.augment
    assert (augment.scale, augment.ratio, augment.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (augment.rand_augment, augment.erase_prob) == ("rand-m9-mstd0.5-inc1", 0.25)
    if config.mix.is_on:
        assert (config.mix.mixup_alpha, config.mix.cutmix_alpha, config.mix.prob, config.mix.switch_prob) == (
            0.8,
            1,
            1,
            0.5,
        )
    px = int(recipe.split("_")[3])
    assert config.image.img_size == (None if px == 224 else px)


def test_one_key_of_a_section_leaves_fine_tunings_defaults_for_the_others():
    config = load("train.epochs=3", "optimizer.weight_decay=0.1")
    assert config.train.global_batch_size == 1024
    assert (config.optimizer.lr, config.optimizer.warmup_epochs, config.optimizer.clip_grad) == (4e-3, 20, None)


def test_defaults_are_the_base_recipe():
    base, plain = load(recipe="beit_base_patch16_224_1k"), load()
    for section in ("optimizer", "augment", "mix", "classifier", "layer_decay"):
        assert getattr(plain, section) == getattr(base, section)
    # A recipe may be for one size, the defaults are for any encoder.
    assert plain.model == replace(base.model, size=None)
    assert plain.model.for_random_weights() == base.model.for_random_weights()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layer_decay=0", r"layer_decay \(0.0\)"),
        ("augment.scale=[0.5, 0.2]", "augment.scale"),
        ("augment.color_jitter=2", "color_jitter"),
        ("augment.color_jitter=0.4", "exclude each other"),
        ("augment.rand_augment=rand-m9", "inc1"),
        ("augment.erase_prob=-1", "erase_prob"),
        ("mix.mixup_alpha=5", "mixup_alpha"),
        ("mix.prob=2", r"mix\.prob"),
        ("train.micro_batch_size=3", r"micro_batch_size \(3\) must be even"),
        ("train.global_batch_size=9", r"global_batch_size \(9\) must be even"),
        ("freeze_blocks=-1", "freeze_blocks"),
        ("classifier.class_weights=heavy", "class_weights"),
        ("classifier.label_smoothing=1.0", "label_smoothing"),
        ("data.label_fraction=0.0", "label_fraction"),
        ("evaluation.crop_pct=1.5", "crop_pct"),
        ("image.std=[0.5, 0.5, 0]", "std"),
        ("encoder=", "--encoder"),
        ("epochs=3", r"did you mean 'train\.epochs'"),
    ],
)
def test_bad_value_is_one_clear_line(override, message):
    with pytest.raises(InputError, match=message) as caught:
        load(override)
    assert "\n" not in str(caught.value)


def test_class_weights_of_several_labels_are_refused():
    with pytest.raises(InputError, match="must be none with classifier.multi_label"):
        load("classifier.multi_label=true", "classifier.class_weights=balanced")


def test_two_ways_to_choose_a_subset_exclude_each_other():
    with pytest.raises(InputError, match="exclude each other"):
        load("data.num_labels=10", "data.label_fraction=0.1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("data.balanced=true", "classifier.multi_label=true"), "data.balanced must be false"),
        (("data.balanced=true", "classifier.class_weights=balanced"), "both make up for rare classes"),
    ],
)
def test_balance_that_does_not_fit_is_one_clear_line(settings, message):
    with pytest.raises(InputError, match=message):
        load(*settings)
