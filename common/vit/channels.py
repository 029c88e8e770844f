"""Colour and grey meet here: the channels that pixels have, those that a model sees, and kernels of three made one.

A model sees one channel (grey) or three (RGB), and so do images, as `source.channels` of their source or store says.
Where the two differ there is one way to fit them: grey pixels stand in all three channels, and colours become their
luma. Everything that feeds a model passes `fit_channels`, so that no shape ever decides it. Which bands of a file are
read is `common/images/`.

B = batch, C = channels, D = embed_dim, p = patch_size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from beit.common.images.decoding import GREY, RGB
from beit.common.vit.config import Normalization, for_channels

_LUMA_WEIGHTS = (19595, 38470, 7471)
"""Of red, green and blue in units of 1/2**16."""


def luma(pixels: Tensor) -> Tensor:
    """Map uint8 RGB (B, 3, H, W) to uint8 (B, 1, H, W) exactly as Pillow's mode "L" does (ITU-R 601)."""
    weights = torch.tensor(_LUMA_WEIGHTS, dtype=torch.int32, device=pixels.device).view(1, RGB, 1, 1)
    return ((pixels.int() * weights).sum(dim=1, keepdim=True) + (1 << 15) >> 16).to(torch.uint8)


def fit_channels(pixels: Tensor, channels: int) -> Tensor:
    """Give pixels the channels of a model: what is grey thrice, or the luma of what has colours.

    Args:
        pixels: uint8 (B, C, H, W), C 1 or 3.
        channels: 1 or 3.
    Returns:
        uint8 (B, channels, H, W): the same tensor where nothing is to be done, a view of it where grey is repeated.
    Raises:
        ValueError: either has another number of channels.
    """
    found = pixels.shape[1]
    if found == channels:
        return pixels
    if (found, channels) == (GREY, RGB):
        return pixels.expand(-1, RGB, -1, -1)
    if (found, channels) == (RGB, GREY):
        return luma(pixels)
    raise ValueError(f"pixels of {found} channels cannot become {channels}; both must be 1 (grey) or 3 (RGB)")


def describe_fit(images: int, model: int, *, what: str = "the model") -> str | None:
    """Say in a line how images and a model of other channels go together; None where they have the same."""
    if images == model:
        return None
    if model == RGB:
        return f"the images are grey (one channel), and {what} sees three: grey stands in all of them"
    return f"the images are RGB, and {what} sees one channel: their luma (ITU-R 601); source.channels=grey reads less"


def grey_projection(weight: Tensor, bias: Tensor, pixels: Normalization) -> tuple[Tensor, Tensor, Normalization]:
    """Make the patch convolution of an RGB model one for grey images, without changing what it says of them.

    A grey image in three channels is g in each, and the convolution has no border, so that

        sum_c W_c (g - m_c) / s_c + b  =  W' (g - m) / s + b'
        with  W' = s sum_c W_c / s_c   and   b' = b + sum over the patch of sum_c W_c (m - m_c) / s_c

    for any m and s: kernels are summed over the channels in units of their deviations, and the bias takes up the
    distance of the means. Where the three channels are normalised alike, W' is the plain sum and b' is b.

    Args:
        weight: W, float (D, 3, p, p).
        bias: b, float (D,).
        pixels: Normalisation m_c, s_c of the RGB model.
    Returns:
        W' (D, 1, p, p), b' (D,), in the types of weight and bias, and the normalisation m, s of one channel, see
        `for_channels`.
    """
    grey = for_channels(pixels, GREY)
    (mean,), (std,) = grey.mean, grey.std
    means, stds = (torch.tensor(values, dtype=torch.float64, device=weight.device) for values in pixels)
    in_deviations = weight.double() / stds.view(1, -1, 1, 1)
    shift = (in_deviations.sum(dim=(2, 3)) * (mean - means)).sum(dim=1)
    summed = (in_deviations * std).sum(dim=1, keepdim=True)
    return summed.to(weight.dtype), (bias.double() + shift).to(bias.dtype), grey
