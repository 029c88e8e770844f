"""Masked image modelling: the encoder, its head on the masked positions, and the loss.

Here: `MaskedImageModel` and `mim_loss`. Not here: the encoder (`common/vit.py`), how masks are drawn
(`pretrain/masking.py`), the training step (`pretrain/step.py`).

Legend: B = batch, N = patches, K = positions predicted per image, D = embed_dim, V = vocab_size. Masks are True where a
patch is masked and do not cover CLS; positions count patches, row-major from 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.vit import LAYER_NORM_EPS, VisionTransformer
from beit.common.vit_config import ViTConfig
from beit.common.vit_init import trunc_normal

IGNORE_INDEX = -100


class MaskedPrediction(NamedTuple):
    """What the model says about the masked patches of a batch, padded to K per image."""

    logits: Tensor
    """(B, K, V) float; rows of padding positions mean nothing."""
    positions: Tensor
    """(B, K) int64 in [0, N): the patch each row belongs to, masked ones first, in ascending order."""
    valid: Tensor
    """(B, K) bool: False where an image has fewer than K masked patches."""


class MimLoss(NamedTuple):
    """Loss of a batch, and the counts behind its accuracy; nothing here forces a device synchronisation."""

    loss: Tensor
    """Scalar float32: mean cross-entropy over all masked patches of the batch."""
    num_correct: Tensor
    """Scalar int64, detached: masked patches whose token the largest logit names."""
    num_predicted: Tensor
    """Scalar int64, detached: masked patches."""


class MaskedImageModel(VisionTransformer):
    """The encoder with a final norm and a classifier over the visual vocabulary.

    Args:
        config: Shape; must have a mask token.
        vocab_size: Visual tokens the tokenizer knows, V.
        num_masked: K: positions predicted per image, at least what any mask covers; see `masking.max_num_masked`.

    Raises:
        InputError: config has no mask token, or num_masked is outside [1, N].
    """

    def __init__(self, config: ViTConfig, *, vocab_size: int, num_masked: int) -> None:
        require(config.use_mask_token, "model.use_mask_token (False) must be True for pre-training")
        require(
            1 <= num_masked <= config.num_patches,
            f"num_masked ({num_masked}) must be in [1, num_patches ({config.num_patches})]",
        )
        super().__init__(config)
        self.vocab_size = vocab_size
        self.num_masked = num_masked
        self.norm = nn.LayerNorm(config.embed_dim, eps=LAYER_NORM_EPS)
        self.lm_head = nn.Linear(config.embed_dim, vocab_size)
        trunc_normal(self.lm_head.weight, config.init)
        nn.init.zeros_(self.lm_head.bias)

    def forward(self, images: Tensor, bool_masked_pos: Tensor) -> MaskedPrediction:  # type: ignore[override]
        """Predict the visual tokens of the masked patches.

        Args:
            images: (B, 3, img_size, img_size) float, normalised.
            bool_masked_pos: (B, N) bool; at most K True per image, or the surplus is not predicted.

        Returns:
            Logits with a static shape: K positions per image whatever the masks cover.
        """
        hidden = self.forward_features(images, bool_masked_pos)  # (B, 1+N, D)
        positions, valid = masked_positions(bool_masked_pos, self.num_masked)
        # Gather first: norm and head then cost K positions instead of N.
        index = (positions + 1)[..., None].expand(-1, -1, hidden.shape[-1])  # + 1 skips CLS
        return MaskedPrediction(self.lm_head(self.norm(hidden.gather(1, index))), positions, valid)

    def predict_all(self, images: Tensor, bool_masked_pos: Tensor) -> Tensor:
        """Return logits (B, N, V) for every patch, masked or not; for pictures and evaluation."""
        hidden = self.forward_features(images, bool_masked_pos)
        return self.lm_head(self.norm(hidden[:, 1:]))  # type: ignore[no-any-return]


def masked_positions(bool_masked_pos: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """List the masked patches of each image in a static shape.

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
    Source: BEiT §2.3, eq. 1; the released code's mean over the batch. Differs: nothing.
    """
    logits = prediction.logits.flatten(0, 1)  # (B K, V)
    targets = token_ids.gather(1, prediction.positions).masked_fill(~prediction.valid, IGNORE_INDEX).flatten()
    num_predicted = prediction.valid.sum()
    total = nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    num_correct = (logits.detach().argmax(1) == targets).sum()
    return MimLoss(total / num_predicted.clamp(min=1), num_correct, num_predicted)
