"""How the numbers of a scale are written: all ticks with as many digits, and no more than they need."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import Formatter, ScalarFormatter

_EXACT = 1e-6
"""Of a percentage, from the number that is written."""


def tick_values(percent: bool) -> Formatter:
    """Return what writes ticks, all with as many digits, and no more than they need: 22.0 beside 22.5, 20 beside 25."""
    return _Shares() if percent else ScalarFormatter(useOffset=False)


class _Shares(Formatter):
    """Writes shares as percentages."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Write one share alone."""
        return self.format_ticks([x])[0]

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        """Write all ticks of an axis with the fewest digits that are true of each."""
        percents = [100.0 * value for value in values]
        digits = next(
            (few for few in range(4) if all(abs(each - round(each, few)) < _EXACT for each in percents)),
            4,
        )
        return [f"{each:.{digits}f}\u00a0%" for each in percents]
