"""Settings: recipes, the defaults that differ from pre-training, ranges."""

import tomllib

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


@pytest.mark.parametrize(
    ("recipe", "lr", "epochs", "warmup", "layer_decay", "drop_path"),
    [("beit_base_patch16_224_1k", 4e-3, 100, 20, 0.65, 0.1), ("beit_large_patch16_224_1k", 1e-3, 50, 5, 0.75, 0.2)],
)
def test_published_numbers(recipe, lr, epochs, warmup, layer_decay, drop_path):
    config = load(recipe=recipe)
    assert (config.optimizer.lr, config.train.epochs, config.optimizer.warmup_epochs) == (lr, epochs, warmup)
    assert (config.layer_decay, config.model.drop_path) == (layer_decay, drop_path)
    assert config.train.global_batch_size == 1024
    assert (config.optimizer.min_lr, config.optimizer.weight_decay, config.optimizer.clip_grad) == (1e-6, 0.05, None)
    assert config.classifier.label_smoothing == 0.1
    assert config.augment.scale == (0.08, 1.0)
    assert config.augment.ratio == (3 / 4, 4 / 3)


def test_one_key_of_a_section_leaves_fine_tunings_defaults_for_the_others():
    config = load("train.epochs=3", "optimizer.weight_decay=0.1")
    assert config.train.global_batch_size == 1024
    assert (config.optimizer.lr, config.optimizer.warmup_epochs, config.optimizer.clip_grad) == (4e-3, 20, None)


def test_defaults_are_the_base_recipe():
    base, plain = load(recipe="beit_base_patch16_224_1k"), load()
    for section in ("optimizer", "augment", "classifier", "model", "layer_decay"):
        assert getattr(plain, section) == getattr(base, section)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layer_decay=0", r"layer_decay \(0.0\)"),
        ("augment.scale=[0.5, 0.2]", "augment.scale"),
        ("augment.color_jitter=2", "color_jitter"),
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


def test_two_ways_to_choose_a_subset_exclude_each_other():
    with pytest.raises(InputError, match="exclude each other"):
        load("data.num_labels=10", "data.label_fraction=0.1")
