"""What one micro-batch of masked image modelling costs: uint8 pixels and masks in, loss and metrics out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.tokenizer import Tokenizer
from beit.common.vit.transform import normalize_images
from beit.pretrain.model import MaskedPrediction, MimLoss, PixelLoss, mim_loss, pixel_loss, pixel_targets


@dataclass(frozen=True, kw_only=True, slots=True)
class MimStep:
    """Visual tokens as the objective, predicted from pixels normalised by mean and std."""

    mean: Sequence[float]
    std: Sequence[float]
    predict_all: bool = False
    """Whether to predict the tokens of all patches, not only of the masked ones."""
    tokenizer: Tokenizer | None = None
    """What makes tokens of a batch's `token_views`; None where the batch has its tokens."""

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> MimLoss:
        """Predict tokens and compare; the arguments are those of `predict`."""
        return mim_loss(self.predict(model, batch), self.token_ids(batch))

    def predict(self, model: nn.Module, batch: Mapping[str, Any]) -> MaskedPrediction:
        """Predict tokens.

        Args:
            model: A `MaskedImageModel`, possibly wrapped.
            batch: images (B, C, img_size, img_size) uint8, bool_masked_pos (B, N) bool (True = masked), and token_ids
                (B, N) int64 or token_views (B, C, s, s) uint8; all on the model's device.
        """
        images, mask = normalize_images(batch["images"], self.mean, self.std), batch["bool_masked_pos"]
        predicted = torch.ones_like(mask) if self.predict_all else mask
        prediction: MaskedPrediction = model(images, mask, predicted)
        return prediction

    def token_ids(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the tokens of a batch, (B, N) int64 on its device: its own, or computed from its `token_views`."""
        if self.tokenizer is None:
            ids: Tensor = batch["token_ids"]
            return ids
        views = batch["token_views"]
        # The tokenizer has a number format of its own, whatever the step's is.
        with torch.autocast(views.device.type, enabled=False):
            return self.tokenizer.encode(views).flatten(1).clone()  # out of inference mode, which gradients refuse

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar) and, detached, in bits, and its accuracy, for the training loop."""
        prediction, token_ids = self.predict(model, batch), self.token_ids(batch)
        result = mim_loss(prediction, token_ids)
        metrics = {"bits": _bits(result), "mim_acc": result.num_correct / result.num_predicted.clamp(min=1)}
        if prediction.aggregated is None:
            return result.loss, metrics
        again = mim_loss(prediction._replace(logits=prediction.aggregated), token_ids)
        return result.loss + again.loss, metrics | {"aggregated_bits": _bits(again)}


def _bits(result: MimLoss) -> Tensor:
    return result.loss.detach() / math.log(2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelStep:
    """The pixels of masked patches as the objective, normalised by mean and std."""

    mean: Sequence[float]
    std: Sequence[float]
    patch_size: int
    """Side of a patch in pixels."""
    normalize_patches: bool
    """Standardise each patch by itself; see `pixel_targets`."""

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> PixelLoss:
        """Predict the masked patches and compare.

        Args:
            model: A `MaskedPixelModel`, possibly wrapped.
            batch: images (B, C, img_size, img_size) uint8, bool_masked_pos (B, N) bool; on the model's device.
        """
        return self.compare(model, batch)[1]

    def compare(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[MaskedPrediction, PixelLoss]:
        """Predict the masked patches and compare, as `forward`; returns the prediction as well."""
        images = normalize_images(batch["images"], self.mean, self.std)
        targets = pixel_targets(images, self.patch_size, normalize_patches=self.normalize_patches)
        prediction: MaskedPrediction = model(images, batch["bool_masked_pos"])
        return prediction, pixel_loss(prediction, targets)

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar), for the training loop, and its parts where there are several."""
        prediction, result = self.compare(model, batch)
        if prediction.aggregated is None:
            return result.loss, {}
        images = normalize_images(batch["images"], self.mean, self.std)
        targets = pixel_targets(images, self.patch_size, normalize_patches=self.normalize_patches)
        again = pixel_loss(prediction._replace(logits=prediction.aggregated), targets).loss
        return result.loss + again, {"mse": result.loss.detach(), "aggregated_mse": again.detach()}
