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
    """Estimate P(word | context) from counts, each reduced by a discount D that goes to a coarser estimate.

    With n tokens of T different words seen in a context, c of them the word asked for:
    (max(c - D, 0) + D x T x backoff) / n. An unseen context gives the coarser estimate itself. If `backoff` sums to 1
    over all words, so does the result: cross-entropies are honest however few tokens there are. D comes from the
    counts: near 1 where most pairs occur once, so that a table too sparse to tell anything does little harm, and near
    0 where pairs repeat.

    Args:
        fit_contexts: Contexts seen, (m,); products with the number of words must fit into 63 bits.
        fit_words: The words in them, (m,).
        contexts: Contexts asked for, (n,).
        words: The words asked for, (n,).
        backoff: The coarser estimate for each, (n,) or one for all.
    Returns:
        Probabilities (n,).
    Source: H. Ney, U. Essen, R. Kneser, "On Structuring Probabilistic Dependences in Stochastic Language Modelling",
        1994, absolute discounting with D = n1 / (n1 + 2 n2), n1 and n2 the pairs seen once and twice; interpolated as
        in S. F. Chen, J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998. Differs:
        one pair is added to n1 and half a pair to n2, so that D is never 0 or undefined.
    """
    num_words = int(max(fit_words.max(), words.max())) + 1
    pairs, pair_counts = np.unique(fit_contexts * num_words + fit_words, return_counts=True)
    seen, first, num_types = np.unique(pairs // num_words, return_index=True, return_counts=True)
    totals = np.add.reduceat(pair_counts, first)
    once, twice = np.count_nonzero(pair_counts == 1) + 1.0, np.count_nonzero(pair_counts == 2) + 0.5
    discount = once / (once + 2.0 * twice)
    count = _look_up(pairs, pair_counts, contexts * num_words + words)
    total, types = _look_up(seen, totals, contexts), _look_up(seen, num_types, contexts)
    estimate = (np.maximum(count - discount, 0.0) + discount * types * backoff) / np.maximum(total, 1)
    return np.where(total > 0, estimate, backoff)


def _look_up(keys: Int64Array, values: Int64Array, wanted: Int64Array) -> Int64Array:
    """Return the value of each wanted key, 0 where it is absent; `keys` ascend."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
