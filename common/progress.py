"""Progress of long work: a bar with rate and ETA on a terminal, plain lines at intervals in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from beit.common.errors import printable

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 30.0
"""Between two lines in a log; arbitrary, short enough to see that a job is alive."""


class LogFormatter(logging.Formatter):
    """Writes records so that names of files in them cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        return printable(super().format(record), keep="\n\t")


class Terminal:
    """A terminal as a text file that shows control characters instead of obeying them.

    Args:
        file: The terminal.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write a text."""
        return self._file.write(printable(text, keep="\n\t"))


class Progress:
    """Count `unit`s of work up to `total`.

    Args:
        total: Units in all; None when unknown.
        unit: What is counted, in the plural: "views", "images", "steps".
        description: What the work is.
        initial: Units already done by an earlier run; the rate leaves them out.
        enabled: False on every rank but the first.
    """

    def __init__(
        self, total: int | None, *, unit: str, description: str, initial: int = 0, enabled: bool = True
    ) -> None:
        self._unit, self._description, self._enabled = unit, description, enabled
        self._total, self._done, self._initial = total, initial, initial
        self._fields: dict[str, str] = {}
        self._part = 0.0  # of the unit under way
        self._started = self._last_line = time.monotonic()
        self._written = -1  # the count in the last line of the log
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit=f" {unit}", desc=description, dynamic_ncols=True)

    def __enter__(self) -> Self:
        """Start counting."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, or write the last line."""
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self._done != self._written:
            self._write_line()

    def update(self, count: int, **fields: str | int | float) -> None:
        """Add `count` finished units; `fields` are shown behind the rate, such as loss=6.29."""
        if self._bar is not None:
            self._bar.n = self._done
        self._done, self._part = self._done + count, 0.0
        self._fields.update({name: _format(value) for name, value in fields.items()})
        if self._bar is not None:
            self._bar.set_postfix(self._fields, refresh=False)
            self._bar.update(count)
        elif self._enabled and time.monotonic() - self._last_line >= LOG_INTERVAL_SECONDS:
            self._write_line()

    def within(self, part: float) -> None:
        """Say how much of the unit under way is done, in [0, 1), where one takes long."""
        self._part = part
        if self._bar is not None:
            self._bar.n = self._done + part
            self._bar.refresh()
        elif self._enabled and time.monotonic() - self._last_line >= LOG_INTERVAL_SECONDS:
            self._write_line()

    def grow(self, count: int) -> None:
        """Add `count` units to the total: there is more to do than was known."""
        if self._total is None:
            return
        self._total += count
        if self._bar is not None:
            self._bar.total = self._total

    def _write_line(self) -> None:
        self._last_line, self._written = time.monotonic(), self._done
        count = self._done + self._part
        rate = (count - self._initial) / max(self._last_line - self._started, 1e-9)
        of_total = f"/{self._total}" if self._total is not None else ""
        eta = ""
        if self._total is not None and rate > 0 and count < self._total:
            eta = f", {_duration((self._total - count) / rate)} left"
        fields = "".join(f", {name} {value}" for name, value in self._fields.items())
        shown = f"{count:.2f}" if self._part else str(self._done)
        done = f"{shown}{of_total} {self._unit}, {format_rate(rate)}/s"
        logger.info("%s: %s%s%s", self._description, done, eta, fields)


def format_rate(rate: float) -> str:
    """Write a rate so that a slow one does not read as zero: 1234.6, 12.3, 0.033."""
    return f"{rate:.1f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"


def _format(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
