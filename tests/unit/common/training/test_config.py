"""Numbers derived from the settings."""

from __future__ import annotations

import pytest

from beit.common.errors import InputError
from beit.common.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, TrainingPlan, plan_training


def plan(num_samples: int = 1000, world_size: int = 1, **settings: object) -> TrainingPlan:
    optimizer = {name: settings.pop(name) for name in ("warmup_steps", "warmup_epochs") if name in settings}
    return plan_training(
        TrainConfig(**({"global_batch_size": 100, "epochs": 3.0} | settings)),
        OptimizerConfig(**optimizer),
        CheckpointConfig(),
        num_samples=num_samples,
        world_size=world_size,
    )


def test_epochs_become_steps() -> None:
    result = plan(num_samples=1050, warmup_epochs=1.0)
    assert (result.total_steps, result.warmup_steps, result.steps_per_epoch) == (31, 10, 10.5)
    assert result.eval_interval_steps == result.save_interval_steps == 10


def test_paper_recipe_on_imagenet() -> None:
    result = plan(num_samples=1_281_167, global_batch_size=2048, epochs=800.0, world_size=16, micro_batch_size=128)
    assert (result.total_steps, result.warmup_steps, result.grad_accum_steps) == (500455, 6256, 1)


def test_steps_win_over_epochs_and_shorten_the_warmup() -> None:
    result = plan(steps=8)
    assert (result.total_steps, result.warmup_steps) == (8, 4)


def test_tiny_data_still_make_one_step() -> None:
    assert plan(num_samples=7, epochs=1.0).total_steps == 1


def test_explicit_warmup_is_kept_or_refused() -> None:
    assert plan(steps=8, warmup_steps=7).warmup_steps == 7
    with pytest.raises(InputError, match=r"warmup_steps \(9\) must not exceed the 8 steps"):
        plan(steps=8, warmup_steps=9)


def test_batch_is_shared_among_ranks() -> None:
    result = plan(world_size=2)
    assert (result.micro_batch_size, result.grad_accum_steps) == (50, 1)
    result = plan(world_size=2, micro_batch_size=10)
    assert result.grad_accum_steps == 5
    with pytest.raises(InputError, match=r"global_batch_size \(100\).*3 ranks; start one of 1, 2, 5, 10 ranks"):
        plan(world_size=3, micro_batch_size=10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0.0}, r"train.epochs \(0.0\) must be above 0"),
        ({"steps": 0}, r"train.steps \(0\)"),
        ({"global_batch_size": 0}, r"train.global_batch_size \(0\)"),
        ({"log_interval_steps": 0}, r"train.log_interval_steps \(0\)"),
    ],
)
def test_ranges(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"optimizer.lr \(0.0\)"),
        ({"min_lr": 1.0}, r"optimizer.min_lr \(1.0\) must be in"),
        ({"clip_grad": 0.0}, r"optimizer.clip_grad \(0.0\)"),
        ({"betas": (0.9, 1.0)}, r"optimizer.betas"),
    ],
)
def test_optimizer_ranges(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_numbers_that_can():
    with pytest.raises(
        InputError, match=r"\(32\) cannot be shared by 3 ranks; start one of 1, 2, 4 ranks, or set it to 33"
    ):
        plan_training(
            TrainConfig(global_batch_size=32), OptimizerConfig(), CheckpointConfig(), num_samples=100, world_size=3
        )
