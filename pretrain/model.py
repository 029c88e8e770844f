"""Masked image modelling: the encoder, its head on the predicted positions, and the losses.

Here: `MaskedImageModel` with `mim_loss` for visual tokens, `MaskedPixelModel` with `pixel_loss` for the pixels of
patches. Not here: the encoder (`common/vit/vit.py`), blocks that aggregate its patches (`pretrain/aggregation.py`), how
masks are drawn (`pretrain/masking.py`), the training step (`pretrain/step.py`).

Legend: B = batch, N = patches, K = positions predicted per image, D = embed_dim, V = vocab_size, P = pixel values of a
patch (3 patch_size^2). Masks are True where a patch is masked and do not cover CLS; positions count patches, row-major
from 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.vit.config import ViTConfig
from beit.common.vit.init import trunc_normal
from beit.common.vit.vit import VisionTransformer
from beit.pretrain.aggregation import build_layers, layer_biases, with_cls
from beit.pretrain.config import early_block

IGNORE_INDEX = -100


class MaskedPrediction(NamedTuple):
    """What the model says about the predicted patches of a batch, padded to K per image."""

    logits: Tensor
    """(B, K, V) float, or (B, K, P) for pixels; rows of padding positions mean nothing."""
    positions: Tensor
    """(B, K) int64 in [0, N): the patch each row belongs to, predicted ones first, in ascending order."""
    valid: Tensor
    """(B, K) bool: False where an image has fewer than K patches to predict."""
    aggregated: Tensor | None = None
    """What `logits` is, by the aggregating blocks (`pretrain/aggregation.py`); None without them, and in eval mode."""


class MimLoss(NamedTuple):
    """Loss of a batch, and the counts behind its accuracy; nothing here forces a device synchronisation."""

    loss: Tensor
    """Scalar float32: mean cross-entropy over all predicted patches of the batch."""
    num_correct: Tensor
    """Scalar int64, detached: predicted patches whose token the largest logit names."""
    num_predicted: Tensor
    """Scalar int64, detached: predicted patches."""


class _PatchPredictor(VisionTransformer, ABC):
    """The encoder with a final norm, its own if it has one, and a linear head on K of its patches."""

    def __init__(self, config: ViTConfig, *, num_predicted: int) -> None:
        require(config.use_mask_token, "model.use_mask_token (False) must be True for pre-training")
        require(
            1 <= num_predicted <= config.num_patches,
            f"num_masked ({num_predicted}) must be in [1, num_patches ({config.num_patches})]",
        )
        super().__init__(config)
        self.num_predicted = num_predicted
        self.cls_pt_layers: nn.ModuleList | None = None
        if not config.final_norm:  # else the encoder has one of its own, which features have passed
            self.norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)

    def aggregate(self, num_blocks: int, taken_from: int | None = None) -> None:
        """Add blocks that predict from CLS and the patches of an earlier block; to be called once, before training."""
        self.early_block = early_block(self.config, taken_from)
        self.cls_pt_layers = build_layers(self.config, num_blocks, self.early_block)

    def build_head(self, num_outputs: int) -> nn.Linear:
        """Return a head with the initial values of pre-training."""
        head = nn.Linear(self.config.embed_dim, num_outputs)
        trunc_normal(head.weight, self.config.init)
        nn.init.zeros_(head.bias)
        return head

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Map normalised patches (..., D) to predictions."""

    def forward(  # type: ignore[override]
        self, images: Tensor, bool_masked_pos: Tensor, predicted_pos: Tensor | None = None
    ) -> MaskedPrediction:
        """Predict some patches.

        Args:
            images: (B, 3, img_size, img_size) float, normalised.
            bool_masked_pos: (B, N) bool, True = hidden from the encoder.
            predicted_pos: (B, N) bool, True = predicted; left out, the masked patches are. At most K per image, or the
                surplus is not predicted.

        Returns:
            Predictions with a static shape: K positions per image whatever the masks cover.
        """
        wanted = bool_masked_pos if predicted_pos is None else predicted_pos
        positions, valid = masked_positions(wanted, self.num_predicted)
        if self.cls_pt_layers is not None and self.training:
            return self._predict_twice(images, bool_masked_pos, positions, valid)
        # What nobody predicts from is left out as early as possible: most of the last block, the norm and the head then
        # cost K positions instead of N.
        hidden = self.forward_features(images, bool_masked_pos, positions + 1)  # (B, K, D); + 1 skips CLS
        return MaskedPrediction(self.head(self.normed(hidden)), positions, valid)

    def _predict_twice(self, images: Tensor, mask: Tensor, positions: Tensor, valid: Tensor) -> MaskedPrediction:
        """Predict by the encoder and by the aggregating blocks, which need its CLS, too."""
        assert self.cls_pt_layers is not None
        wanted = nn.functional.pad(positions + 1, (1, 0))  # CLS, then the patches
        hidden = early = self.embed(images, mask)
        biases = self.attention_biases()
        for number, (block, bias) in enumerate(zip(self.blocks, biases, strict=True), start=1):
            hidden = self._run(block, hidden, bias, wanted if number == len(self.blocks) else None)
            early = hidden if number == self.early_block else early
        aggregated = with_cls(hidden, early)  # (B, S, D)
        own = layer_biases(self.cls_pt_layers, biases[0], self.relative_position_index, self.config.grid_size)
        for layer, bias in zip(self.cls_pt_layers, own, strict=True):
            is_last = layer is self.cls_pt_layers[-1]
            aggregated = self._run(layer, aggregated, bias, positions + 1 if is_last else None)
        logits, again = (self.head(self.normed(self.finish(stream))) for stream in (hidden[:, 1:], aggregated))
        return MaskedPrediction(logits, positions, valid, again)

    def normed(self, hidden: Tensor) -> Tensor:
        """Return features (..., D) after the last norm, through which they go once: the encoder's own, or this one."""
        if self.config.final_norm:
            return hidden
        assert self.norm is not None  # this class made it
        return self.norm(hidden)  # type: ignore[no-any-return]


class MaskedImageModel(_PatchPredictor):
    """The encoder with a final norm and a classifier over the visual vocabulary.

    Args:
        config: Shape; must have a mask token.
        vocab_size: Visual tokens the tokenizer knows, V.
        num_masked: K: positions predicted per image, at least what any mask covers; see `masking.max_num_masked`.
    """

    def __init__(self, config: ViTConfig, *, vocab_size: int, num_masked: int) -> None:
        super().__init__(config, num_predicted=num_masked)
        self.vocab_size = vocab_size
        self.lm_head = self.build_head(vocab_size)

    def head(self, hidden: Tensor) -> Tensor:
        """Map normalised patches (..., D) to logits (..., V)."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]


class MaskedPixelModel(_PatchPredictor):
    """The encoder with a final norm and a linear map to the pixels of a patch, the paper's ablation without tokens.

    Shape and K (`num_masked`) are those of `MaskedImageModel`.
    """

    def __init__(self, config: ViTConfig, *, num_masked: int) -> None:
        super().__init__(config, num_predicted=num_masked)
        self.pixel_head = self.build_head(config.in_chans * config.patch_size**2)

    def head(self, hidden: Tensor) -> Tensor:
        """Map normalised patches (..., D) to pixel values (..., P)."""
        return self.pixel_head(hidden)  # type: ignore[no-any-return]


def masked_positions(bool_masked_pos: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """List the masked (or otherwise marked) patches of each image in a static shape.

    Args:
        bool_masked_pos: (B, N) bool.
        num_masked: K <= N.

    Returns:
        Positions (B, K) int64, the masked ones ascending and then unmasked ones as padding, and valid (B, K) bool.
    """
    order = bool_masked_pos.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # masked first
    positions = order[:, :num_masked]
    return positions, bool_masked_pos.gather(1, positions)


def mim_loss(prediction: MaskedPrediction, token_ids: Tensor) -> MimLoss:
    """Compare predictions with the visual tokens.

    The loss is a sum over masked patches divided by their number, so padding changes nothing and an image with fewer
    masked patches weighs less, exactly as when all masked patches of the batch are concatenated.

    Args:
        prediction: Output of `MaskedImageModel`.
        token_ids: (B, N) int64 in [0, V), row-major.

    Returns:
        Loss and counts. A batch without masked patches has loss 0.
    Source: BEiT §2.3, eq. 1; the released code's mean over the batch of a GPU. Differs: here the mean is over a
        micro-batch, and each of a step counts alike.
    """
    logits = prediction.logits.flatten(0, 1)  # (B K, V)
    targets = token_ids.gather(1, prediction.positions).masked_fill(~prediction.valid, IGNORE_INDEX).flatten()
    num_predicted = prediction.valid.sum()
    total = nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    num_correct = (logits.detach().argmax(1) == targets).sum()
    return MimLoss(total / num_predicted.clamp(min=1), num_correct, num_predicted)


def image_costs(prediction: MaskedPrediction, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of every image, summed over its masked patches, in nats, and how many they are, (B,)."""
    targets = token_ids.gather(1, prediction.positions)  # (B, K)
    costs = nn.functional.cross_entropy(prediction.logits.float().transpose(1, 2), targets, reduction="none")
    return torch.where(prediction.valid, costs, 0.0).sum(1), prediction.valid.sum(1)


class PixelLoss(NamedTuple):
    """Squared error of a batch; nothing here forces a device synchronisation."""

    loss: Tensor
    """Scalar float32: mean squared error over all values of all predicted patches of the batch."""
    num_predicted: Tensor
    """Scalar int64, detached: predicted patches."""
    targets: Tensor
    """(B, K, P) float32: what was to be predicted; rows of padding positions mean nothing."""
    valid: Tensor
    """(B, K) bool."""


PATCH_EPS = 1e-6
"""Keeps the deviation of a patch of one colour from being 0; MAE's value."""


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, P), row-major; a patch's values in the order row, column, channel.

    Source: MAE `models_mae.py`. Differs: nothing.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)  # (B, rows, columns, y, x, C)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Put patches (B, N, P) of square images back together, (B, C, H, W); the inverse of `patchify`."""
    batch, num_patches, num_values = patches.shape
    channels = num_values // patch_size**2
    side = round(num_patches**0.5)
    laid_out = patches.reshape(batch, side, side, patch_size, patch_size, channels)
    return laid_out.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch_size, side * patch_size)


def pixel_targets(images: Tensor, patch_size: int, *, normalize_patches: bool) -> Tensor:
    """Return what a patch's pixels are regressed to, (B, N, P) float32.

    Args:
        images: (B, 3, H, W) float, normalised as the model sees them.
        patch_size: Side in pixels.
        normalize_patches: Subtract each patch's mean and divide by its deviation, over all its values.
    """
    patches = patchify(images.float(), patch_size)
    if not normalize_patches:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + PATCH_EPS).sqrt()


def pixel_loss(prediction: MaskedPrediction, targets: Tensor) -> PixelLoss:
    """Compare predicted pixels with the targets, by squared error.

    Args:
        prediction: Output of `MaskedPixelModel`.
        targets: (B, N, P) float32, from `pixel_targets`.

    Returns:
        Loss and counts. A batch without predicted patches has loss 0.
    Source: BEiT §3.3, the ablation without visual tokens; MAE §3 for patches normalised by themselves. Differs: the
        paper gives neither loss nor normalisation.
    """
    wanted = targets.gather(1, prediction.positions[..., None].expand(-1, -1, targets.shape[-1]))  # (B, K, P)
    errors = (prediction.logits.float() - wanted).square().mean(-1)  # (B, K)
    num_predicted = prediction.valid.sum()
    total = torch.where(prediction.valid, errors, 0.0).sum()
    return PixelLoss(total / num_predicted.clamp(min=1), num_predicted, wanted, prediction.valid)
