"""Random erasing: published areas and shapes, and noise that depends on its key only."""

import numpy as np
import pytest
import torch

from beit.common.rng import CounterRng
from beit.finetune.augment.augment import draw_erase_box
from beit.finetune.augment.erasing import erase, keyed_normal

SIDE = 224


def boxes(count, probability=1.0):
    return np.stack([draw_erase_box(CounterRng("box", number), SIDE, probability) for number in range(count)])


def test_boxes_have_the_published_areas_and_shapes_and_lie_inside():
    top, left, height, width = boxes(2000)[:, :4].T
    share = height * width / SIDE**2
    assert 0.019 < share.min() < 0.03
    assert 0.31 < share.max() < 0.335
    assert share.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    aspect = np.log(height / width)
    assert abs(aspect).max() < np.log(1 / 0.3) + 0.05
    assert aspect.mean() == pytest.approx(0, abs=0.05)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= SIDE).all()
    assert (left + width <= SIDE).all()


def test_a_quarter_of_the_images_is_erased():
    assert (boxes(2000, 0.25)[:, 2] > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert not boxes(50, 0.0).any()


def test_only_the_box_is_replaced():
    images = torch.full((2, 3, 8, 8), 7.0)
    erased = erase(images, torch.tensor([[1, 2, 3, 4, 11, 12], [0, 0, 0, 0, 0, 0]]))
    is_noise = (erased != 7.0).any(1)
    assert is_noise[0, 1:4, 2:6].all()
    assert is_noise.sum() == 12
    assert (images == 7.0).all()


def test_noise_is_standard_normal_and_its_places_are_independent():
    values = keyed_normal(torch.tensor([[1, 2], [1, 3], [4, 2]]), torch.Size((3, 64, 64)))
    assert values.mean().abs() < 0.02
    assert values.std() == pytest.approx(1.0, abs=0.02)
    assert values.abs().max() < 6
    flat = values.flatten(1)
    assert torch.corrcoef(flat).triu(1).abs().max() < 0.04
    assert torch.corrcoef(torch.stack([flat[0, :-1], flat[0, 1:]]))[0, 1].abs() < 0.04


def test_noise_depends_on_the_key_only():
    keys = torch.tensor([[5, 6], [7, 8], [2**32 - 1, 0]])
    shape = torch.Size((3, 4, 4))
    together = keyed_normal(keys, shape)
    for row, key in enumerate(keys):
        assert torch.equal(keyed_normal(key[None], shape)[0], together[row])
