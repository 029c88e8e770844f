"""How much the neighbours of a token tell about it: bits per token of a small model, on images it was not fitted to.

Masked prediction lives between two useless extremes. If neighbours tell nothing, nothing can be learnt from context; if
they tell everything, copying them is all that is learnt.

V words; a context is a number that stands for the neighbours looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.discounting import DiscountedCounts, Float64Array, Int64Array


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextGain:
    """Cross-entropy of tokens that have a left and an upper neighbour, with and without looking at them."""

    num_fit_tokens: int
    """Tokens the estimates were made from."""
    num_test_tokens: int
    """Tokens they were tried on, of other images."""
    unigram_bits: float
    """Bits per token from the words' frequencies alone."""
    context_bits: float
    """Bits per token from the words to the left and above."""
    gain_bits: float
    """The difference: what neighbours tell."""


def measure_context(token_ids: NDArray[np.integer], vocab_size: int) -> ContextGain:
    """Fit the model on every other image and measure it on the rest.

    Args:
        token_ids: Integers (K, h, w) in [0, V), K, h and w at least 2.
        vocab_size: V, at most 65536.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    fit, test = _Neighbourhood.of(ids[0::2]), _Neighbourhood.of(ids[1::2])
    unigram = discounted(np.zeros_like(fit.word), fit.word, np.zeros_like(test.word), test.word, 1.0 / vocab_size)
    left = discounted(fit.left, fit.word, test.left, test.word, unigram)
    up = discounted(fit.up, fit.word, test.up, test.word, unigram)
    both = discounted(
        fit.left * vocab_size + fit.up, fit.word, test.left * vocab_size + test.up, test.word, 0.5 * (left + up)
    )
    unigram_bits, context_bits = (float(-np.log2(chance).mean()) for chance in (unigram, both))
    return ContextGain(
        num_fit_tokens=len(fit.word),
        num_test_tokens=len(test.word),
        unigram_bits=unigram_bits,
        context_bits=context_bits,
        gain_bits=unigram_bits - context_bits,
    )


@dataclass(frozen=True, slots=True)
class _Neighbourhood:
    """Tokens with a left and an upper neighbour, and these, each (n,)."""

    word: Int64Array
    left: Int64Array
    up: Int64Array

    @classmethod
    def of(cls, ids: Int64Array) -> _Neighbourhood:
        return cls(ids[:, 1:, 1:].ravel(), ids[:, 1:, :-1].ravel(), ids[:, :-1, 1:].ravel())


def discounted(
    fit_contexts: Int64Array,
    fit_words: Int64Array,
    contexts: Int64Array,
    words: Int64Array,
    backoff: Float64Array | float,
) -> Float64Array:
    """Estimate P(word | context) from counts, (n,); see `beit.common.discounting`.

    Args:
        fit_contexts: Contexts seen, (m,); products with the number of words must fit into 63 bits.
        fit_words: The words in them, (m,).
        contexts: Contexts asked for, (n,).
        words: The words asked for, (n,).
        backoff: The coarser estimate for each, (n,) or one for all.
    """
    num_words = int(max(fit_words.max(), words.max())) + 1
    return DiscountedCounts.fit(fit_contexts, fit_words, num_words).probability(contexts, words, backoff)
