from pathlib import Path

import pytest

from beit.common.config import load_config
from beit.pretrain.commands import RECIPES
from beit.pretrain.config import PretrainConfig
from beit.pretrain.rates import measure_training
from beit.tests.support import write_store

SMALL = ["model.size=tiny", "model.embed_dim=24", "model.depth=2", "model.num_heads=2", "train.global_batch_size=2048"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Path(write_store(tmp_path_factory.mktemp("rates"), images=20, views=2).location)


@pytest.mark.parametrize(
    "more", [[], ["optimizer.kind=muon"], ["objective.kind=masked_pixels"], ["objective.aggregate=2"]]
)
def test_every_kind_of_training_can_be_timed(store, more):
    config = load_config(PretrainConfig, recipe=None, overrides=[*SMALL, *more], recipe_dir=RECIPES)
    rate = measure_training(config, store, micro_batch_size=4, seconds=0.2)
    assert rate.flops_per_second > 0 and rate.update_seconds > 0 and rate.views_per_core_second > 0
    assert 1 <= rate.micro_batch_size <= 4


def test_where_one_image_takes_long_few_are_timed_at_a_time(store):
    config = load_config(PretrainConfig, recipe=None, overrides=SMALL, recipe_dir=RECIPES)
    assert measure_training(config, store, micro_batch_size=64, seconds=1e-6).micro_batch_size == 1
