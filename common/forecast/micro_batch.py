"""Sizes of micro-batches: which cut a share evenly, which is quick on a CPU, which is the largest that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_TOKENS = 6144
"""Per micro-batch on a CPU, at least: from there on larger ones were hardly faster (docs/results.md)."""


def wanted_size(sizes: Sequence[int], tokens: int) -> int:
    """Return which of `sizes`, ascending, a CPU takes where memory is plenty, for images of so many tokens."""
    return quick_size(sizes, -(-_TOKENS // tokens))


def divisors(share: int, together: int = 1) -> list[int]:
    """Return the sizes that cut a share of a batch evenly, ascending, without parting rows that belong together."""
    found = [size for size in range(1, share + 1) if share % size == 0 and size % together == 0]
    return found or [share]


def quick_size(sizes: Sequence[int], wanted: int) -> int:
    """Return which of `sizes`, ascending, to take on a CPU, where `wanted` or more images are as fast as any number.

    One of at least as many, unless it would take more than twice the memory and there is one of half as many.
    """
    larger = next((size for size in sizes if size >= wanted), sizes[-1])
    smaller = max((size for size in sizes if size < wanted), default=larger)
    return smaller if larger > 2 * wanted and 2 * smaller >= wanted else larger


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Return the largest of `sizes`, ascending, that fits, trying few of them; None if not even the first one does.

    The largest is tried first: where everything fits, one try is enough.
    """
    low, high = -1, len(sizes) - 1  # all up to low fit, those above high do not
    middle = high
    while low < high:
        if fits(sizes[middle]):
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return None if low < 0 else sizes[low]
