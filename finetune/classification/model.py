"""Image classification: the encoder with a pooled, normalised representation and a linear head.

Here: `ImageClassifier`. Not here: the encoder (`common/vit/vit.py`), loading pre-trained weights (`common/encoder.py`),
the training step (`finetune/classification/step.py`).

Legend: B = batch, N = patches, D = embed_dim, C = classes. CLS is position 0 of the sequence.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from beit.common.errors import require
from beit.common.vit.config import ViTConfig
from beit.common.vit.features import FeaturePooling, pool_features
from beit.common.vit.init import init_head
from beit.common.vit.vit import VisionTransformer

POOLINGS: tuple[FeaturePooling, ...] = get_args(FeaturePooling)
FRESH_PREFIXES = ("fc_norm.", "norm.", "head.")
"""Parameters that start anew where an encoder has nothing under their name, for `beit.common.encoder.load_weights`."""


class ImageClassifier(VisionTransformer):
    """The encoder with a classification head.

    Args:
        config: Shape; fine-tuning uses one position table per block and no mask token.
        num_classes: C; 0 leaves the head out, and the model returns the pooled representation.
        pooling: "mean" averages the patches and then normalises; "cls" normalises and takes CLS; "cls_mean" puts CLS
            and the mean of the patches side by side and normalises neither, as linear probes do.
        head_init_scale: Factor on the head's initial weights.
    """

    def __init__(
        self, config: ViTConfig, *, num_classes: int, pooling: FeaturePooling = "mean", head_init_scale: float = 0.001
    ) -> None:
        require(num_classes >= 0, f"num_classes ({num_classes}) must not be negative")
        require(pooling in POOLINGS, f"classifier.pooling ({pooling!r}) must be one of {', '.join(POOLINGS)}")
        super().__init__(config)
        self.num_classes, self.pooling = num_classes, pooling
        require(
            not (config.final_norm and pooling == "mean"),
            "a classifier on the mean of the patches has its own norm, so architecture.final_norm must be false",
        )
        norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        # The two places of the norm have two names in the released checkpoints.
        self.fc_norm = norm if pooling == "mean" else None
        if not config.final_norm:  # else it is the encoder's, and done
            self.norm = norm if pooling == "cls" else None
        width = config.embed_dim * (2 if pooling == "cls_mean" else 1)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        if isinstance(self.head, nn.Linear):
            init_head(self.head, head_init_scale)

    def pool(self, hidden: Tensor) -> Tensor:
        """Reduce the sequence (B, 1 + N, D) to one vector per image, (B, D), or (B, 2 D) for "cls_mean"."""
        if self.pooling == "cls_mean":
            return pool_features(hidden, "cls_mean").to(hidden.dtype)
        if self.fc_norm is not None:
            return self.fc_norm(hidden[:, 1:].mean(1))  # type: ignore[no-any-return]
        first = hidden[:, 0]
        return first if self.config.final_norm or self.norm is None else self.norm(first)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images to logits (B, C), or to the pooled representation without a head."""
        return self.head(self.pool(self.forward_features(images)))  # type: ignore[no-any-return]
