"""What one micro-batch of classification costs: uint8 pixels and labels in, loss and accuracy out.

Legend: B = batch, C = classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.vit.transform import normalize_images
from beit.finetune.augment.erasing import erase
from beit.finetune.augment.mixing import draw_mix, mix_images, mix_targets
from beit.finetune.augment.settings import MixConfig


@dataclass(kw_only=True, slots=True)
class ClassificationStep:
    """The objective of one run.

    Args:
        mean: Normalisation of the pixels.
        std: Normalisation of the pixels.
        label_smoothing: Share of the target spread evenly over all classes.
        mix: Mixup and cutmix.
        seed: Of the run, for mixing.
        class_weights: Factor on each class's part of the loss, float (C,); None weighs all alike.
        label_table: For several labels per image: the targets (K, C), float of 0 and 1, of each of the K combinations
            that the labels number; the last row belongs to images without any. None for one label per image.
    """

    mean: Sequence[float]
    std: Sequence[float]
    label_smoothing: float
    mix: MixConfig = MixConfig(prob=0.0)
    seed: int = 0
    class_weights: Tensor | None = None
    label_table: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar) and its accuracy (detached), for the training loop.

        The accuracy is top-1, against the label that has the larger share where images are mixed; with several labels
        per image it is the share of (image, class) pairs on the right side of probability 1/2.

        Args:
            model: An `ImageClassifier`, possibly wrapped.
            batch: images (B, 3, img_size, img_size) uint8, labels (B,) int64 and, where erasing is on, erase_boxes
                (B, 6) int64; on the model's device.
            step: Of the run; with the seed it decides how images are mixed.
        """
        images = normalize_images(batch["images"], self.mean, self.std)
        if "erase_boxes" in batch:
            images = erase(images, batch["erase_boxes"])
        mix = draw_mix(self.mix, seed=self.seed, step=step, img_size=images.shape[-1])
        if mix is not None:
            images = mix_images(images, mix)
        logits = model(images).float()
        if mix is None and self.class_weights is None and self.label_table is None:
            loss = nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
            return loss, {"train_top1": (logits.detach().argmax(1) == batch["labels"]).float().mean()}
        targets = self._targets(batch["labels"], logits.shape[1])
        return self._loss(logits, targets if mix is None else mix_targets(targets, mix))

    def _targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the smoothed targets (B, C) float32."""
        if self.label_table is None:
            hard = nn.functional.one_hot(labels, num_classes).float()
        else:
            self.label_table = self.label_table.to(labels.device)
            hard = self.label_table[labels]
        return hard * (1.0 - self.label_smoothing) + self.label_smoothing / num_classes

    def _loss(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        guesses = logits.detach()
        if self.label_table is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, targets)
            return loss, {"train_accuracy": ((guesses > 0) == (targets > 0.5)).float().mean()}
        parts = -targets * logits.log_softmax(1)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device)
            parts = parts * self.class_weights
        return parts.sum(1).mean(), {"train_top1": (guesses.argmax(1) == targets.argmax(1)).float().mean()}


def class_logits(model: nn.Module, images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the logits (B, C) float32 of images (B, 3, img_size, img_size) uint8."""
    logits: Tensor = model(normalize_images(images, mean, std))
    return logits.float()  # softmax and its logarithm lose too much in bf16


def balanced_weights(class_counts: Sequence[int]) -> Tensor:
    """Weigh classes, (C,) float32, as if all were equally frequent, so that the mean weight over the images is 1.

    Takes the images per class; classes without any get the weight 0.
    """
    counts = torch.tensor(class_counts, dtype=torch.float64)
    weights = counts.sum() / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, 0.0).float()
