"""Noisy images whose class is their colour, and settings for a model of a few thousand parameters."""

import io
from pathlib import Path

from PIL import Image

from beit.common.config import load_config
from beit.common.rng import CounterRng
from beit.finetune.commands import RECIPES
from beit.finetune.config import FinetuneConfig

TINY = (
    "encoder=random",
    "image.img_size=16",
    "image.patch_size=4",
    "model.embed_dim=24",
    "model.depth=2",
    "model.num_heads=2",
    "augment.rand_augment=none",  # colours are all that tells the classes apart
    "augment.erase_prob=0",
    "mix.prob=0",
    "train.precision=fp32",
    "train.global_batch_size=12",
    "train.log_interval_steps=1",
    "optimizer.lr=1e-2",
    "optimizer.warmup_steps=2",
    "optimizer.clip_grad=1.0",
    "reader.num_workers=0",
    "evaluation.micro_batch_size=7",
)
COLORS = {"blue": (40, 60, 200), "red": (200, 60, 40), "green": (40, 200, 60)}


def finetune_config(*overrides, recipe=None):
    return load_config(FinetuneConfig, recipe=recipe, overrides=[*TINY, *overrides], recipe_dir=RECIPES)


def noisy_png(name, number, side=20):
    rng = CounterRng("noise", name, number)
    pixels = bytes(
        max(0, min(255, channel + rng.integers(-30, 30))) for _ in range(side * side) for channel in COLORS[name]
    )
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(root: Path, names, count, *, start=0):
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(start, start + count):
            (root / name / f"{number}.png").write_bytes(noisy_png(name, number))
    return root
