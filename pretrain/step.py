"""What one micro-batch of masked image modelling costs: uint8 pixels and masks in, loss and accuracy out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from beit.common.normalization import normalize_images
from beit.pretrain.model import MimLoss, mim_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class MimStep:
    """The objective of one run.

    Args:
        mean: Normalisation of the pixels.
        std: Normalisation of the pixels.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> MimLoss:
        """Predict the tokens of the masked patches and compare.

        Args:
            model: A `MaskedImageModel`, possibly wrapped.
            batch: images (B, 3, img_size, img_size) uint8, bool_masked_pos (B, N) bool (True = masked), token_ids
                (B, N) int64; all on the model's device.
        """
        images = normalize_images(batch["images"], self.mean, self.std)
        return mim_loss(model(images, batch["bool_masked_pos"]), batch["token_ids"])

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar) and its masked-token accuracy (detached), for the training loop."""
        result = self.forward(model, batch)
        return result.loss, {"mim_acc": result.num_correct / result.num_predicted.clamp(min=1)}
