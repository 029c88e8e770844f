"""Counter-based random numbers: the same key gives the same draws on every machine, rank and worker.

Only the raw 64-bit output of Philox is used; everything above it is spelled out here, because NumPy does not promise
that its distribution methods keep their streams between versions, and stored views, masks and data order must.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_CHUNK = 16
"""Raw numbers fetched at a time: one call into Philox costs as much as several draws."""


def _digest(labels: tuple[int | str, ...]) -> bytes:
    # The type tag and the length keep ("1", 2), (1, "2") and ("12",) apart.
    hasher = hashlib.blake2b(digest_size=16)
    for label in labels:
        encoded = str(label).encode()
        kind = "s" if isinstance(label, str) else "i"
        hasher.update(f"{kind}{len(encoded)}:".encode())
        hasher.update(encoded)
    return hasher.digest()


def stable_hash64(*labels: int | str) -> int:
    """Hash the labels to an unsigned 64-bit integer, equal in every process and on every machine."""
    return int.from_bytes(_digest(labels)[:8], "little")


class CounterRng:
    """A random stream that is a pure function of its labels.

    Args:
        labels: Seed first, then whatever identifies the draw, such as sample key and view number.
    """

    def __init__(self, *labels: int | str) -> None:
        self._philox = np.random.Philox(key=int.from_bytes(_digest(labels), "little"))
        self._pending: list[int] = []

    def __repr__(self) -> str:
        return f"CounterRng(pending={len(self._pending)})"

    def _next(self) -> int:
        if not self._pending:
            self._pending = self._philox.random_raw(_CHUNK).tolist()[::-1]
        return self._pending.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw a float from [low, high) with 53 random bits."""
        return low + (high - low) * ((self._next() >> 11) * 2.0**-53)

    def integers(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included.

        The multiply-shift map has a bias below 2**-32 for ranges under 2**32, far under anything measurable here.
        """
        return low + (self._next() * (high - low + 1) >> 64)

    def raw(self, count: int) -> NDArray[np.uint64]:
        """Draw `count` uniform 64-bit integers, shape (count,)."""
        return np.asarray(self._philox.random_raw(count), dtype=np.uint64)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Draw a permutation of range(count): the stable order of `count` random 64-bit integers."""
        return np.argsort(self.raw(count), kind="stable").astype(np.int64, copy=False)
