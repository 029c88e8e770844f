"""Too short a run is said to teach little, and somebody in a hurry is told of the small recipe."""

import pytest

from beit.pretrain.advice import FEW_CROPS, little_training, quicker


def test_a_run_that_sees_little_is_told_so_with_what_would_be_enough():
    line = little_training(120, total_steps=187, batch=8)
    assert line.startswith("187 steps see 1496 crops of 120 images in all, which is little")
    assert "--set train.epochs=84, or train.steps=1250" in line and 84 * 120 >= FEW_CROPS and 1250 * 8 == FEW_CROPS
    assert little_training(120, total_steps=1250, batch=8) is None


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        ((64, 8), "with --recipe beit_tiny_patch8_64 about "),
        ((224, 16), "with --recipe beit_tiny_patch8_64 on a store made with --img-size 64 --patch-size 8 about "),
    ],
)
def test_the_small_recipe_is_named_with_what_it_takes_of_the_store(geometry, words):
    facts = {"num_images": 1000, "vocab_size": 512, "flops_per_second": 1e11}
    line = quicker(geometry, flops_per_image=10**12, **facts)
    assert line.startswith(words) and line.endswith(" min")
    assert quicker(geometry, flops_per_image=10**9, **facts) is None
