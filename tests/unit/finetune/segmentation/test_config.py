"""Settings of a segmentation: the published ones, and what is refused."""

import pytest

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.common.training.config import plan_training
from beit.finetune.commands import SEGMENTATION_RECIPES
from beit.finetune.segmentation.config import SegmentationConfig

PUBLISHED = {  # beit-spec 8.3: crop, lr, layer decay, drop path, blocks, stride, warmup, crops at a time
    "beit_base_upernet_ade20k": (512, 7e-4, 0.65, 0.1, (3, 5, 7, 11), 341, 1500, 2),
    "beit_base_upernet_640_ade20k": (640, 3e-5, 0.9, 0.1, (3, 5, 7, 11), 426, 1500, 2),
    "beit_large_upernet_ade20k": (512, 2e-5, 0.95, 0.2, (7, 11, 15, 23), 341, 1500, 2),
    "beit_large_upernet_640_ade20k": (640, 2e-5, 0.95, 0.2, (7, 11, 15, 23), 426, 1500, 1),
}


def load(*overrides, recipe=None):
    return load_config(SegmentationConfig, recipe=recipe, overrides=overrides, recipe_dir=SEGMENTATION_RECIPES)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_numbers(recipe):
    config = load(recipe=recipe)
    optimizer, train, head, augment = config.optimizer, config.train, config.head, config.augment
    found = (config.image.img_size, optimizer.lr, config.layer_decay, config.model.drop_path, head.blocks)
    found += (config.evaluation.stride, optimizer.warmup_steps, train.micro_batch_size)
    assert found == PUBLISHED[recipe]
    assert (train.steps, train.global_batch_size, train.ema_decay) == (160_000, 16, None)
    assert (optimizer.schedule, optimizer.power, optimizer.min_lr) == ("poly", 1.0, 0.0)
    assert (optimizer.weight_decay, optimizer.betas, optimizer.clip_grad) == (0.05, (0.9, 0.999), None)
    assert (head.kind, head.norm, head.dropout, head.auxiliary_weight) == ("upernet", "batch", 0.1, 0.4)
    assert (augment.scale, augment.max_class_share, augment.flip, augment.photometric) == ((0.5, 2.0), 0.75, 0.5, True)
    assert augment.short_side == config.evaluation.short_side == config.image.img_size
    assert config.data.reduce_zero_label
    assert config.normalization == "imagenet"
    text = (SEGMENTATION_RECIPES / f"{recipe}.toml").read_text()
    assert "Not attempted" in text
    assert f"--recipe {recipe} " in text


def test_every_recipe_is_tested():
    assert {path.stem for path in SEGMENTATION_RECIPES.glob("*.toml")} == {*PUBLISHED, "segmentation_small"}
    small = load(recipe="segmentation_small")
    assert (small.head.kind, small.train.steps, small.optimizer.schedule) == ("linear", 1500, "poly")


@pytest.mark.parametrize(("images", "steps"), [(20_210, 160_416), (367, 2913), (300, 2381)])
def test_without_a_recipe_a_run_is_as_long_as_the_data_allow(images, steps):
    """The 160 000 steps of ADE20K are 127 passes; a few hundred images take a few thousand steps."""
    config = load()
    plan = plan_training(config.train, config.optimizer, config.checkpoint, num_samples=images, world_size=1)
    assert plan.total_steps == steps
    assert 0.03 < plan.warmup_steps / plan.total_steps < 0.05


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.scale=[2.0, 0.5]", r"augment\.scale .* low <= high"),
        ("augment.scale=[0.0, 0.5]", r"augment\.scale"),
        ("augment.flip=2", r"augment\.flip"),
        ("optimizer.schedule=linear", r"optimizer\.schedule.*poly"),
        ("optimizer.power=0", r"optimizer\.power"),
        ("normalization=half", "normalization"),
        ("class_weights=heavy", "class_weights"),
        ("head.kind=unet", "did you mean upernet"),
        ("augment.cat_max_ratio=0.5", r"did you mean 'augment\.max_class_share'"),
        ("out_indices=3", r"did you mean 'head\.blocks'"),
        ("encoder=", "--encoder"),
    ],
)
def test_bad_value_is_one_clear_line(override, message):
    with pytest.raises(InputError, match=message) as caught:
        load(override)
    assert "\n" not in str(caught.value)
