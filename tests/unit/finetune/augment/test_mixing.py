"""Mixup and cutmix: shares, boxes and targets against their formulas; the same for every split into micro-batches."""

import math

import numpy as np
import pytest
import torch

from beit.common.rng import CounterRng
from beit.finetune.augment.mixing import Mix, beta, draw_mix, mix_images, mix_targets
from beit.finetune.augment.settings import MixConfig


def draws(count=2000, **settings):
    return [draw_mix(MixConfig(**settings), seed=0, step=step, img_size=224) for step in range(count)]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_beta_has_the_moments_of_the_distribution(alpha):
    rng = CounterRng("beta", str(alpha))
    values = np.array([beta(rng, alpha) for _ in range(4000)])
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)
    assert ((values >= 0) & (values <= 1)).all()


def test_half_of_the_steps_cut_and_the_others_blend():
    mixes = draws()
    assert all(mix is not None for mix in mixes)
    assert sum(mix.box is not None for mix in mixes) == pytest.approx(1000, abs=80)


def test_cutmix_share_is_the_area_that_is_left():
    for mix in draws(300, mixup_alpha=0.0):
        top, bottom, left, right = mix.box
        assert 0 <= top <= bottom <= 224
        assert 0 <= left <= right <= 224
        assert mix.own_share == pytest.approx(1 - (bottom - top) * (right - left) / 224**2)


def test_uncut_boxes_have_the_side_of_the_formula(monkeypatch):
    monkeypatch.setattr("beit.finetune.augment.mixing.beta", lambda rng, alpha: 0.75)
    sides = {bottom - top for top, bottom, _, _ in (mix.box for mix in draws(50, mixup_alpha=0.0))}
    assert max(sides) == 2 * (int(224 * math.sqrt(0.25)) // 2)


def test_switched_off_parts_are_never_drawn():
    assert all(mix.box is None for mix in draws(100, cutmix_alpha=0.0))
    assert not any(draws(20, prob=0.0))
    assert not any(draws(20, mixup_alpha=0.0, cutmix_alpha=0.0))
    assert sum(mix is None for mix in draws(1000, prob=0.3)) == pytest.approx(700, abs=60)


def test_a_step_has_one_draw_of_its_own():
    first, again = draws(5), draws(5)
    assert first == again
    assert len({mix.own_share for mix in first}) == 5
    assert draw_mix(MixConfig(), seed=1, step=0, img_size=224) != first[0]


def test_partners_are_blended_with_their_targets():
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    mix = Mix(0.75, None)
    assert mix_images(images, mix)[:, 0, 0, 0].tolist() == [0.25, 0.75, 2.25, 2.75]
    targets = mix_targets(torch.eye(4), mix)
    assert targets[0].tolist() == [0.75, 0.25, 0, 0]
    assert targets[3].tolist() == [0, 0, 0.25, 0.75]


def test_cutmix_takes_the_box_from_the_partner():
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 8, 8)
    mixed = mix_images(images, Mix(1 - 6 / 64, (1, 3, 4, 7)))
    assert mixed[0].sum() == 3 * 6
    assert (mixed[0, :, 1:3, 4:7] == 1).all()
    assert (mixed[1, :, 1:3, 4:7] == 0).all()
    assert images[0].sum() == 0


@pytest.mark.parametrize("mix", [Mix(0.3, None), Mix(0.5, (0, 4, 0, 8))])
def test_micro_batches_mix_like_the_whole_batch(mix):
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = [mix_images(part, mix) for part in images.split(2)]
    assert torch.equal(torch.cat(parts), mix_images(images, mix))
