"""Estimating P(word | context) from counts, honestly however few they are: absolute discounting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DiscountedCounts:
    """Counts of (context, word) pairs, each to be reduced by a discount D that goes to a coarser estimate.

    With n tokens of T different words seen in a context, c of them the word asked for, the estimate is
    (max(c - D, 0) + D x T x backoff) / n. An unseen context gives the coarser estimate itself. If `backoff` sums to 1
    over all words, so does the result: cross-entropies are honest however few tokens there are. D comes from the
    counts: near 1 where most pairs occur once, so that a table too sparse to tell anything does little harm, and near
    0 where pairs repeat. Memory grows with the number of different pairs, 16 bytes each.

    Source: H. Ney, U. Essen, R. Kneser, "On Structuring Probabilistic Dependences in Stochastic Language Modelling",
        1994, absolute discounting with D = n1 / (n1 + 2 n2), n1 and n2 the pairs seen once and twice; interpolated as
        in S. F. Chen, J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1998. Differs:
        one pair is added to n1 and half a pair to n2, so that D is never 0 or undefined.
    """

    num_words: int
    """Words are in [0, num_words)."""
    pairs: Int64Array
    """context x num_words + word of every different pair, ascending, (p,)."""
    pair_counts: Int64Array
    """How often each was seen, (p,)."""
    contexts: Int64Array
    """Every different context, ascending, (q,)."""
    totals: Int64Array
    """Tokens seen in each, (q,)."""
    num_types: Int64Array
    """Different words seen in each, (q,)."""
    discount: float
    """D, in (0, 1)."""

    @classmethod
    def fit(cls, contexts: Int64Array, words: Int64Array, num_words: int) -> DiscountedCounts:
        """Count the contexts seen and the words in them, (m,) each; contexts x num_words must fit into 63 bits."""
        pairs, pair_counts = np.unique(contexts * num_words + words, return_counts=True)
        seen, first, num_types = np.unique(pairs // num_words, return_index=True, return_counts=True)
        totals = np.add.reduceat(pair_counts, first) if len(pairs) else pair_counts
        once, twice = np.count_nonzero(pair_counts == 1) + 1.0, np.count_nonzero(pair_counts == 2) + 0.5
        return cls(
            num_words=num_words,
            pairs=pairs,
            pair_counts=pair_counts,
            contexts=seen,
            totals=totals,
            num_types=num_types,
            discount=once / (once + 2.0 * twice),
        )

    def probability(self, contexts: Int64Array, words: Int64Array, backoff: Float64Array | float) -> Float64Array:
        """Estimate P(word | context), (n,), given the coarser estimate `backoff` for each, (n,) or one for all."""
        count = _look_up(self.pairs, self.pair_counts, contexts * self.num_words + words)
        total = _look_up(self.contexts, self.totals, contexts)
        types = _look_up(self.contexts, self.num_types, contexts)
        estimate = np.maximum(count - self.discount, 0.0) + self.discount * types * backoff
        return np.where(total > 0, estimate / np.maximum(total, 1), backoff)


def _look_up(keys: Int64Array, values: Int64Array, wanted: Int64Array) -> Int64Array:
    """Return the value of each wanted key, 0 where it is absent; `keys` ascend."""
    if not len(keys):
        return np.zeros_like(wanted)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
