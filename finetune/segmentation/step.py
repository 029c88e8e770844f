"""What one micro-batch of segmentation costs: uint8 crops and masks in, loss and accuracy out.

Legend: B = batch, C = classes, S = side of the crop, h, w = grid of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.vit.transform import normalize_images
from beit.finetune.masks.classes import IGNORED


@dataclass(kw_only=True, slots=True)
class SegmentationStep:
    """The objective of one run.

    Args:
        mean: Normalisation of the pixels.
        std: Normalisation of the pixels.
        auxiliary_weight: Of the auxiliary head's loss beside the main one, where the model has such a head.
        class_weights: Factor on each class's part of the loss, float (C,); None weighs all alike.
    """

    mean: Sequence[float]
    std: Sequence[float]
    auxiliary_weight: float = 0.0
    class_weights: Tensor | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch (scalar) and its accuracy (detached), for the training loop.

        The accuracy is the share of the labelled pixels that are right, 0 where none is labelled.

        Args:
            model: A `Segmenter`, possibly wrapped.
            batch: images (B, 3, S, S) uint8, masks (B, S, S) uint8; on the model's device.
        """
        images = normalize_images(batch["images"], self.mean, self.std)
        logits, auxiliary = model(images, with_auxiliary=True)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(logits.device)
        masks = batch["masks"]
        loss, num_right = pixel_loss(logits, masks, self.class_weights)
        num_labelled = (masks != IGNORED).sum()
        metrics = {"train_pixel_accuracy": num_right / num_labelled.clamp(min=1)}
        if auxiliary is not None:
            beside, _ = pixel_loss(auxiliary, masks, self.class_weights)
            loss = loss + self.auxiliary_weight * beside
            metrics["auxiliary_loss"] = beside.detach()
        return loss, metrics


def pixel_loss(logits: Tensor, masks: Tensor, class_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy per pixel of logits that are enlarged to the size of the masks, and the pixels right.

    The sum over the labelled pixels is divided by the number of all pixels, ignored ones included: every labelled pixel
    then counts alike, a step is the same however it is cut into micro-batches and ranks, and crops of which nothing is
    labelled cost 0.

    Args:
        logits: (B, C, h, w), any float dtype; enlarged bilinearly, corners not aligned.
        masks: (B, S, S) uint8, class ids or `IGNORED`.
        class_weights: Factor on each class's part, float (C,).
    Returns:
        Loss, float32 scalar; how many labelled pixels have their class first, int64 scalar.
    Source: mmsegmentation 0.11, `resize` and `CrossEntropyLoss` with `avg_non_ignore` as it was then. Differs: nothing.
    """
    total, num_right = _SummedCrossEntropy.apply(logits.float(), masks, class_weights)  # type: ignore[no-untyped-call]
    return total / masks.numel(), num_right


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient is computed along with the loss, image by image, so that only one is ever there at full size.

    At full size channels come last: on a CPU that halves the time for 150 classes of 512 x 512 pixels.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        gradients = torch.empty_like(logits)
        total = logits.new_zeros(())
        num_right = torch.zeros((), dtype=torch.int64, device=logits.device)
        for number in range(len(logits)):
            one, gradient = slice(number, number + 1), gradients[number : number + 1]
            loss, right = _image_loss(logits[one], masks[one], class_weights, gradient)
            total, num_right = total + loss, num_right + right
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(num_right)
        return total, num_right

    @staticmethod
    def backward(ctx: Any, total: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * total, None, None


def _image_loss(logits: Tensor, masks: Tensor, class_weights: Tensor | None, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return summed loss and count of right pixels of one image, (1, C, h, w) and (1, S, S), and fill its gradient."""
    num_classes, sides = logits.shape[1], masks.shape[-2:]
    small = logits.contiguous(memory_format=torch.channels_last)
    large = nn.functional.interpolate(small, size=sides, mode="bilinear", align_corners=False)
    log_shares = large.permute(0, 2, 3, 1).reshape(-1, num_classes).log_softmax(1)  # (S * S, C)
    del large
    is_labelled = masks.flatten() != IGNORED
    targets = torch.where(is_labelled, masks.flatten().long(), 0)
    weights = is_labelled.float() if class_weights is None else class_weights[targets] * is_labelled
    found = log_shares.gather(1, targets[:, None])[:, 0]
    num_right = ((found >= log_shares.amax(1)) & is_labelled).sum()
    loss = -(found * weights).sum()
    slope = log_shares.exp_()  # the shares; less 1 for the target they are the gradient
    slope.scatter_add_(1, targets[:, None], slope.new_full((len(slope), 1), -1.0))
    slope *= weights[:, None]
    slope = slope.view(1, *sides, num_classes).permute(0, 3, 1, 2)
    backward = torch.ops.aten.upsample_bilinear2d_backward
    gradient.copy_(backward(slope, list(sides), list(logits.shape), False, None, None))
    return loss, num_right
