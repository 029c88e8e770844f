"""The memory of a training, against peaks that were measured (2026-11-30; Linux, torch 2.13, float32)."""

import pytest

from beit.common.config import load_config
from beit.common.forecast.hardware import named
from beit.common.forecast.memory import Memory, training_memory
from beit.common.vit.config import build_vit_config
from beit.pretrain.config import PretrainConfig
from beit.pretrain.forecast import RECIPES
from beit.pretrain.masking import max_num_masked

MEASURED = {
    ("beit_mini_patch8_64", 64, 8): {(1, 0): 514, (8, 0): 537, (32, 0): 579, (1, 2): 573, (8, 2): 592, (32, 2): 627},
    ("beit_tiny_patch8_64", 64, 8): {(1, 0): 594, (8, 0): 601, (32, 0): 727, (1, 2): 659, (8, 2): 665, (32, 2): 805},
    ("beit_small_patch16_224", 224, 16): {
        **{(1, 0): 1010, (8, 0): 1473, (32, 0): 3613},
        **{(1, 2): 1206, (8, 2): 1785, (32, 2): 3886},
    },
}
"""Megabytes by micro-batch and ZeRO stage, of a whole run of one rank with `mini`'s 1024 words: three steps, an
evaluation (64 images at once; one at 224 px) and a checkpoint."""
CASES = [(recipe, case) for recipe, cases in MEASURED.items() for case in cases]


def memory_of(recipe, img_size, patch_size, **options):
    config = load_config(PretrainConfig, recipe=recipe, overrides=[], recipe_dir=RECIPES)
    shape = build_vit_config(config.model, img_size=img_size, patch_size=patch_size)
    rows = max_num_masked(config.mask, shape.grid_size)
    return training_memory(shape, head_rows=rows, head_outputs=1024, last_rows=rows, **options)


@pytest.mark.parametrize(("recipe", "case"), CASES, ids=[f"{recipe[0]}-{case}" for recipe, case in CASES])
def test_the_formula_is_within_a_tenth_of_what_was_measured(recipe, case):
    found = memory_of(
        *recipe, micro_batch_size=case[0], zero_stage=case[1], evaluated_at_once=1 if recipe[1] == 224 else 64
    )
    assert found.total == pytest.approx(MEASURED[recipe][case] * 1e6, rel=0.1)


@pytest.mark.parametrize(("workers", "measured"), [(1, 199), (3, 263)])
def test_data_workers_take_what_their_server_imports_and_little_each(workers, measured):
    """Measured as what is no file's, shared among them counted once, with the tracker of resources."""
    found = memory_of("beit_mini_patch8_64", 64, 8, micro_batch_size=32, num_workers=workers)
    assert found.loaders == pytest.approx(measured * 1e6, rel=0.1)


def test_the_parts_add_up_and_ranks_share_what_zero_divides():
    small = ("beit_small_patch16_224", 224, 16)
    alone, shared = (memory_of(*small, micro_batch_size=8, zero_stage=2, world_size=ranks) for ranks in (1, 8))
    assert isinstance(alone, Memory) and alone.total == sum(
        (alone.weights, alone.gradients, alone.optimizer, alone.activations, alone.workspace, alone.loaders)
    )
    assert shared.gradients == alone.gradients / 8 and shared.weights == alone.weights
    whole = memory_of(*small, micro_batch_size=8, zero_stage=3, world_size=8)
    assert whole.weights == pytest.approx(alone.weights / 8, rel=0.01)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_stage_is_said_to_take_less_than_its_float32_states(stage):
    """What DeepSpeed's own estimate gets wrong."""
    found = memory_of("beit_base_patch16_224_1k", 224, 16, micro_batch_size=1, zero_stage=stage, device="cuda")
    assert found.of_model >= 4 * 4 * 86e6


def test_a_base_model_in_half_precision_fits_the_published_batch():
    """BEiT was pre-trained with 128 images on each V100 of 32 GB in float16."""
    card = named("V100")
    base = ("beit_base_patch16_224_1k", 224, 16)
    found = memory_of(*base, micro_batch_size=128, device="cuda", precision="fp16", world_size=16)
    assert card.memory_bytes is not None and found.total < card.memory_bytes


def test_recomputing_blocks_takes_less_and_half_precision_less_than_full():
    small = ("beit_small_patch16_224", 224, 16)
    plain = memory_of(*small, micro_batch_size=32, device="cuda")
    assert memory_of(*small, micro_batch_size=32, device="cuda", precision="bf16").total < 0.75 * plain.total
    assert memory_of(*small, micro_batch_size=32, device="cuda", is_recomputed=True).total < 0.5 * plain.total
