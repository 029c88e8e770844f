"""How close two pictures are: PSNR, SSIM, and the trivial code that any tokenizer should beat.

B images, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SSIM_WINDOW_PX = 11
"""Side of the window, and so the smallest picture that has an SSIM; Wang et al."""
_SSIM_SIGMA_PX = 1.5
_C1, _C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2  # K1, K2 and the range L of Wang et al.
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def block_means(images: Tensor, block: int) -> Tensor:
    """Replace every block x block square of uint8 images (B, 3, H, W) by its mean colour."""
    means = F.avg_pool2d(images.float(), block)
    return F.interpolate(means, scale_factor=block, mode="nearest").round().to(torch.uint8)


def image_psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each uint8 image (B, 3, H, W) in dB, (B,) float32; 100 for equal ones."""
    mse = (images.float() - reference.float()).square().mean(dim=(1, 2, 3)) / 255.0**2
    return -10.0 * torch.log10(mse.clamp_min(1e-10))


def image_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of the luma of each image with its reference.

    Args:
        images: uint8 (B, 3, H, W), both sides at least `SSIM_WINDOW_PX`.
        reference: Same shape.
    Returns:
        (B,) float64 in [-1, 1], 1 for equal luma: the mean over all windows that lie inside the picture.
    Raises:
        ValueError: the pictures are smaller than the window.
    Source: Z. Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, eq. 13:
        11 x 11 Gaussian window of sigma 1.5 px, K1 = 0.01, K2 = 0.03. Differs: colour pictures are compared by luma
        (BT.601), and never shrunk before.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW_PX:
        raise ValueError(f"images of {tuple(images.shape[-2:])} px must be at least {SSIM_WINDOW_PX} px per side")
    # In float64: variances are differences of large numbers, and a GPU may convolve float32 with ten bits.
    first, second = _luma(images), _luma(reference)
    moments = torch.cat([first, second, first * first, second * second, first * second], dim=1)  # (B, 5, H, W)
    mean1, mean2, square1, square2, product = _blur(moments).unbind(dim=1)
    covariance = product - mean1 * mean2
    variances = square1 - mean1.square() + square2 - mean2.square()
    luminance = (2.0 * mean1 * mean2 + _C1) / (mean1.square() + mean2.square() + _C1)
    structure = (2.0 * covariance + _C2) / (variances + _C2)
    return (luminance * structure).mean(dim=(1, 2))


def _luma(images: Tensor) -> Tensor:
    """Map uint8 (B, 3, H, W) to float64 (B, 1, H, W) in [0, 255]."""
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device)
    return (images.double() * weights[:, None, None]).sum(dim=1, keepdim=True)


def _blur(maps: Tensor) -> Tensor:
    """Average every window inside float64 maps (B, C, H, W) with Gaussian weights, (B, C, H - 10, W - 10)."""
    offsets = torch.arange(SSIM_WINDOW_PX, dtype=torch.float64, device=maps.device) - SSIM_WINDOW_PX // 2
    weights = torch.exp(-0.5 * (offsets / _SSIM_SIGMA_PX).square())
    weights = weights / weights.sum()
    batch, channels, height, width = maps.shape
    rows = F.conv2d(maps.reshape(batch * channels, 1, height, width), weights.view(1, 1, -1, 1))
    blurred = F.conv2d(rows, weights.view(1, 1, 1, -1))
    return blurred.view(batch, channels, *blurred.shape[-2:])
