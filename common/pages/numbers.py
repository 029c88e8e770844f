"""How numbers and names are written: one form of each for terminals, pictures and pages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import PurePath

ABSENT = "-"
"""What is shown where there is no number."""
_WHOLE = ("model", "last", "encoder")
"""Folders that are named after the run they lie in."""


def percent(share: float, *, signed: bool = False) -> str:
    """Write a share: "38.3 %", "0.41 %", "99.95 %", "100.0 %"; near 0 and 100 with a digit more, so it reads neither.

    "-" for one that is not a number.
    """
    value = 100.0 * share
    if math.isnan(value):
        return ABSENT
    distance = min(abs(value), abs(100.0 - value))
    if 0.0 < distance < 0.01 and not signed:
        return "below 0.01 %" if value < 50.0 else "above 99.99 %"
    # What rounds to 1.0 % has one digit, whichever side of it it lies on.
    digits = 2 if 0.0 < distance < 0.995 and not signed else 1
    return f"{value:{'+' if signed else ''}.{digits}f} %"


def percent_range(low: float, high: float) -> str:
    """Write an interval of shares: "24.8 to 33.6 %"."""
    first, last = percent(low), percent(high)
    return f"{first.removesuffix(' %')} to {last}"


def count(number: float, unit: str = "", *, plural: str = "") -> str:
    """Write a whole number, thousands apart, with what is counted: "1 image", "2,400 images"."""
    name = unit if number == 1 or not unit else plural or f"{unit}s"
    return f"{number:,.0f} {name}".rstrip()


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Shorten paths for reading: as they are where they are relative, else their last two parts.

    More parts where two would read the same. URLs lose what follows a question mark, which may be secret.
    """
    wanted = list(dict.fromkeys(paths))
    parts = {path: 2 for path in wanted}
    while True:
        shown = {path: _shown(path, most) for path, most in parts.items()}
        doubled = [path for path in wanted if list(shown.values()).count(shown[path]) > 1]
        longer = [path for path in doubled if parts[path] < len(PurePath(path).parts)]
        if not longer:
            return shown
        for path in longer:
            parts[path] += 1


def short_name(path: str) -> str:
    """Shorten one path as `short_names` does."""
    return short_names([path])[path]


def run_name(path: str) -> str:
    """Name what lies in a run after the run: "flowers" for runs/flowers/model."""
    parts = [part for part in PurePath(path).parts if part not in (".", "/")]
    if len(parts) > 1 and parts[-1] in _WHOLE:
        parts.pop()
    return parts[-1] if parts and parts[-1] != ".." else path


def _shown(path: str, most: int) -> str:
    if "://" in path:
        return path.partition("?")[0]
    pure = PurePath(path)
    return "/".join(pure.parts[1:][-most:]) or path if pure.is_absolute() else path
