"""How beit says less of itself while parts of it are tried, measured or drawn for a page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def saying_only(level: int) -> Iterator[None]:
    """Leave out what beit says below a level of `logging`, such as that a model was loaded."""
    log = logging.getLogger("beit")
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
