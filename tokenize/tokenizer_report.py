"""How well a discrete VAE in training keeps pictures, and how much of its vocabulary it uses; numbers and pictures.

The thorough measurement of a finished tokenizer is `beit tokenizer report` (`fitness/`).
"""

from __future__ import annotations

import torch
from PIL.Image import Image
from torch import Tensor

from beit.common.dvae import DiscreteVAE, luma
from beit.common.pictures import contact_sheet
from beit.tokenize.fitness.image_quality import block_means, image_psnr
from beit.tokenize.fitness.tokens import perplexity

_PAIRS_PER_ROW = 4


def reconstruction_metrics(model: DiscreteVAE, images: Tensor, *, micro_batch_size: int) -> dict[str, float]:
    """Encode and decode images, without gradients.

    Args:
        model: On the device of the images.
        images: uint8 (B, 3, H, W); B at least 1. A grey network is compared with their luma: colour it never saw.
        micro_batch_size: Images at a time.
    Returns:
        psnr and block_mean_psnr (dB, means over images; the latter of the trivial code that keeps each token's mean
        colour), words_used (different words that occur), perplexity (words that, used equally, would be as diverse).
    """
    psnr, baseline, counts = [], [], torch.zeros(model.vocab_size, dtype=torch.int64)
    with torch.no_grad():
        for chunk in torch.split(images, micro_batch_size):
            chunk = seen_pixels(model, chunk)
            token_ids = model.pixels_to_ids(chunk)
            counts += torch.bincount(token_ids.flatten(), minlength=model.vocab_size).cpu()
            psnr.append(image_psnr(model.ids_to_pixels(token_ids), chunk))
            baseline.append(image_psnr(block_means(chunk, model.downsampling), chunk))
    return {
        "psnr": float(torch.cat(psnr).mean()),
        "block_mean_psnr": float(torch.cat(baseline).mean()),
        "words_used": float((counts > 0).sum()),
        "perplexity": perplexity(counts.numpy()),
    }


def reconstruction_sheet(model: DiscreteVAE, images: Tensor) -> Image:
    """Draw images beside what becomes of them as words, several pairs per row.

    Args:
        model: On the device of the images.
        images: uint8 (B, 3, H, W); B at least 1.
    """
    originals = seen_pixels(model, images)
    with torch.no_grad():
        decoded = model.ids_to_pixels(model.pixels_to_ids(originals))
    stacked = torch.stack([originals, decoded], dim=1).flatten(0, 1)  # original, reconstruction, original, ...
    pictures = list(stacked.permute(0, 2, 3, 1).cpu().numpy())
    columns = 2 * min(_PAIRS_PER_ROW, len(images))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return contact_sheet(rows, titles=("original", "reconstruction") * (columns // 2))


def seen_pixels(model: DiscreteVAE, images: Tensor) -> Tensor:
    """Return what is left of uint8 images (B, 3, H, W) for the model: all, or their luma in three equal channels."""
    return luma(images).expand(-1, 3, -1, -1) if model.config.channels == 1 else images
