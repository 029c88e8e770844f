"""Too few images are said to be few, and somebody in a hurry is told of the small recipe."""

import pytest

from beit.pretrain.advice import FEW_IMAGES, few_images, quicker


def test_few_images_are_said_to_be_few():
    assert few_images(FEW_IMAGES) is None
    assert few_images(120).startswith("120 images are few to pre-train on from scratch")


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
