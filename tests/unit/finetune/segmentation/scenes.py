"""Small scenes of three classes with masks: sky above, ground below, a box on it."""

import io
import json

import numpy as np
from PIL import Image

from beit.common.config import load_config
from beit.common.storage.samples import Record
from beit.finetune.commands import SEGMENTATION_RECIPES
from beit.finetune.segmentation.config import SegmentationConfig

TINY = (
    "encoder=random",
    "image.img_size=16",
    "image.patch_size=4",
    "model.embed_dim=24",
    "model.depth=4",
    "model.num_heads=2",
    "train.precision=fp32",
    "train.global_batch_size=4",
    "train.log_interval_steps=1",
    "optimizer.lr=4e-3",
    "optimizer.warmup_steps=2",
    "reader.num_workers=0",
    "evaluation.micro_batch_size=7",
)
COLOURS = np.array([(120, 170, 230), (90, 140, 60), (210, 60, 50)])
NAMES = ("sky", "ground", "box")


def config(*overrides, recipe=None):
    return load_config(
        SegmentationConfig, recipe=recipe, overrides=[*TINY, *overrides], recipe_dir=SEGMENTATION_RECIPES
    )


def scene(number, width=40, height=32):
    """Return pixels (H, W, 3) and class ids (H, W), of which a few are ignored."""
    rng = np.random.default_rng(number)
    ids = np.zeros((height, width), np.uint8)
    horizon = rng.integers(height // 3, 2 * height // 3)
    ids[horizon:] = 1
    left, side = rng.integers(0, width - 12), rng.integers(6, 12)
    ids[horizon - side // 2 : horizon + side, left : left + side] = 2
    noise = rng.integers(-25, 25, (height, width, 3))
    pixels = (COLOURS[ids] + noise).clip(0, 255).astype(np.uint8)
    ids[:2] = 255
    return pixels, ids


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_scenes(root, count, *, start=0, **size):
    """Write images/ and annotations/ of so many scenes, with the names of their classes, and return their folder."""
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True)
    for number in range(start, start + count):
        pixels, ids = scene(number, **size)
        (root / "images" / f"{number:03}.png").write_bytes(png(pixels))
        (root / "annotations" / f"{number:03}.png").write_bytes(png(ids))
    (root / "classes.json").write_text(json.dumps(NAMES))
    return root


def record(pixels, ids, *, key="a", epoch=0):
    return Record(key=key, shard="shard", epoch=epoch, view_index=epoch, image_bytes=png(pixels), mask_bytes=png(ids))


class Ids:
    """Reads masks that hold class ids, without asking what they mean."""

    def decode(self, mask_bytes, *, size=None):
        ids = np.asarray(Image.open(io.BytesIO(mask_bytes)))
        assert size is None or ids.shape == size[::-1]
        return ids
