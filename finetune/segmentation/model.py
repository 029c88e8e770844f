"""Semantic segmentation: the encoder with a head that gives logits for every place of an image.

Here: `Segmenter`. Not here: the heads (`heads.py`, `upernet.py`), how images of any size are segmented by it
(`inference.py`), its file (`artifact.py`), its training.

Legend: B = batch, D = embed_dim, C = classes; h, w = sides of the input in pixels, h', w' = of the logits.
"""

from __future__ import annotations

from typing import Literal, cast, overload

import torch
from torch import Tensor, nn

from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer, grid_features
from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.heads import FpnHead, LinearHead, Neck
from beit.finetune.segmentation.norm import ResolvedNorm
from beit.finetune.segmentation.upernet import AuxiliaryHead, UperHead

HEAD_PREFIXES = ("neck.", "decode_head.", "auxiliary_head.")
"""Parameters that are no encoder's."""


class Segmenter(VisionTransformer):
    """The encoder with a segmentation head.

    Blocks above the last one that the head looks at are kept, untrained and unused, so that the encoder stays whole.

    Args:
        config: Shape; fine-tuning uses one position table per block and no mask token.
        num_classes: C.
        head: Settings with nothing left open; see `resolve_head`.
    """

    def __init__(self, config: ViTConfig, *, num_classes: int, head: HeadConfig) -> None:
        super().__init__(config)
        assert head.blocks is not None, "resolve_head fills them in"
        self.num_classes, self.head_config = num_classes, head
        self.blocks_used = sorted(set(head.blocks))
        width = config.embed_dim
        self.neck = None if head.kind == "linear" else Neck(width, cast(ResolvedNorm, head.norm))
        self.decode_head: nn.Module
        if head.kind == "linear":
            self.decode_head = LinearHead(config, head, num_classes)
        else:
            self.decode_head = (FpnHead if head.kind == "fpn" else UperHead)(width, head, num_classes)
        has_auxiliary = head.kind == "upernet" and head.auxiliary_weight > 0
        self.auxiliary_head = AuxiliaryHead(width, head, num_classes) if has_auxiliary else None
        for block in self.blocks[max(self.blocks_used) + 1 :]:
            block.requires_grad_(False)

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether nothing below the head is trained, so that the encoder needs no gradients."""
        return not any(
            parameter.requires_grad for name, parameter in self.named_parameters() if not name.startswith(HEAD_PREFIXES)
        )

    def block_maps(self, images: Tensor) -> list[Tensor]:
        """Return the residual stream of the patches after each of the head's blocks, (B, D, h / p, w / p)."""
        height, width = (side // self.config.patch_size for side in images.shape[-2:])
        is_own = images.shape[-2:] == (self.config.img_size,) * 2
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_encoder_frozen):
            hidden = self.forward_intermediates(images, self.blocks_used, None if is_own else (height, width))
        found = dict(zip(self.blocks_used, hidden, strict=True))
        return [grid_features(found[block], (height, width)) for block in self.head_config.blocks or ()]

    @overload
    def forward(self, images: Tensor) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, with_auxiliary: Literal[True]) -> tuple[Tensor, Tensor | None]: ...
    def forward(self, images: Tensor, with_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor | None]:
        """Map images to logits.

        Args:
            images: (B, 3, h, w) float, normalised; training has h = w = img_size. Of another size, both multiples of
                the patch size, positions are resized to it.
            with_auxiliary: Whether the auxiliary head's logits are wanted, too.

        Returns:
            Logits (B, C, h', w') on the head's own grid: of patches (linear), or four times as fine (fpn, upernet).
            With `with_auxiliary` a pair of them and the auxiliary head's, on the patch grid; None where there is none.
        """
        levels = self.block_maps(images)
        if self.neck is not None:
            levels = self.neck(levels)
        logits: Tensor = self.decode_head(levels)
        if not with_auxiliary:
            return logits
        return logits, None if self.auxiliary_head is None else self.auxiliary_head(levels)
