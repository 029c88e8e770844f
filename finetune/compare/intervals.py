"""The mean of a few runs and how far it can be trusted: Student's t interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Of every interval that is shown."""
_BISECTIONS = 200
"""Halvings of an interval of doubles; 64 would do, arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """The mean of independent values and its confidence interval."""

    mean: float
    """Of the values."""
    half_width: float | None
    """The interval is mean +- this; None for one value, which says nothing about the spread."""
    num_values: int
    """How many values."""


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of `values` and its 95 % confidence interval, assuming they are normally distributed.

    Args:
        values: One or more independent values, such as one per seed; differences of pairs for a paired comparison.
    Raises:
        ValueError: there is none.
    Source: Student 1908; s / sqrt(n) times the t quantile of n - 1 degrees of freedom. Differs: nothing.
    """
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean=mean, half_width=None, num_values=1)
    half_width = t_quantile(0.5 + CONFIDENCE / 2, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Interval(mean=mean, half_width=half_width, num_values=count)


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, for a probability in (0.5, 1) and 1 or more degrees."""
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, degrees) < probability else (low, middle)
    return high


def _t_cdf(t: float, degrees: int) -> float:
    """Return P(T <= t) for t >= 0 by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0
    for power in range(1 if is_odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return 0.5 + inside / 2
