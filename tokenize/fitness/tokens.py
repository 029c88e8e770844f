"""Statistics of token ids alone: which words occur how often, where in the grid, beside which; what neighbours tell.

Counts are added up as views come; only a bounded number of grids is kept, for what needs whole grids. How much the
neighbours of a token tell about it is measured in bits per token of a small model, on images it was not fitted to.
Masked prediction lives between two useless extremes: if neighbours tell nothing, nothing can be learnt from context; if
they tell everything, copying them is all that is learnt.

V words, g x g tokens per view (any h x w works); a context is a number that stands for the neighbours looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.tokenizers.discounting import DiscountedCounts, Float64Array, Int64Array

MAX_KEPT_TOKENS = 4_000_000
"""Tokens kept for the entropy map and the context model, 8 MB; beyond, every second, third, ... view is. Arbitrary, far
more than both need to settle."""
CURVE_POINTS = 201
"""Points of the usage curve; arbitrary, finer than a page shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WordUsage:
    """How a sample of tokens spreads over the vocabulary."""

    num_tokens: int
    """Tokens counted."""
    words_used: int
    """Different words among them."""
    expected_words_used: float
    """Different words that a source of equally likely words would show in as many tokens."""
    unseen_probability: float
    """Chance that one more token would be a word not seen so far (Good-Turing)."""
    commonest_share: float
    """Share of the most frequent word."""
    entropy_bits: float
    """Entropy of the word frequencies; log2 V when all are equal."""
    max_entropy_bits: float
    """log2 V."""
    perplexity: float
    """2 ** entropy_bits: the number of equally frequent words that would be as diverse."""
    curve: list[float]
    """Frequency of words in units of the fair share 1/V, from the most to the least frequent, at `CURVE_POINTS`
    evenly spaced ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionEntropy:
    """Entropy of the words at each place of the grid."""

    num_views: int
    """Views it was computed from; no entropy can exceed log2 of it."""
    ceiling_bits: float
    """The largest value possible, log2 of the smaller of V and `num_views`."""
    bits: list[list[float]]
    """Rows of the grid, from top to bottom."""
    border_bits: float
    """Mean over the outermost tokens."""
    inner_bits: float
    """Mean over the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourCopies:
    """How often a token is the same word as its neighbour."""

    left_share: float
    """Share of tokens equal to the one on their left."""
    up_share: float
    """Share of tokens equal to the one above."""
    chance: float
    """Share of equal pairs among tokens drawn at random from all views."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStatistics:
    """Everything the ids alone tell."""

    words: WordUsage
    """Frequencies."""
    positions: PositionEntropy
    """Places."""
    neighbours: NeighbourCopies
    """Pairs."""
    context: ContextGain
    """Predictability."""


class TokenTally:
    """Adds up token ids view by view, of at most `num_views`."""

    def __init__(self, vocab_size: int, *, num_views: int, tokens_per_view: int) -> None:
        self._vocab_size = vocab_size
        self._stride = -(-num_views * tokens_per_view // MAX_KEPT_TOKENS)
        self._counts = np.zeros(vocab_size, dtype=np.int64)
        self._equal = {"left": 0, "up": 0}
        self._pairs = {"left": 0, "up": 0}
        self._kept: list[NDArray[np.uint16]] = []
        self._num_views = 0

    def add(self, token_ids: NDArray[np.integer]) -> None:
        """Count integers (B, h, w) in [0, V).

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        if token_ids.min() < 0 or token_ids.max() >= self._vocab_size:
            raise ValueError(f"token_ids ({token_ids.min()} to {token_ids.max()}) must lie in [0, {self._vocab_size})")
        self._counts += np.bincount(token_ids.ravel(), minlength=self._vocab_size)
        for name, equal in (
            ("left", token_ids[:, :, 1:] == token_ids[:, :, :-1]),
            ("up", token_ids[:, 1:] == token_ids[:, :-1]),
        ):
            self._equal[name] += int(equal.sum())
            self._pairs[name] += equal.size
        for grid in token_ids:
            if self._num_views % self._stride == 0:
                self._kept.append(grid.astype(np.uint16))
            self._num_views += 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of each word so far, (V,)."""
        return self._counts

    def statistics(self) -> TokenStatistics:
        """Return what the views so far came to; two at least."""
        kept = np.stack(self._kept)
        return TokenStatistics(
            words=word_usage(self._counts),
            positions=position_entropy(kept, self._vocab_size),
            neighbours=NeighbourCopies(
                left_share=self._equal["left"] / self._pairs["left"],
                up_share=self._equal["up"] / self._pairs["up"],
                chance=collision_probability(self._counts),
            ),
            context=measure_context(kept, self._vocab_size),
        )


def word_usage(counts: NDArray[np.int64]) -> WordUsage:
    """Describe word counts (V,), one token at least.

    Source: I. J. Good, "The Population Frequencies of Species and the Estimation of Population Parameters", 1953, for
        `unseen_probability`: the share of tokens whose word occurs once.
    """
    vocab_size, num_tokens = len(counts), int(counts.sum())
    bits = entropy_bits(counts)
    falling = np.sort(counts)[::-1] * (vocab_size / num_tokens)
    ranks = np.linspace(0, vocab_size - 1, CURVE_POINTS).round().astype(np.int64)
    return WordUsage(
        num_tokens=num_tokens,
        words_used=int(np.count_nonzero(counts)),
        # 1 - (1 - 1/V) ** n, written so that a large V loses no digits.
        expected_words_used=-vocab_size * math.expm1(num_tokens * math.log1p(-1.0 / vocab_size)),
        unseen_probability=float(np.count_nonzero(counts == 1) / num_tokens),
        commonest_share=float(counts.max() / num_tokens),
        entropy_bits=bits,
        max_entropy_bits=math.log2(vocab_size),
        perplexity=2.0**bits,
        curve=falling[ranks].tolist(),
    )


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy of counts (V,) in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0  # + 0.0 turns the -0.0 of a single word into 0.0


def perplexity(counts: NDArray[np.int64]) -> float:
    """Return the number of equally frequent words that would be as diverse as counts (V,)."""
    return float(2.0 ** entropy_bits(counts))


def collision_probability(counts: NDArray[np.int64]) -> float:
    """Return the share of equal pairs among all pairs of two different tokens, from counts (V,)."""
    total = int(counts.sum())
    return float((counts * (counts - 1.0)).sum() / (total * (total - 1.0)))


def position_entropy(token_ids: NDArray[np.integer], vocab_size: int) -> PositionEntropy:
    """Measure how varied the words of each place are, from ids (K, h, w)."""
    num_views, height, width = token_ids.shape
    columns = token_ids.reshape(num_views, height * width).T
    bits = np.array([entropy_bits(np.unique(column, return_counts=True)[1]) for column in columns])
    grid = bits.reshape(height, width)
    inner = np.zeros((height, width), dtype=bool)
    inner[1:-1, 1:-1] = True
    return PositionEntropy(
        num_views=num_views,
        ceiling_bits=math.log2(min(vocab_size, num_views)),
        bits=grid.tolist(),
        border_bits=float(grid[~inner].mean()),
        inner_bits=float(grid[inner].mean()),
    )


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
    fit_words, fit_left, fit_up = _neighbourhoods(ids[0::2])
    words, left, up = _neighbourhoods(ids[1::2])

    def chances(fit_contexts: Int64Array, contexts: Int64Array, backoff: Float64Array | float) -> Float64Array:
        return DiscountedCounts.fit(fit_contexts, fit_words, vocab_size).probability(contexts, words, backoff)

    unigram = chances(np.zeros_like(fit_words), np.zeros_like(words), 1.0 / vocab_size)
    by_left, by_up = chances(fit_left, left, unigram), chances(fit_up, up, unigram)
    both = chances(fit_left * vocab_size + fit_up, left * vocab_size + up, 0.5 * (by_left + by_up))
    unigram_bits, context_bits = (float(-np.log2(chance).mean()) for chance in (unigram, both))
    return ContextGain(
        num_fit_tokens=len(fit_words),
        num_test_tokens=len(words),
        unigram_bits=unigram_bits,
        context_bits=context_bits,
        gain_bits=unigram_bits - context_bits,
    )


def _neighbourhoods(ids: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return the tokens that have a left and an upper neighbour, and these, each (n,)."""
    return ids[:, 1:, 1:].ravel(), ids[:, 1:, :-1].ravel(), ids[:, :-1, 1:].ravel()
