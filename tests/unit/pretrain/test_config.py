"""Settings: every shipped recipe, the published numbers, and the paper's ablation."""

import re
import shlex
import tomllib

import pytest

from beit.common.config import config_from_dict, config_to_toml, load_config
from beit.common.errors import InputError
from beit.common.vit.config import build_vit_config
from beit.pretrain.commands import RECIPES
from beit.pretrain.config import PretrainConfig

RECIPE_FILES = sorted(RECIPES.rglob("*.toml"))


def load(recipe, *overrides):
    return load_config(PretrainConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)


def test_there_are_recipes():
    assert len(RECIPE_FILES) >= 14


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_recipe_loads_and_survives_the_run_directory(path):
    config = load(path.stem)
    assert config_from_dict(PretrainConfig, tomllib.loads(config_to_toml(config))) == config


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_recipe_header_names_its_command_views_and_reuse(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"--recipe {path.stem}" in header
    train = load(path.stem).train
    if train.steps is None:
        told = re.search(r"^# views: (\d+) per image; reuse = epochs / K = ([\d.]+?)\.?\s", header, re.M).groups()
        views, reuse, epochs = *told, train.epochs
    else:  # a run as long for any number of images
        told = re.search(r"^# views: (\d+) per image; reuse = ([\d.]+) with (\d+) images", header, re.M).groups()
        views, reuse, epochs = *told[:2], train.steps * train.global_batch_size / int(told[2])
    assert float(reuse) == pytest.approx(epochs / int(views), abs=0.06)
    tokenize = re.search(r"^#   beit tokenize (.*)$", header, re.M)
    if tokenize:
        words = shlex.split(tokenize[1])
        assert words[words.index("--views") + 1] == views


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_recipe_says_what_views_and_patches_it_is_for(path):
    named = re.search(r"patch(\d+)_(\d+)", path.stem)
    expected = None if path.stem == "demo" else (int(named[2]), int(named[1])) if named else (224, 16)
    assert load(path.stem).data.made_for == expected


# beit-spec §7: epochs, warmup, clipping, layer scale, mean.
PUBLISHED = {
    "beit_base_patch16_224_1k": (800, {"warmup_epochs": 10.0}, 3.0, 0.1, 0.485),
    "beit_base_patch16_224_22k": (150, {"warmup_steps": 10_000}, 3.0, 0.1, 0.5),
    "beit_large_patch16_224_1k": (800, {"warmup_epochs": 10.0}, 1.0, 1e-5, 0.485),
    "beit_large_patch16_224_22k": (150, {"warmup_epochs": 10.0}, 1.0, 1e-5, 0.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    epochs, warmup, clip_grad, init_values, mean = PUBLISHED[name]
    config = load(name)
    assert config.train.epochs == epochs
    assert config.train.global_batch_size == 2048
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.min_lr, optimizer.weight_decay) == (1.5e-3, 1e-5, 0.05)
    assert (optimizer.betas, optimizer.eps, optimizer.final_weight_decay) == ((0.9, 0.999), 1e-8, None)
    assert optimizer.clip_grad == clip_grad
    assert {key: getattr(optimizer, key) for key in warmup} == warmup
    vit = build_vit_config(config.model, img_size=224, patch_size=16)
    assert (vit.init_values, vit.drop_path, vit.pos_bias, vit.use_abs_pos_emb) == (init_values, 0.1, "shared", False)
    assert vit.init == "pretrain"
    assert config.data.mean[0] == mean
    assert (config.mask.mode, config.mask.num_masked, config.mask.min_block) == ("blockwise", 0, 0)
    assert config.objective.kind == "masked_tokens"


def test_defaults_are_the_base_recipe():
    assert load(None) == load("beit_base_patch16_224_1k")


def test_random_weights_have_the_usual_values_where_nothing_is_said_and_others_where_it_is():
    model = load(None).model
    assert (model.size, model.mlp_ratio, model.use_abs_pos_emb, model.pos_bias) == ("base", 4.0, False, "shared")
    assert load(None, "model.pos_bias=none").model.pos_bias == "none"
    left_open = load(None, "init=encoder")
    assert (left_open.model.size, left_open.model.pos_bias, left_open.data.mean) == (None, "auto", None)
    with pytest.raises(InputError, match="--init must name the folder of an encoder"):
        load(None, "init=")


ABLATION = {
    "ablation_beit": ("masked_tokens", "blockwise"),
    "ablation_random_masks": ("masked_tokens", "random"),
    "ablation_pixels": ("masked_pixels", "blockwise"),
    "ablation_pixels_random_masks": ("masked_pixels", "random"),
    "ablation_all_tokens": ("all_tokens", "blockwise"),
    "ablation_all_tokens_unmasked": ("all_tokens", "none"),
}


def test_ablation_rows_differ_in_objective_and_masks_only():
    assert {path.stem for path in RECIPE_FILES if path.stem.startswith("ablation_")} == ABLATION.keys()
    for name, row in ABLATION.items():
        config = load(name)
        assert (config.objective.kind, config.mask.mode) == row
        again = load("ablation_beit", f"objective.kind={row[0]}", f"mask.mode={row[1]}")
        for section in ("model", "train", "optimizer", "data", "checkpoint"):
            assert getattr(config, section) == getattr(again, section)
        assert config.train.epochs == 300


def test_code_named_by_a_recipe_is_not_imported(tmp_path):
    from click.testing import CliRunner

    from beit.common.errors import InputError
    from beit.pretrain.commands import pretrain_command

    recipe = tmp_path / "mine.toml"
    recipe.write_text('[tokenizer]\nonline = "some_module:Words"\n')
    result = CliRunner().invoke(pretrain_command, [str(tmp_path), str(tmp_path / "run"), "--recipe", str(recipe)])
    assert isinstance(result.exception, InputError)
    assert "--set tokenizer.online=some_module:Words" in str(result.exception)


def test_an_unknown_interpolation_is_one_line():
    with pytest.raises(InputError, match=r"data\.interpolation.*lanczos.*'auto', 'bicubic', 'bicubic-torch'"):
        load("beit_tiny_patch4_32", "data.interpolation=lanczos")


@pytest.mark.parametrize(
    ("settings", "small", "large"),
    [
        ((), "bicubic", "bicubic-torch"),
        (("data.interpolation=bicubic",), "bicubic", "bicubic"),
        (("data.interpolation=bicubic-torch",), "bicubic-torch", "bicubic-torch"),
    ],
)  # fmt: skip
def test_torch_resizes_the_views_that_it_resizes_faster(settings, small, large):
    data = load("beit_tiny_patch4_32", *settings).data
    assert [data.resample(size) for size in (32, 64, 96, 224)] == [small, small, large, large]
