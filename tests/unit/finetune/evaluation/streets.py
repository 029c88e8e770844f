"""Small streets with masks, of several sizes, and segmenters of a few thousand parameters that find some of them."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

from beit.common.config import config_to_toml
from beit.common.encoder import save_model
from beit.common.vit.config import Normalization, ViTConfig
from beit.finetune.masks.classes import IGNORED, MaskClasses, voc_colours
from beit.finetune.segmentation.artifact import SegmentationInfo, describe
from beit.finetune.segmentation.config import HeadConfig, InferenceConfig, SegmentationConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter

NAMES = ("sky", "house", "road")
COLOURS = ((120, 170, 240), (170, 60, 40), (90, 90, 90))
SIZES = ((40, 30), (32, 32), (24, 50), (70, 20), (16, 9))


def street(number, size):
    """An image (h, w, 3) of three bands and its mask, a corner of which is ignored."""
    width, height = size
    rng = np.random.default_rng(number)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 :, : width // 2] = 1
    mask[2 * height // 3 :] = 2
    pixels = np.array(COLOURS)[mask] + rng.integers(-25, 26, (height, width, 3))
    mask[:3, :3] = IGNORED
    return pixels.clip(0, 255).astype(np.uint8), mask


def write_streets(folder, count, *, names=NAMES, start=0):
    """Write images/ and annotations/, and beside them what ids mean."""
    for kind in ("images", "annotations"):
        (folder / kind).mkdir(parents=True)
    for number in range(start, start + count):
        pixels, mask = street(number, SIZES[number % len(SIZES)])
        Image.fromarray(pixels).save(folder / f"images/{number:03}.png")
        Image.fromarray(mask).save(folder / f"annotations/{number:03}.png")
    for place in (folder, folder.parent):
        (place / "classes.json").write_text(json.dumps(list(names)))
    return folder


def write_segmenter(run, *, names=NAMES, seed=0, inference=None):
    """Write what training leaves: a model that tells colours apart as well as random weights do."""
    shape = ViTConfig(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, pos_bias="per_block", init="finetune"
    )
    head = resolve_head(HeadConfig(), shape)
    torch.manual_seed(seed)
    model = Segmenter(shape, num_classes=len(names), head=head)
    for weight in model.decode_head.parameters():
        torch.nn.init.normal_(weight)
    classes = MaskClasses(names=tuple(names), colours=voc_colours(len(names)))
    info = SegmentationInfo(head=head, classes=classes, inference=inference or InferenceConfig(stride=8))
    origin = {"step": 5, "total_steps": 5, "metrics": {"miou": 0.25, "num_images": 3}, "encoder": "random"}
    description = describe(shape, Normalization((0.5,) * 3, (0.5,) * 3), info, provenance=origin)
    for name in ("model", "last"):
        save_model(run / name, model.state_dict(), description)
    (run / "config.toml").write_text(config_to_toml(SegmentationConfig(encoder=run.name, evaluation=info.inference)))
    (run / "metrics.jsonl").write_text("")
    return run
