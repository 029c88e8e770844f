"""Where words begin, and what becomes of those that nobody chooses.

Both are decided by one rank from codes that do not depend on how many ranks there are; the others are told. V words,
C numbers per code, M codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from beit.common.tokenizers.quantizer import CosineQuantizer
from beit.tokenize.tokenizer_training.codebook import fit_codebook, revive_words

_FIRST_SHARE = 0.05
"""Of its fair share of codes that a word begins with: little, so that the codes of the first steps decide where it
goes, and one that nobody chooses is soon put elsewhere."""
CODES_PER_WORD = 16
"""That the first words are fitted to; with fewer, k-means would memorise them."""
_MAX_CANDIDATES, _MAX_PRODUCTS = 16384, 2**26
"""Codes among which a restart looks for those that no word is near, and their products with words: 256 MiB."""


@torch.no_grad()
def place_words(
    quantizer: CosineQuantizer, codes: Tensor, *, codes_per_step: float, generator: torch.Generator
) -> None:
    """Put words where codes are, by k-means.

    Args:
        quantizer: Its words are replaced.
        codes: Float32 (M, C) of length 1, on its device.
        codes_per_step: Of the training.
        generator: Owns all randomness; on their device.
    """
    codebook = fit_codebook(codes, len(quantizer.codebook), generator=generator)
    quantizer.place(codebook, torch.tensor(_FIRST_SHARE * codes_per_step / len(codebook), device=codebook.device))


@torch.no_grad()
def restart_words(quantizer: CosineQuantizer, codes: Tensor, *, threshold: float, generator: torch.Generator) -> int:
    """Put unused words onto codes that no word is near, and return how many were.

    A restarted word is given no more weight than makes it count as used, so that the codes it wins decide at once where
    it goes; if they stay away, it is the first to be restarted again.

    Args:
        quantizer: Learning.
        codes: Float32 (M, C) of length 1, on its device: of the latest step.
        threshold: A word is unused below this share of its fair use.
        generator: Picks the codes; on their device.
    """
    assert quantizer.counts is not None
    candidates = codes[torch.isfinite(codes).all(dim=1)]
    most = min(_MAX_CANDIDATES, _MAX_PRODUCTS // len(quantizer.codebook))
    candidates = candidates[:: max(1, math.ceil(len(candidates) / most))]
    total = quantizer.counts.sum()
    if not len(candidates) or not total > 0:
        return 0
    usage, codebook = quantizer.counts / total, quantizer.codebook.clone()
    revived = int(revive_words(codebook, usage, candidates, threshold=threshold, generator=generator))
    if revived:
        moved = (codebook != quantizer.codebook).any(dim=1)
        least = threshold * total / len(usage)
        quantizer.place(codebook, least, rows=moved)
    return revived


def used_words(quantizer: CosineQuantizer, threshold: float) -> Tensor:
    """Return how many words have at least this share of their fair use lately; a float scalar on the device."""
    counts = quantizer.counts
    assert counts is not None
    return (counts >= threshold * counts.sum() / len(counts)).sum().float()
