"""The loss scale falls when a step overflows, grows when none does, and survives a resume."""

from __future__ import annotations

import pytest
import torch

from beit.common.training.optimizer import GROWTH_INTERVAL, INITIAL_SCALE, MAX_SCALE, MIN_SCALE, LossScale

NO, YES = torch.zeros(()), torch.ones(())


def test_overflow_halves_until_nothing_is_left_to_give() -> None:
    scale = LossScale(torch.device("cpu"))
    excused = [bool(scale.update(YES, NO)) for _ in range(20)]
    assert excused == [True] * 16 + [False] * 4
    assert scale.scale == MIN_SCALE


def test_a_bad_loss_is_not_blamed_on_the_scale() -> None:
    scale = LossScale(torch.device("cpu"))
    assert not scale.update(YES, YES)
    assert scale.scale == INITIAL_SCALE


@pytest.mark.parametrize("is_resumed", [False, True])
def test_good_steps_double_it_up_to_a_limit(is_resumed: bool) -> None:
    scale = LossScale(torch.device("cpu"))
    for _ in range(GROWTH_INTERVAL - 1):
        assert not scale.update(NO, NO)
    assert scale.scale == INITIAL_SCALE
    if is_resumed:
        state, scale = scale.state(), LossScale(torch.device("cpu"))
        scale.restore(state)
    scale.update(NO, NO)
    assert scale.scale == 2 * INITIAL_SCALE
    scale.restore(torch.tensor([MAX_SCALE, GROWTH_INTERVAL - 1]))
    scale.update(NO, NO)
    assert scale.scale == MAX_SCALE
