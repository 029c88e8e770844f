"""What one micro-batch of classification costs: uint8 pixels and labels in, loss and accuracy out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from beit.common.normalization import normalize_images


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationStep:
    """The objective of one run.

    Args:
        mean: Normalisation of the pixels.
        std: Normalisation of the pixels.
        label_smoothing: Share of the target spread evenly over all classes.
    """

    mean: Sequence[float]
    std: Sequence[float]
    label_smoothing: float

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar) and its top-1 accuracy (detached), for the training loop.

        Args:
            model: An `ImageClassifier`, possibly wrapped.
            batch: images (B, 3, img_size, img_size) uint8 and labels (B,) int64 in [0, C), on the model's device.
            step: Of the run; not used.
        """
        logits = class_logits(model, batch["images"], mean=self.mean, std=self.std)
        loss = nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(1) == batch["labels"]).float().mean()
        return loss, {"train_top1": accuracy}


def class_logits(model: nn.Module, images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the logits (B, C) float32 of images (B, 3, img_size, img_size) uint8."""
    logits: Tensor = model(normalize_images(images, mean, std))
    return logits.float()  # softmax and its logarithm lose too much in bf16
