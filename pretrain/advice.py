"""What a pre-training is told before it begins: a store that it cannot use or is not made for, too short a run."""

from __future__ import annotations

from pathlib import Path

from beit.common.config import load_config
from beit.common.errors import InputError, require
from beit.common.forecast.words import in_words
from beit.common.vit.config import build_vit_config
from beit.common.vit.flops import training_flops
from beit.pretrain.config import PretrainConfig
from beit.pretrain.masking import max_num_masked

RECIPES = Path(__file__).parent / "recipes"
FEW_CROPS = 10_000
"""Fewer, counting each as often as it is seen, are said to be few. Between 6400, after which small networks were not
surely better than random weights, and 16 000, after which they were, with 150 images as with 32 000 (docs/results.md);
the line itself has not been measured."""
_QUICK_RECIPE = "beit_tiny_patch8_64"
_SLOWER = 2.0
"""Factor on the time of a small network: its matrices fill a processor less well; arbitrary, on the safe side."""


def check_views(config: PretrainConfig, views: int, store: str) -> None:
    """Refuse a store whose tokens are missing, or of no use."""
    online = config.tokenizer.online
    if views == 0 and online is None and config.objective.needs_tokens:
        raise InputError(
            f"{store} holds no tokens (views = 0); tokenize it with --views 1 or more, or compute them while training "
            "with --set tokenizer.online=NAME"
        )
    require(
        views == 0 or online is None,
        f"tokenizer.online ({online}) draws its own crops, and {store} holds {views} views with tokens; leave it out, "
        "or make a store with --views 0",
    )


def another_size(*, config: PretrainConfig, sides: tuple[int, int]) -> str | None:
    """Return a warning where the settings are made for other views or patches, in pixels, than the store's."""
    made_for = config.data.made_for
    if made_for is None or made_for == sides:
        return None
    of_model = "the size of the model, learning" if config.init is None else "learning"
    return (
        f"these settings are made for views of {made_for[0]} px in patches of {made_for[1]} px, this store has "
        f"{sides[0]} px in {sides[1]} px: {of_model} rate and length may not fit (data.made_for)"
    )


def little_training(num_images: int, *, total_steps: int, batch: int) -> str | None:
    """Return a warning where a run is too short to teach an encoder much; None where it may."""
    crops = total_steps * batch
    if crops >= FEW_CROPS:
        return None
    steps, epochs = -(-FEW_CROPS // batch), -(-FEW_CROPS // num_images)
    return (
        f"{total_steps} steps see {crops} crops of {num_images} images in all, which is little to pre-train on from "
        f"scratch: expect hardly more than from random weights. Train longer (--set train.epochs={epochs}, or "
        f"train.steps={steps}), add images, which need no labels, or begin with a published encoder "
        "(beit import, then --init)"
    )


def quicker(
    geometry: tuple[int, int], *, flops_per_image: int, flops_per_second: float, num_images: int, vocab_size: int
) -> str | None:
    """Return the recipe for a laptop with about its time; None where the run's network is as small already.

    Args:
        geometry: Sides of view and patch in the run's store.
        flops_per_image: Multiplications and additions of one image in the run.
        flops_per_second: How many of them are done in a second.
        num_images: To train on.
        vocab_size: Of the visual tokens.
    """
    small = load_config(PretrainConfig, recipe=_QUICK_RECIPE, overrides=[], recipe_dir=RECIPES)
    assert small.data.made_for is not None
    view, patch = small.data.made_for
    shape = build_vit_config(small.model, img_size=view, patch_size=patch)
    rows = max_num_masked(small.mask, shape.grid_size)
    flops = training_flops(shape, head_rows=rows, head_outputs=vocab_size, last_rows=rows)
    if flops_per_image <= 2 * flops:
        return None
    seconds = _SLOWER * small.train.epochs * num_images * flops / flops_per_second
    where = "" if geometry == (view, patch) else f" on a store made with --img-size {view} --patch-size {patch}"
    return f"with --recipe {_QUICK_RECIPE}{where} about {in_words(seconds)}"
