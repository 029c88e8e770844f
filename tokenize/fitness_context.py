"""How much the neighbours of a token tell about it: bits per token of a small model, on images it was not fitted to.

Masked prediction lives between two useless extremes. If neighbours tell nothing, nothing can be learnt from context; if
they tell everything, copying them is all that is learnt.

V words; a context is a number that stands for the neighbours looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


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
    unigram = witten_bell(np.zeros_like(fit.word), fit.word, np.zeros_like(test.word), test.word, 1.0 / vocab_size)
    left = witten_bell(fit.left, fit.word, test.left, test.word, unigram)
    up = witten_bell(fit.up, fit.word, test.up, test.word, unigram)
    both = witten_bell(
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


def witten_bell(
    fit_contexts: Int64Array,
    fit_words: Int64Array,
    contexts: Int64Array,
    words: Int64Array,
    backoff: Float64Array | float,
) -> Float64Array:
    """Estimate P(word | context), leaning on a coarser estimate the more, the more varied a context is.

    With n tokens of T different words seen in a context, c of them the word asked for:
    (c + T x backoff) / (n + T). An unseen context gives the coarser estimate itself. If `backoff` sums to 1 over all
    words, so does the result, so that cross-entropies are honest however few tokens there are.

    Args:
        fit_contexts: Contexts seen, (m,); products with the number of words must fit into 63 bits.
        fit_words: The words in them, (m,).
        contexts: Contexts asked for, (n,).
        words: The words asked for, (n,).
        backoff: The coarser estimate for each, (n,) or one for all.
    Returns:
        Probabilities (n,).
    Source: I. H. Witten, T. C. Bell, "The Zero-Frequency Problem", 1991, method C; interpolated as in S. F. Chen,
        J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998, §2.6.
    """
    stride = int(max(fit_words.max(), words.max())) + 1
    pairs, pair_counts = np.unique(fit_contexts * stride + fit_words, return_counts=True)
    seen, first, num_types = np.unique(pairs // stride, return_index=True, return_counts=True)
    totals = np.add.reduceat(pair_counts, first)
    count = _look_up(pairs, pair_counts, contexts * stride + words)
    total, types = _look_up(seen, totals, contexts), _look_up(seen, num_types, contexts)
    # An unseen context has neither total nor types: the maximum only avoids 0 / 0, the estimate is the coarser one.
    return np.where(total > 0, (count + types * backoff) / np.maximum(total + types, 1), backoff)


def _look_up(keys: Int64Array, values: Int64Array, wanted: Int64Array) -> Int64Array:
    """Return the value of each wanted key, 0 where it is absent; `keys` ascend."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
