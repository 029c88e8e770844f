import pytest

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.tokenize.commands import RECIPES
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig

SHIPPED = sorted(path.stem for path in RECIPES.glob("tokenizer_*.toml"))


def load(recipe: str | None = None, *overrides: str) -> TokenizerTrainConfig:
    return load_config(TokenizerTrainConfig, recipe=recipe, overrides=overrides, recipe_dir=RECIPES)


@pytest.mark.parametrize("recipe", SHIPPED)
def test_shipped_recipes_load(recipe: str) -> None:
    assert load(recipe).train.steps


def test_there_are_recipes_and_the_default_vocabulary_is_beits() -> None:
    assert {"tokenizer_mini", "tokenizer_base"} <= set(SHIPPED)
    assert load().model.vocab_size == load("tokenizer_base").model.vocab_size == 8192
    assert load("tokenizer_mini").model.vocab_size == 1024


def test_changing_one_setting_keeps_the_others() -> None:
    config = load(None, "train.steps=10", "optimizer.lr=0.001")
    assert (config.train.global_batch_size, config.optimizer.warmup_steps) == (64, 50)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop_size=60", r"data\.crop_size \(60\)"),
        ("data.crop_size=256", r"data\.crop_size \(256\)"),
        ("data.crops_per_image=0", "crops_per_image"),
        ("data.num_eval_images=0", "num_eval_images"),
        ("objective.hard_fraction=1.5", r"hard_fraction \(1\.5\)"),
        ("objective.temperature=[1.0, 0.0]", "temperature"),
        ("objective.usage_weight=-1", "usage_weight"),
        ("data.held_out=0", r"data\.held_out \(0"),
        ("data.held_out=0.5", r"data\.held_out \(0\.5\)"),
        ("train.ema_decay=1.0", r"train\.ema_decay \(1\.0\)"),
        ("train.early_stop_evals=0", r"train\.early_stop_evals \(0\)"),
        ("model.channels=2", r"model\.channels \(2\)"),
        ("model.reconstruction=l1", r"model\.reconstruction"),
        ("objective.reconstruction=mse", r"objective\.reconstruction"),
        ("deepspeed.zero_stage=2", r"deepspeed\.zero_stage \(2\) must be 0 .* codebook"),
        ("objective.revive_interval_steps=0", "revive_interval_steps"),
        ("model.vocab_size=100000", r"vocab_size \(100000\)"),
    ],
)
def test_bad_values_are_refused(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(None, override)
