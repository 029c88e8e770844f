"""What is trained when words are distilled: the tokenizer, and a decoder from words back to the teacher's features.

The decoder is a transformer over the grid of words; it is thrown away in the end. Source: the released BEiT v2 code.
Differs: nothing.

B images of S x S pixels, g x g words each, C numbers per code, D features of the teacher.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beit.common.tokenizers.quantizer import Quantized
from beit.common.tokenizers.vqkd import VQKD, projection
from beit.common.tokenizers.vqkd_config import VQKDConfig
from beit.common.vit.vit import VisionTransformer, grid_features


class Distilled(NamedTuple):
    """What a forward pass gives."""

    features: Tensor
    """Of the teacher as the words tell them, float32 (B, D, g, g)."""
    codes: Tensor
    """float32 (B, g, g, C) of length 1."""
    quantized: Quantized
    """Words of the codes."""


class DistillationModel(nn.Module):
    """Images to words, and words to features.

    Args:
        config: Shape of the tokenizer.
        decoder_depth: Blocks of the decoder.
        teacher_dim: D.
    """

    feature_mean: Tensor
    feature_deviation: Tensor

    def __init__(self, config: VQKDConfig, *, decoder_depth: int, teacher_dim: int) -> None:
        super().__init__()
        self.vqkd = VQKD(config, is_learning=True)
        shape = config.transformer(config.grid_size, 1, in_chans=config.code_dim, depth=decoder_depth)
        self.decoder = VisionTransformer(shape)
        self.to_features = projection(config.embed_dim, teacher_dim)
        self.register_buffer("feature_mean", torch.zeros(teacher_dim))
        self.register_buffer("feature_deviation", torch.ones(teacher_dim))

    def forward(self, images: Tensor) -> Distilled:
        """Tokenise images, uint8 (B, 3, S, S), and say what the words tell of the teacher's features."""
        codes = self.vqkd.codes(images)
        quantized = self.vqkd.quantizer(codes)
        hidden = self.decoder.forward_features(quantized.vectors.permute(0, 3, 1, 2))  # (B, 1 + g * g, width)
        return Distilled(grid_features(self.to_features(hidden)).float(), codes, quantized)

    @torch.no_grad()
    def measure(self, features: Tensor) -> None:
        """Have `standardised` subtract the mean of these features, (B, D, g, g), and divide by their deviation."""
        values = features.transpose(0, 1).flatten(1).double()
        deviation, mean = torch.std_mean(values, dim=1)
        # A channel that hardly ever changes must not become noise as loud as all others.
        floor = 1e-3 * deviation.mean() + 1e-12
        self.feature_mean.copy_(mean)
        self.feature_deviation.copy_(deviation.clamp_min(floor))

    def standardised(self, features: Tensor) -> Tensor:
        """Return the teacher's features, float32 (B, D, g, g), as they are compared; as they are before `measure`."""
        return (features - self.feature_mean[:, None, None]) / self.feature_deviation[:, None, None]


def teacher_cosine(features: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cosine of features and the teacher's, both (B, D, g, g); a float32 scalar."""
    with torch.autocast(features.device.type, enabled=False):
        return F.cosine_similarity(features.float(), targets.float(), dim=1).mean()
