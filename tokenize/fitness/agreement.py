"""How much of a word is about the thing shown: does it stay when the view is mirrored, recoloured and moved a little?

These are the changes that pre-training makes by chance, and none of them changes what is to be seen. Few words agree
easily, so shares are corrected for chance, and what stays is also given in bits, where few words have few to keep.

B views, S side of a window in px, g tokens per side.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.jitter import FACTOR_ONE, JITTER_ORDERS, jitter_image
from beit.common.rng import CounterRng
from beit.common.tokenizer import Tokenizer
from beit.common.views import AugmentConfig
from beit.tokenize.fitness.tokens import collision_probability

CHANGES = ("mirror", "colours", "all")
"""What is compared; "all" is both at once, and a step of a quarter of a token under the grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Words of a view and of the same scene, changed, at the same places of the scene."""

    num_views: int
    """Views compared."""
    shift_px: int
    """The step of "all"."""
    chance: float
    """Share of equal words among tokens drawn at random: what the frequencies of the words give by themselves."""
    equal_shares: dict[str, float]
    """By change, of `CHANGES`."""
    above_chance: dict[str, float]
    """The same where chance is 0 and the best is 1: (share - chance) / (1 - chance)."""
    kept_bits: float
    """What the word of the changed view ("all") tells about that of the view, bits per token, at least."""


class AgreementTally:
    """Adds up comparisons of views with changed copies of themselves, batch by batch; three encodings of each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shift = quarter_token(tokenizer.downsampling)
        self._equal = Counter[str]()
        self._kept = np.zeros(tokenizer.vocab_size, dtype=np.int64)  # tokens that stay under "all", by word
        self._counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._num_views = 0

    def add(self, views: NDArray[np.uint8], token_ids: NDArray[np.integer]) -> None:
        """Compare windows of uint8 views (B, W, W, 3) whose left upper one of S px has the words (B, g, g).

        W is at least S and `quarter_token` more, so that a window that moves shows real pixels.
        """
        side, vocab_size = token_ids.shape[1] * self._tokenizer.downsampling, len(self._counts)
        still, moved = views[:, :side, :side], views[:, :side, self._shift : self._shift + side]
        recoloured = {
            "mirror": still,
            "colours": self._recolour(still, "colours"),
            "all": self._recolour(moved, "all"),
        }
        for name, pixels in recoloured.items():
            if name == "colours":
                found = self._encode(pixels)
            else:
                found = self._encode(np.ascontiguousarray(pixels[:, :, ::-1]))[:, :, ::-1]
            self._equal[name] += int((found == token_ids).sum())
            if name == "all":
                self._kept += np.bincount(token_ids[found == token_ids], minlength=vocab_size)
        self._counts += np.bincount(token_ids.ravel(), minlength=vocab_size)
        self._num_views += len(views)

    def result(self, counts: NDArray[np.int64]) -> Agreement:
        """Return the shares; `counts` (V,) of words among other views make their frequencies surer."""
        total, counts = int(self._counts.sum()), counts + self._counts
        chance = collision_probability(counts)
        equal = {name: self._equal[name] / total for name in CHANGES}
        above = {name: above_chance(share, chance) for name, share in equal.items()}
        return Agreement(
            num_views=self._num_views,
            shift_px=self._shift,
            chance=chance,
            equal_shares=equal,
            above_chance=above,
            kept_bits=kept_bits(self._kept, total, counts, kept_share=above["all"]),
        )

    def _recolour(self, views: NDArray[np.uint8], change: str) -> NDArray[np.uint8]:
        """Draw other colours for every view, as pre-training does."""
        return np.stack([_recoloured(view, self._num_views + number, change) for number, view in enumerate(views)])

    def _encode(self, views: NDArray[np.uint8]) -> NDArray[np.integer]:
        return np.asarray(self._tokenizer.encode(views).cpu().numpy())


def _recoloured(view: NDArray[np.uint8], number: int, change: str) -> NDArray[np.uint8]:
    rng, augment = CounterRng(number, "tokenizer report colours", change), AugmentConfig()
    strengths = {"bright": augment.brightness, "contrast": augment.contrast, "sat": augment.saturation}
    factors = {name: round(rng.uniform(1.0 - by, 1.0 + by) * FACTOR_ONE) for name, by in strengths.items()}
    order = rng.integers(0, len(JITTER_ORDERS) - 1)
    return np.asarray(jitter_image(Image.fromarray(np.ascontiguousarray(view)), factors, order))


def quarter_token(downsampling: int) -> int:
    """Return a quarter of a token in whole px: as far for small tokens as for large ones."""
    return max(1, downsampling // 4)


def above_chance(share: float, chance: float) -> float:
    """Correct a share of equal words for chance: 1 if all are equal, 0 at chance, and where there is but one word."""
    return (share - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def kept_bits(kept: NDArray[np.int64], num_tokens: int, counts: NDArray[np.int64], *, kept_share: float) -> float:
    """Bound from below how many bits one word tells about the other of a pair.

    The model: a word stays with probability `kept_share`, else it is drawn anew by frequency. No model can tell more
    than there is, so what this one gains over frequencies alone is a lower bound of the mutual information.

    Args:
        kept: Pairs of equal words by word, (V,).
        num_tokens: All pairs.
        counts: Tokens by word, (V,), which give the frequencies; none of a kept word is 0.
        kept_share: `above_chance` of the pairs.
    """
    if kept_share <= 0.0:
        return 0.0
    words = np.flatnonzero(kept)
    frequency = counts[words] / counts.sum()
    gained = float((kept[words] * np.log2((kept_share + (1.0 - kept_share) * frequency) / frequency)).sum())
    num_changed = num_tokens - int(kept.sum())
    lost = num_changed * math.log2(1.0 - kept_share) if num_changed else 0.0
    return max(0.0, (gained + lost) / num_tokens)
