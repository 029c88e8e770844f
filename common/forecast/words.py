"""How durations and amounts are written: to two or three digits, since a forecast knows no more."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """Write a duration to two digits: 0.23 s, 26 s, 21 min, 5.2 h, 3.1 days."""
    for size, unit, longest in ((1, "s", 100), (60, "min", 100), (3600, "h", 48)):
        if seconds < longest * size:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
    return f"{seconds / 86400:.0f} days" if seconds >= 10 * 86400 else f"{seconds / 86400:.2g} days"


def in_gb(num_bytes: float) -> str:
    """Write an amount of memory or disk: 12 MB, 2.1 GB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def in_digits(number: float, digits: int = 3) -> str:
    """Write a number that need not be whole: 0.0375, 9.37, 64,000."""
    return f"{number:,.0f}" if number >= 10**digits - 0.5 else f"{number:.{digits}g}"


def percent(share: float) -> str:
    """Write a share without digits: 40 %."""
    return f"{100 * share:.0f} %"
