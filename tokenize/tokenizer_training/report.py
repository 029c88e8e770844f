"""What a trained tokenizer is and how good: the README beside it, and numbers and pictures of its evaluations.

Measured are how well it keeps pictures and how much of its vocabulary it uses. The thorough measurement of a finished
tokenizer is `beit tokenizer report` (`tokenize/fitness/`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from beit.common.images.decoding import RGB
from beit.common.pages.pictures import picture_table, sheet
from beit.common.tokenizers.dvae import DiscreteVAE
from beit.common.vit.channels import fit_channels
from beit.tokenize.fitness.image_quality import block_means, image_psnr
from beit.tokenize.fitness.tokens import perplexity
from beit.tokenize.tokenizer_training.card import Card
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig

_PAIRS_PER_ROW = 4


def reconstruction_metrics(model: DiscreteVAE, images: Tensor, *, micro_batch_size: int) -> dict[str, float]:
    """Encode and decode images, uint8 (B, 3, H, W), on the model's device, without gradients.

    A grey network is compared with their luma: colour it never saw.

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
    """Draw images, uint8 (B, 3, H, W), beside what becomes of them as words, several pairs per row."""
    originals = seen_pixels(model, images)
    with torch.no_grad():
        decoded = model.ids_to_pixels(model.pixels_to_ids(originals))
    stacked = torch.stack([originals, decoded], dim=1).flatten(0, 1)  # original, reconstruction, original, ...
    pictures = list(stacked.permute(0, 2, 3, 1).cpu().numpy())
    columns = 2 * min(_PAIRS_PER_ROW, len(images))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return sheet([picture_table(rows, titles=("original", "reconstruction") * (columns // 2))])


def seen_pixels(model: DiscreteVAE, images: Tensor) -> Tensor:
    """Return what is left of uint8 images (B, 3 or 1, H, W) for the model, in three channels: all, or their luma."""
    return fit_channels(fit_channels(images, model.config.channels), RGB)


def tokenizer_card(config: TokenizerTrainConfig, training: Mapping[str, Any]) -> Card:
    """Return the card; `training` is what the tokenizer's config.json says."""
    model, data, metrics, decay = config.model, config.data, training["metrics"], config.train.ema_decay
    average = "the weights as they were then" if decay is None else f"weights averaged with decay {decay}"
    return Card(
        what=f"A discrete VAE: each {model.downsampling} x {model.downsampling} px square of an image becomes one of "
        f"{model.vocab_size} visual words.",
        notes=["It sees the luma of colour images, and decodes to grey."] if model.channels == 1 else [],
        facts=[
            f"Network: width {model.width}, {model.num_blocks} residual blocks each way, code vectors of "
            f"{model.code_dim}; trained by {model.reconstruction}."
        ],
        made=f", step {training['step']} of {training['total_steps']}, {average}",
        data=f", in views of {data.view_size} px, {data.crops_per_image} pieces of {data.crop_size} px of each",
        licence_of="these weights, and of the images they were trained on",
        measured_on=f"{metrics.get('eval_images', 0):.0f} of the held-out images, one view of each; "
        "`reconstruction.png` shows some, as the latest evaluation saw them",
        measured={
            "reconstruction": f"{metrics['eval_psnr']:.2f} dB",
            "mean colour of each square, for comparison": f"{metrics['eval_block_mean_psnr']:.2f} dB",
            "different words used": f"{metrics['eval_words_used']:.0f} of {model.vocab_size}",
            "perplexity of the words": f"{metrics['eval_perplexity']:.0f}",
        }
        if metrics
        else {},
    )
