"""Words that are centres of k-means: of the pixels of patches, or of a vision transformer's patch features.

Every patch becomes a vector, whose direction is compared with that of every centre; the nearest is its word. A
transformer's features have a common mean that is long against what differs between patches: without subtracting it, all
cosines are nearly equal and a few words take most patches, so vectors are standardised first.

What is painted for a word is the mean of the patches that had it. Of features these are blurs, since words that stand
for what is seen are not meant to be painted.

Here: the network. Not here: finding the centres (`tokenize/clustering/`).

B images, H x W pixels, p = patch_size, h x w = H/p x W/p words, D numbers per vector, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.tokenizers.patches import cut_patches, join_patches
from beit.common.vit.transform import normalize_images
from beit.common.vit.vit import VisionTransformer, grid_features

_PATCH_EPS = 1e-2
"""Added to the variance of a patch of pixels in [0, 1]: noise in flat patches is not blown up to patterns."""


class KMeansTokenizer(nn.Module):
    """Patches to vectors, vectors to the nearest centre."""

    mean: Tensor
    deviation: Tensor
    centres: Tensor
    patches: Tensor | None

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__()
        self.config, self.vocab_size, self.downsampling = config, config.vocab_size, config.patch_size
        self.img_size = None if config.vit is None else config.vit.img_size
        self.dtype = torch.float32
        self.vit = None if config.vit is None else VisionTransformer(config.vit)
        length = config.dim + (config.anchor > 0)
        self.register_buffer("mean", torch.zeros(config.dim))
        self.register_buffer("deviation", torch.ones(config.dim))
        self.register_buffer("centres", torch.zeros(config.vocab_size, length))
        # Not persistent: pictures need them, words do not, so they are in a file and a fingerprint of their own.
        self.register_buffer("patches", None, persistent=False)

    def extra_repr(self) -> str:
        """Show the settings that decide compatibility."""
        return f"vocab_size={self.vocab_size}, patch_size={self.downsampling}, img_size={self.img_size}"

    def describe(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to vectors as they come, float32 (B, h, w, D)."""
        if self.vit is None:
            return cut_patches(pixels, self.downsampling).flatten(3).float() / 255.0
        images = normalize_images(pixels, self.config.pixel_mean, self.config.pixel_std)
        with torch.autocast(pixels.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            hidden = self.vit.forward_features(images)
        return grid_features(hidden).float().permute(0, 2, 3, 1)

    def directions(self, vectors: Tensor) -> Tensor:
        """Map vectors as they come, float32 (..., D), to standardised ones of length 1, (..., D, or D + 1 anchored)."""
        config = self.config
        if config.standardise == "channel":
            vectors = (vectors - self.mean) / self.deviation
        elif config.standardise == "patch":
            variance, mean = torch.var_mean(vectors, dim=-1, keepdim=True, correction=0)
            vectors = (vectors - mean) / (variance + _PATCH_EPS).sqrt()
        if config.anchor > 0:
            vectors = F.pad(vectors, (0, 1), value=config.anchor * config.dim**0.5)
        return F.normalize(vectors, dim=-1)

    def nearest(self, directions: Tensor) -> Tensor:
        """Map directions, float32 (..., D), to the nearest centre, int64 (...)."""
        # Bits of a product depend on the number of rows, so that is the caller's business, as for any tokenizer.
        with torch.autocast(directions.device.type, enabled=False):
            return (directions @ self.centres.t()).argmax(dim=-1)

    def pixels_to_ids(self, pixels: Tensor) -> Tensor:
        """Map uint8 (B, 3, H, W) to the nearest word per patch, int64 (B, h, w) in [0, V)."""
        return self.nearest(self.directions(self.describe(pixels)))

    def ids_to_pixels(self, token_ids: Tensor) -> Tensor:
        """Map words, int64 (B, h, w), to their mean patches side by side, uint8 (B, 3, H, W)."""
        assert self.patches is not None, "callers ask `Tokenizer.can_decode` first"
        return join_patches(self.patches[token_ids])

    def use_dtype(self, dtype: torch.dtype) -> None:
        """Compute features in `dtype`; comparing them with the centres stays float32."""
        self.dtype = dtype
