from dataclasses import replace
from pathlib import Path

import pytest

from beit.common.config import config_to_toml, load_config
from beit.common.errors import InputError
from beit.tokenize.commands import RECIPES
from beit.tokenize.distillation.config import DistillationConfig
from beit.tokenize.kinds import check_place, check_recipe

SHIPPED = sorted(path.stem for path in RECIPES.glob("vqkd_*.toml"))


def load(recipe: str | None = None, *overrides: str) -> DistillationConfig:
    return load_config(DistillationConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)


def test_shipped_recipes_load() -> None:
    assert SHIPPED == ["vqkd_base_patch16_224", "vqkd_mini_patch4_32", "vqkd_mini_patch8_64"]
    for recipe in SHIPPED:
        config = load(recipe)
        assert recipe.endswith(f"patch{config.model.patch_size}_{config.model.img_size}")


def test_the_base_recipe_holds_the_published_numbers_and_so_do_the_defaults() -> None:
    base, defaults = load("vqkd_base_patch16_224"), load()
    assert (base.model, base.augment) == (defaults.model, defaults.augment)
    assert base.objective == replace(defaults.objective, standardise="none")
    assert (base.train, base.optimizer) == (defaults.train, defaults.optimizer)
    assert (base.model.vocab_size, base.model.code_dim, base.model.embed_dim, base.model.depth) == (8192, 32, 768, 12)
    assert (base.optimizer.lr, base.optimizer.betas, base.optimizer.weight_decay) == (2e-4, (0.9, 0.99), 1e-4)
    assert (base.train.epochs, base.train.global_batch_size, base.optimizer.warmup_epochs) == (100, 512, 10)
    assert (base.augment.scale, base.augment.flip, base.augment.brightness) == ((0.08, 1.0), 0.5, 0.0)
    assert (base.objective.commitment_weight, base.objective.codebook_decay, base.decoder.depth) == (1.0, 0.99, 3)


def test_a_recipe_that_sets_crops_leaves_colours_as_they_are() -> None:
    assert load("vqkd_mini_patch4_32").augment.contrast == 0.0


def test_recipes_of_other_kinds_are_refused_with_one_line() -> None:
    with pytest.raises(InputError, match=r"--recipe tokenizer_mini is one for --kind dvae, not vqkd"):
        check_recipe("vqkd", "tokenizer_mini", RECIPES)
    for kind in ("dvae", "kmeans"):
        with pytest.raises(InputError, match=rf"--recipe vqkd_mini_patch4_32 is one for --kind vqkd, not {kind}"):
            check_recipe(kind, "vqkd_mini_patch4_32", RECIPES)


def test_a_folder_with_a_run_of_another_kind_is_refused_with_one_line(tmp_path: Path) -> None:
    check_place("dvae", tmp_path)
    (tmp_path / "config.toml").write_text(config_to_toml(load()))
    check_place("vqkd", tmp_path)
    with pytest.raises(InputError, match=r"holds a run of beit .* --kind vqkd, not beit .* --kind dvae; run that"):
        check_place("dvae", tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoder.depth=2", r"decoder\.depth \(2\) must be one of 1, 3"),
        ("objective.codebook_decay=1.0", r"codebook_decay \(1\.0\)"),
        ("objective.restart_threshold=1", r"restart_threshold"),
        ("model.vocab_size=1", r"model\.vocab_size \(1\)"),
        ("model.img_size=100", r"model\.img_size \(100\) must be a multiple"),
        ("train.ema_decay=0.99", r"train\.ema_decay \(0\.99\) has no use for --kind vqkd"),
        ("deepspeed.zero_stage=1", r"deepspeed\.zero_stage \(1\) must be 0"),
        ("data.held_out=0.5", r"data\.held_out \(0\.5\)"),
        ("model.vocab=5", r"unknown key 'model\.vocab'.*vocab_size"),
    ],
)
def test_settings_that_cannot_be_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(None, override)
