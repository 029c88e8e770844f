"""What a masked token costs without a model: the two lines the learning signal is read against.

The unigram line predicts every token by its frequency in the training set: a model that looks at nothing gets there.
The neighbour line predicts it from the token of the nearest visible patch: a model that copies its surroundings gets
there. Only below the second has a model learned something about images.

N patches, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from beit.common.tokenizers.discounting import DiscountedCounts, Float64Array, Int64Array

MAX_PAIRS = 4_000_000
"""Pairs of tokens that the neighbour line is fitted to: 64 MB while they are sorted, and 64 MB at most in use."""
_SMOOTHING = 1.0
"""Added to every count, so that a token never seen in training costs much instead of infinitely much (Laplace)."""


@dataclass(frozen=True, kw_only=True)
class TokenBaselines:
    """Both lines, fitted to training images."""

    unigram: Float64Array
    """Smoothed share of each word among the tokens of training images, (V,)."""
    neighbours: DiscountedCounts | None
    """Words of masked patches, counted by the word of the nearest visible patch; None where nothing is masked."""

    @property
    def commonest(self) -> int:
        """The word that a model without input would always answer."""
        return int(self.unigram.argmax())

    @cached_property
    def word_nats(self) -> Float64Array:
        """What each word costs under its frequency, in nats, (V,)."""
        return -np.log(self.unigram)

    def unigram_nats(self, words: Int64Array) -> float:
        """Return the summed cost of `words` (n,) under their frequencies, in nats."""
        return float(-np.log(self.unigram[words]).sum())

    def neighbour_nats(self, contexts: Int64Array, words: Int64Array) -> float:
        """Return the summed cost of `words` (n,) given the words of their nearest visible patches (n,), in nats."""
        assert self.neighbours is not None
        return float(-np.log(self.neighbours.probability(contexts, words, self.unigram[words])).sum())


def fit_baselines(
    token_ids: NDArray[np.integer], masks: NDArray[np.bool_], *, grid_size: tuple[int, int], vocab_size: int
) -> TokenBaselines:
    """Fit both lines to training images.

    Args:
        token_ids: (n, N) integers in [0, V), row-major.
        masks: (n, N), True = masked, drawn as in training: how far the nearest visible patch is depends on them.
        grid_size: Patches per side (height, width).
        vocab_size: V.
    """
    counts = np.bincount(token_ids.reshape(-1), minlength=vocab_size) + _SMOOTHING
    contexts, words = neighbour_pairs(token_ids, masks, grid_size)
    neighbours = DiscountedCounts.fit(contexts, words, vocab_size) if len(words) else None
    return TokenBaselines(unigram=counts / counts.sum(), neighbours=neighbours)


def neighbour_pairs(
    token_ids: NDArray[np.integer], masks: NDArray[np.bool_], grid_size: tuple[int, int]
) -> tuple[Int64Array, Int64Array]:
    """List every masked token with the token of the nearest visible patch of its image.

    Of patches equally near, the first in row-major order counts. Images without a visible patch are left out.

    Args:
        token_ids: (n, N) integers.
        masks: (n, N), True = masked.
        grid_size: Patches per side (height, width).

    Returns:
        Visible and masked tokens, (m,) each, in the order of images and patches.
    """
    order = _by_distance(*grid_size)  # (N, N)
    contexts, words = [], []
    for ids, mask in zip(token_ids, masks, strict=True):
        if mask.all() or not mask.any():
            continue
        near = order[mask]  # (masked, N), nearest first
        nearest = near[np.arange(len(near)), (~mask)[near].argmax(1)]
        contexts.append(ids[nearest])
        words.append(ids[mask])
    if not words:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(contexts).astype(np.int64), np.concatenate(words).astype(np.int64)


@lru_cache(maxsize=4)
def _by_distance(height: int, width: int) -> Int64Array:
    """Return, for every patch, all patches by their distance from it, (N, N)."""
    y, x = np.divmod(np.arange(height * width), width)
    squared = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return np.argsort(squared, axis=1, kind="stable")
