"""The logit-Laplace distribution of pixels: what DALL-E's dVAE is trained by.

A Laplace distribution lives on the whole line, pixels in an interval. Put through a sigmoid it lives on (0, 1), so no
probability is spent on colours that do not exist; and a network that also says how uncertain it is may leave sharp
edges, where a squared error is large whatever it does, for places where it can gain. Pixels are mapped to [0.1, 0.9]
first, away from the ends of (0, 1), where the density is infinite.

    f(x | mu, b) = 1 / (2 b x (1 - x)) * exp(-|logit(x) - mu| / b)

B images, K channels, H x W pixels.

Source: A. Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, appendix A.3, eq. 2. Differs: the scale b has a
lower bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from beit.common.dalle import map_pixels, unmap_pixels

MIN_LOG_SCALE = -5.0
"""Of b: half a grey level at middle grey, 0.4/255 of a mapped pixel, is e**-5.07 in logits. Below that a network would
be paid without bound for pixels that it gets exactly right, flat areas above all."""


def negative_log_likelihood(statistics: Tensor, images: Tensor) -> Tensor:
    """Mean over pixels and channels of -log f, in nats.

    Args:
        statistics: Float32 (B, 2K, H, W): locations mu of all channels, then log-scales log b.
        images: Float (B, K, H, W) in [-1, 1].
    Returns:
        Scalar; negative where f is above 1.
    """
    location, log_scale = statistics.chunk(2, dim=1)
    log_scale = log_scale.clamp_min(MIN_LOG_SCALE)
    targets = map_pixels((images + 1.0) / 2.0)
    distance = (torch.logit(targets) - location).abs()
    volume = (targets * (1.0 - targets)).log()
    return (log_scale + math.log(2.0) + volume + distance * torch.exp(-log_scale)).mean()


def most_likely_pixels(statistics: Tensor) -> Tensor:
    """Map statistics, float32 (B, 2K, H, W), to the image at their locations, float32 (B, K, H, W) in [-1, 1]."""
    location, _ = statistics.chunk(2, dim=1)
    return unmap_pixels(torch.sigmoid(location)) * 2.0 - 1.0
