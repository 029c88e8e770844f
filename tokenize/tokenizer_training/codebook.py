"""Keeping a codebook alive: fitting it to real features, and moving words that nobody uses.

A randomly placed codebook collapses: the few words that happen to lie near the features win every comparison and get
all the gradient. Hence two measures, both on unit vectors. C code_dim, V words, M features.

Source: spherical k-means, and the restart of unused codes known from vector-quantised autoencoders (P. Dhariwal et al.,
"Jukebox", 2020, §3). Differs: words move to badly represented features, not to random ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK, _MAX_PRODUCTS = 8192, 2**26
"""Features compared at a time, and their products with words: 256 MiB."""


def fit_codebook(features: Tensor, num_words: int, *, generator: torch.Generator, num_rounds: int = 8) -> Tensor:
    """Cluster features by cosine.

    Args:
        features: Float (M, C), unit length; M may be below V, then words repeat with noise.
        num_words: V.
        generator: Picks the first centres; on the features' device.
        num_rounds: Rounds of k-means; the gradient does the rest.
    Returns:
        Float (V, C), unit length.
    """
    codebook, chunk_size = _draw(features, num_words, generator), min(_CHUNK, _MAX_PRODUCTS // num_words)
    for _ in range(num_rounds):
        nearest = torch.cat([(chunk @ codebook.t()).argmax(dim=1) for chunk in torch.split(features, chunk_size)])
        sums = torch.zeros_like(codebook).index_add_(0, nearest, features)
        is_empty = torch.bincount(nearest, minlength=num_words) == 0
        codebook = torch.where(is_empty[:, None], _draw(features, num_words, generator), F.normalize(sums, dim=1))
    return codebook


def _draw(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    picks = torch.randint(len(features), (count,), generator=generator, device=features.device)
    noise = torch.randn((count, features.shape[1]), generator=generator, device=features.device)
    return F.normalize(features[picks] + 1e-3 * noise, dim=1)


def revive_words(
    codebook: Tensor, usage: Tensor, features: Tensor, *, threshold: float, generator: torch.Generator
) -> Tensor:
    """Move unused words onto features that no word represents well. Changes `codebook` and `usage` in place.

    Args:
        codebook: Float (V, C).
        usage: Float (V,), share of the positions each word wins; revived words start at their fair share.
        features: Float (M, C), unit length.
        threshold: A word is unused below this share of 1 / V.
        generator: Picks the features; on their device.
    Returns:
        Number of words moved, at most M; scalar tensor.
    """
    fair = 1.0 / len(usage)
    unused = (usage < threshold * fair).nonzero().flatten()[: len(features)]
    if len(unused):
        closeness = (features @ F.normalize(codebook, dim=1).t()).amax(dim=1)
        badness = (1.0 - closeness).clamp_min(1e-6)
        picks = torch.multinomial(badness, len(unused), generator=generator)
        codebook[unused] = features[picks].to(codebook.dtype)
        usage[unused] = fair
    return torch.tensor(float(len(unused)), device=codebook.device)
