"""The schedule against the numbers of the released code."""

import math

import pytest

from beit.common.errors import InputError
from beit.common.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    TrainConfig,
    cosine_schedule,
    learning_rate,
    plan_training,
    poly_schedule,
)


def lr(step, total_steps=1000, warmup_steps=200):
    return cosine_schedule(step, total_steps=total_steps, warmup_steps=warmup_steps, peak=1.5e-3, final=1e-5)


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 0.0), (1, 7.5377e-6), (199, 1.5e-3), (200, 1.5e-3), (201, 1.49999426e-3), (999, 1.00057444e-5)],
)
def test_1000_steps(step, value):
    assert lr(step) == pytest.approx(value, rel=1e-5, abs=0)


@pytest.mark.parametrize(
    ("step", "value"), [(6249, 1.5e-3), (6250, 1.5e-3), (100_000, 1.371342e-3), (250_000, 7.69812e-4)]
)
def test_imagenet_800_epochs(step, value):
    assert lr(step, total_steps=500_000, warmup_steps=6_250) == pytest.approx(value, rel=1e-6)


def test_last_step_is_one_cosine_step_above_the_final_value():
    wanted = 1e-5 + 0.5 * (1.5e-3 - 1e-5) * (1 + math.cos(math.pi * (1 - 1 / 800)))
    assert lr(999) == pytest.approx(wanted)
    assert lr(5000) == lr(999)


def test_warmup_may_be_absent_short_or_everything():
    assert lr(0, warmup_steps=0) == 1.5e-3
    assert [lr(step, warmup_steps=1) for step in (0, 1)] == [0.0, 1.5e-3]
    assert lr(9, total_steps=10, warmup_steps=10) == 1.5e-3


def test_constant_when_both_ends_are_equal():
    values = {cosine_schedule(step, total_steps=50, warmup_steps=0, peak=0.05, final=0.05) for step in range(50)}
    assert values == {0.05}


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(InputError, match="11.*10"):
        lr(0, total_steps=10, warmup_steps=11)


def poly(step, total_steps=160_000, warmup_steps=1500, **settings):
    return poly_schedule(
        step, total_steps=total_steps, warmup_steps=warmup_steps, **{"peak": 7e-4, "final": 0.0} | settings
    )


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (0, 7e-4 * 1e-6),
        (750, 7e-4 * (1 - 750 / 160_000) * (1 - 0.5 * (1 - 1e-6))),
        (1499, 7e-4 * (1 - 1499 / 160_000) * (1 - (1 - 1e-6) / 1500)),
        (1500, 7e-4 * (1 - 1500 / 160_000)),
        (80_000, 3.5e-4),
        (159_999, 7e-4 / 160_000),
    ],
)
def test_poly_of_ade20k(step, value):
    """mmcv's rule, written out."""
    assert poly(step) == pytest.approx(value, rel=1e-9, abs=0)


def test_poly_has_a_power_and_an_end():
    assert poly(50, 100, 0, power=0.9, final=1e-5) == pytest.approx(1e-5 + (7e-4 - 1e-5) * 0.5**0.9)
    assert poly(0, 100, 0) == 7e-4
    assert poly(500, 100, 0) == poly(99, 100, 0)


def test_the_settings_choose_the_schedule():
    train = TrainConfig(steps=100, global_batch_size=4)
    for schedule, wanted in (("cosine", lr), ("poly", lambda *rest: poly(*rest, peak=1.5e-3, final=1e-5))):
        optimizer = OptimizerConfig(schedule=schedule, warmup_steps=10)
        plan = plan_training(train, optimizer, CheckpointConfig(), num_samples=40, world_size=1)
        assert [learning_rate(step, optimizer, plan) for step in range(100)] == [wanted(i, 100, 10) for i in range(100)]
    assert OptimizerConfig().schedule == "cosine"
