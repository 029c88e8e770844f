"""Evaluations of segmenters without a model: masks drawn at random, and predictions that are wrong here and there."""

from __future__ import annotations

import numpy as np

from beit.finetune.evaluation.confusion import MaskLog
from beit.finetune.evaluation.segmentation_report import build_mask_report
from beit.finetune.masks.classes import IGNORED, MaskClasses, voc_colours
from beit.finetune.segmentation.config import InferenceConfig


class Alone:
    """A world of one rank."""

    def gather(self, value):
        return [value]


def scene(number, num_classes, *, side=24):
    """An image (H, W, 3), its mask with a corner that is ignored, and a prediction; blocks of classes 0 to C - 2."""
    rng = np.random.default_rng(number)
    truth = np.kron(rng.integers(0, max(1, num_classes - 1), (4, 6)), np.ones((side // 4, side // 4))).astype(np.uint8)
    said = np.where(rng.random(truth.shape) < 0.02 * number, num_classes - 1, truth).astype(np.uint8)
    truth[:3, :3] = IGNORED
    return rng.integers(0, 256, (*truth.shape, 3), np.uint8), truth, said


def mask_report(num_images=20, names=("sky", "road", "tree"), *, blank=(), model="runs/streets/model", **changes):
    """A report of so many images, those at `blank` wholly ignored, and what shows them again."""
    scenes = [scene(number, len(names)) for number in range(num_images)]
    for number in blank:
        scenes[number][1][:] = IGNORED
    log = MaskLog(len(names))
    for position, (_, truth, said) in enumerate(scenes):
        log.add(position, truth, said)
    report = build_mask_report(
        log.collect(Alone()),
        names=[f"/mnt/disk/val/images/{number}.jpg" for number in range(num_images)],
        classes=MaskClasses(names=tuple(names), colours=voc_colours(len(names))),
        inference=InferenceConfig(**changes),
        crop_px=192,
        model=model,
        data="/mnt/disk/val",
    )
    return report, scenes.__getitem__
