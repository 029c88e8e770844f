"""The planned column of docs/plan.md, beside published figures, is what `beit plan` says today."""

from pathlib import Path

import pytest

import beit
from beit.plan import Question, answer
from beit.tokenize.encoders import encoding_flops

PAGE = (Path(beit.__file__).parent / "docs/plan.md").read_text()
IMAGENET = "1281167"


def stage_of(name, **question):
    return next(stage for stage in answer(Question(images=IMAGENET, **question)).stages if stage.name == name)


def row(beginning):
    return next(line for line in PAGE.splitlines() if line.startswith(f"| {beginning}"))


def test_beit_on_16_v100():
    settings = {"gpu": "V100", "gpus": 8, "machines": 2, "overrides": ("train.precision=fp16",)}
    base = stage_of("pretrain", recipe="beit_base_patch16_224_1k", **settings)
    large = stage_of("pretrain", recipe="beit_large_patch16_224_1k", **settings)
    words = encoding_flops("dall-e", 14)  # in every step, of what `beit tokenize` computes once
    assert words is not None
    days = base.seconds / 86_400
    whole = days * (1 + words / base.numbers["model"]["flops_per_image"])
    said = f"| {days:.1f} days, {whole:.1f} with the words' arithmetic | {whole / 5 - 1:+.0%}"
    assert said.replace("%", " %") in row("BEiT-B")
    assert base.numbers["micro_batch_size"] == 128 and large.numbers["micro_batch_size"] == 64
    assert f"| {base.memory_bytes / 1e9:.0f} GB ({large.memory_bytes / 1e9:.0f} GB) | fits |" in row(
        "the same in micro"
    )


def test_deit_on_8_v100():
    settings = ["train.precision=fp16", "train.epochs=300", "data.num_val_images=50000"]
    tuned = stage_of(
        "finetune",
        gpu="V100",
        gpus=8,
        labels=IMAGENET,
        overrides=[f"finetune.{setting}" for setting in settings],
    )
    hours = tuned.numbers["steps_seconds"] / 3600
    assert f"| {hours:.0f} h | {hours / 53 - 1:+.0%}".replace("%", " %") in row("DeiT-B")


@pytest.mark.parametrize(
    ("recipe", "size", "published", "beginning"),
    [
        ("beit_base_patch16_224_1k", 192, 358.29, "`beit_base_patch16_224` trained"),
        ("beit_small_patch16_224", 384, 1052.92, "`vit_small_patch16_224`"),
    ],
)
def test_training_on_an_rtx_3090(recipe, size, published, beginning):
    tuned = stage_of("finetune", gpu="RTX 3090", labels=IMAGENET, recipe=recipe, overrides=at_once(size))
    rate = tuned.numbers["images_per_second"]
    assert f" {rate:.0f} images/s" in row(beginning)
    assert f"{rate / published - 1:+.0%}".replace("%", " %") in row(beginning)


@pytest.mark.parametrize(
    ("recipe", "fits", "beyond"), [("beit_base_patch16_224_1k", 192, 256), ("beit_small_patch16_224", 384, 512)]
)
def test_what_fits_an_rtx_3090(recipe, fits, beyond):
    found = [
        stage_of("finetune", gpu="RTX 3090", labels=IMAGENET, recipe=recipe, overrides=at_once(size)).memory_bytes
        for size in (fits, beyond)
    ]
    assert found[0] < 24e9 < found[1]
    assert all(f"{needed / 1e9:.1f} GB" in PAGE for needed in found)


def at_once(size):
    return [f"finetune.train.{name}_batch_size={size}" for name in ("micro", "global")]
