"""What words by k-means are and how evenly they are used: numbers on held-out images, and the README beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.pages.numbers import count, percent
from beit.common.pages.pictures import picture_table, sheet
from beit.common.tokenizers.kmeans import KMeansTokenizer
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.tokenize.clustering.config import ClusteringConfig
from beit.tokenize.fitness.image_quality import block_means, image_psnr
from beit.tokenize.fitness.tokens import perplexity
from beit.tokenize.tokenizer_training.card import Card

_WORDS_SHOWN, _WORDS_PER_ROW = 24, 8


@torch.no_grad()
def word_metrics(model: KMeansTokenizer, images: Tensor, *, micro_batch_size: int) -> dict[str, float]:
    """Encode and paint images, uint8 (B, 3, H, W), on the model's device.

    Returns:
        words_used (different words that occur), perplexity (words that, used equally, would be as diverse), closeness
        (mean cosine between a patch and its word), psnr and block_mean_psnr (dB, means over images; the latter of the
        trivial code that keeps each patch's mean colour).
    """
    counts = torch.zeros(model.vocab_size, dtype=torch.int64)
    psnr, baseline, closeness = [], [], []
    for chunk in torch.split(images, micro_batch_size):
        directions = model.directions(model.describe(chunk))
        token_ids = model.nearest(directions)
        counts += torch.bincount(token_ids.flatten(), minlength=model.vocab_size).cpu()
        closeness.append((directions * model.centres[token_ids]).sum(-1).flatten(1).mean(1))
        psnr.append(image_psnr(model.ids_to_pixels(token_ids), chunk))
        baseline.append(image_psnr(block_means(chunk, model.downsampling), chunk))
    return {
        "words_used": float((counts > 0).sum()),
        "perplexity": perplexity(counts.numpy()),
        "closeness": float(torch.cat(closeness).mean()),
        "psnr": float(torch.cat(psnr).mean()),
        "block_mean_psnr": float(torch.cat(baseline).mean()),
        "images": float(len(images)),
    }


def commonest_words(patches: NDArray[np.uint8], counts: NDArray[np.int64]) -> Image.Image:
    """Draw the mean patches of the commonest words.

    Args:
        patches: (V, 3, p, p), of every word.
        counts: (V,), how often each was met.
    """
    order = np.argsort(-counts, kind="stable")[:_WORDS_SHOWN]
    cells: list[NDArray[np.uint8] | None] = [patches[word].transpose(1, 2, 0) for word in order]
    texts = [f"word {word}\n{percent(counts[word] / max(1, counts.sum()))}" for word in order]
    blanks = -len(cells) % _WORDS_PER_ROW
    cells, texts = cells + [None] * blanks, texts + [""] * blanks
    starts = range(0, len(cells), _WORDS_PER_ROW)
    table = picture_table(
        [cells[start : start + _WORDS_PER_ROW] for start in starts],
        captions=[texts[start : start + _WORDS_PER_ROW] for start in starts],
        cell_px=72,
    )
    return sheet(
        [table],
        heading="The commonest words",
        facts=f"{len(order)} of {count(len(counts))} words, by their share of {count(int(counts.sum()))} patches",
        legend="Each is the mean of the patches that it stands for.",
    )


def kmeans_card(model: KMeansConfig, config: ClusteringConfig, training: Mapping[str, Any]) -> Card:
    """Return the card; `training` is what the tokenizer's config.json says."""
    metrics, teacher, side, steps = training["metrics"], training["teacher"], model.patch_size, config.clustering
    made_of, options = f"the {model.dim} pixel values of the patch", " --kind kmeans"
    if teacher is not None:
        made_of = f"the {model.dim} features of block {teacher['block']} of the encoder `{teacher['name']}`"
        options += f" --teacher {teacher['name']} --teacher-block {teacher['block']}"
    takes = f"any multiple of {side} px" if model.vit is None else f"{model.vit.img_size} px, no other"
    return Card(
        what=f"Words by k-means: each {side} x {side} px patch of an image becomes one of {model.vocab_size} visual "
        f"words, the nearest centre, by cosine, of {made_of}.",
        facts=[f"Takes images with a side of {takes}. Vectors are standardised by: {model.standardise}."],
        options=options,
        made="",
        data=f", in views of {training['view_size']} px, {steps.steps} batches of {steps.global_batch_size} views",
        further=[
            *([] if teacher is None else [f"Weights of the encoder: {teacher['weights']}."]),
            "What `decode` paints are averages: the mean patch of every word. Words of features stand for what is "
            "seen, not for its pixels, and are not meant to be painted.",
        ],
        licence_of="the encoder, if there is one, and of the images",
        measured_on=f"{metrics['images']:.0f} of the held-out images, one view of each",
        measured={
            "different words used": f"{metrics['words_used']:.0f} of {model.vocab_size}",
            "perplexity of the words": f"{metrics['perplexity']:.0f}",
            "cosine of a patch and its word": f"{metrics['closeness']:.3f}",
            "mean patches, painted": f"{metrics['psnr']:.2f} dB",
            "mean colour of each patch, for comparison": f"{metrics['block_mean_psnr']:.2f} dB",
        },
    )
