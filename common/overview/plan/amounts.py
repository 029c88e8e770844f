"""How many images are meant, and how large numbers are written."""

from __future__ import annotations

import re

from beit.common.errors import InputError
from beit.common.pages.numbers import count

_COUNT = re.compile(r"(\d[\d_,]*(?:\.\d+)?)\s*([kKmM]?)")
_FACTORS = {"": 1, "k": 1000, "m": 1_000_000}
_MOST = 10**12
"""No one has more images; more is a slip."""


def parse_count(text: str) -> int | None:
    """Read a number of images: 1281167, 1_281_167, 14M, 1.28M, 50k; None where it is none, so a source."""
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        return None
    number = float(match[1].replace("_", "").replace(",", "")) * _FACTORS[match[2].lower()]
    if not 1 <= number <= _MOST or number != int(number):
        raise InputError(
            f"{text} is no number of images; give a whole one, such as 1281167 or 1.28M, or the folder ./{text}"
        )
    return int(number)


def large(number: float) -> str:
    """Write a whole number for reading: 2,400, 1.28 million, 4.02 billion."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return count(number)
