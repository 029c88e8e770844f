"""A tokenizer whose words were distilled from a teacher: a vision transformer, a short code, the nearest word.

Here: the network. Not here: training, with the teacher and the decoder that only training needs
(`tokenize/distillation/`), the codebook (`quantizer.py`), files and names (`common/tokenizer.py`).

B images of S x S pixels, h = w = S / p words per side, D channels, C numbers per code, V words.

Source: BEiT v2 (Z. Peng et al., "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers", 2022) §2.1,
and the released code for what the paper leaves open. Differs: words can be painted, by their mean patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.common.tokenizers.dvae import scale_pixels
from beit.common.tokenizers.patches import join_patches
from beit.common.tokenizers.quantizer import CosineQuantizer
from beit.common.tokenizers.vqkd_config import VQKDConfig
from beit.common.vit.init import trunc_normal
from beit.common.vit.vit import VisionTransformer


class VQKD(nn.Module):
    """Pixels to words.

    Args:
        config: Shape.
        is_learning: Whether the codebook has what it is moved by; finished tokenizers do not.
    """

    patches: Tensor | None
    """Mean patch of every word, uint8 (V, 3, p, p), where it is known."""

    def __init__(self, config: VQKDConfig, *, is_learning: bool = False) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.downsampling = config.vocab_size, config.patch_size
        self.img_size: int | None = config.img_size
        self.dtype = torch.float32
        self.vit = VisionTransformer(config.vit)
        self.to_code = projection(config.embed_dim, config.code_dim)
        self.quantizer = CosineQuantizer(config.vocab_size, config.code_dim, is_learning=is_learning)
        self.register_buffer("patches", None, persistent=False)

    def extra_repr(self) -> str:
        """Show the settings that decide compatibility."""
        return f"vocab_size={self.vocab_size}, downsampling={self.downsampling}, img_size={self.img_size}"

    def codes(self, images: Tensor) -> Tensor:
        """Map images, uint8 (B, 3, S, S), to codes, float32 (B, h, w, C) of length 1, whatever autocast is in force."""
        patches = self.vit.forward_features(scale_pixels(images))
        with torch.autocast(images.device.type, enabled=False):
            code = self.to_code(patches.float())[:, 1:]  # (B, N, C), without CLS
            grid = self.config.grid_size
            return F.normalize(code, dim=-1).view(-1, grid, grid, self.config.code_dim)

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, S, S) to int64 (B, h, w)."""
        with torch.autocast(pixels.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.quantizer.words(self.codes(pixels))

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map int64 (B, h, w) to uint8 (B, 3, h * p, w * p), by the words' mean patches."""
        assert self.patches is not None, "callers ask `Tokenizer.can_decode` first"
        return join_patches(self.patches[token_ids])

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute the transformer in `dtype`; codes, and comparing them with words, stay float32."""
        self.dtype = dtype


def projection(width: int, out: int) -> nn.Sequential:
    """Return linear, tanh, linear, with the initial values of the released code."""
    layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
    for module in layers:
        if isinstance(module, nn.Linear):
            trunc_normal(module.weight, "finetune")
            nn.init.zeros_(module.bias)
    return layers
