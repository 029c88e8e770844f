"""How well a discrete VAE in training keeps pictures, and how much of its vocabulary it uses.

The thorough measurement of a finished tokenizer is `beit tokenizer report` (`fitness.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from beit.common.dvae import DiscreteVAE
from beit.tokenize.fitness.image_quality import block_means, image_psnr
from beit.tokenize.fitness.tokens import perplexity


def reconstruction_metrics(model: DiscreteVAE, images: Tensor, *, micro_batch_size: int) -> dict[str, float]:
    """Encode and decode images, without gradients.

    Args:
        model: On the device of the images.
        images: uint8 (B, 3, H, W); B at least 1.
        micro_batch_size: Images at a time.
    Returns:
        psnr and block_mean_psnr (dB, means over images; the latter of the trivial code that keeps each token's mean
        colour), words_used (different words that occur), perplexity (words that, used equally, would be as diverse).
    """
    psnr, baseline, counts = [], [], torch.zeros(model.vocab_size, dtype=torch.int64)
    with torch.no_grad():
        for chunk in torch.split(images, micro_batch_size):
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
