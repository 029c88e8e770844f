"""Progress of long work: a bar with rate and ETA on a terminal, plain lines at intervals in a log.

A terminal shows one bar at a time, in its last line; whatever else is written to it goes above, see `Terminal`.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm
from tqdm.std import Bar

from beit.common.errors import printable

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 30.0
"""Between two lines in a log; arbitrary, short enough to see that a job is alive."""
_MEASURED_SECONDS, _WORTH_SAYING_SECONDS = 2.0, 15.0
"""What a forecast of time is measured on, and the time from which on one is given; arbitrary."""
CLEAR_LINE = "\r\x1b[K"
"""Empties the line of a terminal that the cursor is in: of a bar, whichever process drew it."""
_BAR_WIDTH = 10, 24
"""Columns of the bar itself, at least and at most; arbitrary."""
_SHORT = {"images_per_second": "img/s", "images/s": "img/s", "mim_acc": "acc", "accuracy": "acc", "data_wait": "wait"}
"""Names of fields, short enough for a bar; a log has the full ones."""
_SHARES = ("acc", "wait")
"""What a bar shows in percent."""


class LogFormatter(logging.Formatter):
    """Writes records so that names of files in them cannot control a terminal, and warnings of Python in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        text = super().format(record)
        return printable(" ".join(text.split()) if record.name == "py.warnings" else text, keep="\n\t")


class Terminal:
    """A terminal as a text file, whose lines go above a bar and show control characters instead of obeying them.

    Args:
        file: The terminal.
        is_shared: Whether another process may have drawn a bar there: a line then begins by emptying the one it is in.
    """

    def __init__(self, file: TextIO, *, is_shared: bool = False) -> None:
        self._file, self._is_shared = file, is_shared
        self._is_at_start = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write a text, over bars where some are in the way; they are drawn again once the line is whole."""
        shown = printable(text, keep="\n\t")  # first: click learns from a TypeError that this is no file of bytes
        if not text:
            return 0
        with tqdm.get_lock():
            bars = list(tqdm._instances) if hasattr(tqdm, "_instances") else []
            if self._is_at_start:
                for bar in bars:
                    bar.clear(nolock=True)
                if self._is_shared:
                    shown = CLEAR_LINE + shown
            self._is_at_start = text.endswith("\n")
            self._file.write(shown)
            if bars and self._is_at_start:
                self._file.flush()
                for bar in bars:
                    bar.refresh(nolock=True)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)


def share_terminal() -> None:
    """Have lines of this process go above a bar that another one draws on the same terminal: of ranks and workers."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr = Terminal(getattr(sys.stderr, "_file", sys.stderr), is_shared=True)  # type: ignore[assignment]


class _Bar(tqdm):  # type: ignore[misc]
    """A bar in one line of the terminal, however narrow that is."""

    fields: Mapping[str, str | int | float] = {}
    """Shown behind the counts, as far as there is room."""

    def __str__(self) -> str:
        """Return the line."""
        facts = self.format_dict
        return bar_line(
            *(facts["n"], facts["total"], facts["prefix"], facts["unit"]),
            rate=facts["rate"] or (facts["n"] - facts["initial"]) / max(facts["elapsed"], 1e-9),
            fields=self.fields,
            columns=facts["ncols"] or shutil.get_terminal_size().columns,
            is_ascii=bool(facts["ascii"]),
        )


def bar_line(
    done: float,
    total: float | None,
    description: str,
    unit: str,
    *,
    rate: float,
    fields: Mapping[str, str | int | float],
    columns: int,
    is_ascii: bool = False,
) -> str:
    """Return a bar in words: what is most wanted first, as much of it as fits into `columns`, and nothing cut."""
    room = columns - 1  # terminals wrap a line that fills them
    count = f"{int(done)}" + (f"/{total:.0f}" if total is not None else "") + f" {unit}"
    left = ""
    if total is not None and rate > 0 and done < total:
        left = f"{_duration((total - done) / rate)} left"
    first, *others = [_shown(name, value) for name, value in fields.items()] or [""]
    head = f"{description} {100 * min(done / total, 1):3.0f}%" if total else description
    used = len(head) + 1 + len(count) + (_BAR_WIDTH[0] + 1 if total else 0)
    kept = []
    for piece in (left, first, _speed(rate) if rate > 0 else "", *others):
        if piece and used + 2 + len(piece) <= room:
            kept.append(piece)
            used += 2 + len(piece)
    order = [_speed(rate), left, first, *others]
    kept.sort(key=order.index)
    bar = ""
    if total:
        width = min(_BAR_WIDTH[1], _BAR_WIDTH[0] + max(0, room - used))
        glyphs = Bar.ASCII if is_ascii else Bar.UTF
        bar = " " + format(Bar(min(done / total, 1), width, glyphs), "")
    return "  ".join([f"{head}{bar} {count}", *kept])[:room]


class Progress:
    """Count `unit`s of work up to `total`.

    Args:
        total: Units in all; None when unknown.
        unit: What is counted, in the plural: "views", "images", "steps".
        description: What the work is.
        initial: Units already done by an earlier run; the rate leaves them out.
        enabled: False on every rank but the first.
        foretells: Whether to say once how long it will take, as soon as that has been measured on the first units.
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str,
        description: str,
        initial: int = 0,
        enabled: bool = True,
        foretells: bool = True,
    ) -> None:
        self._unit, self._description, self._enabled = unit, description, enabled
        self._total, self._done, self._initial = total, initial, initial
        self._fields: dict[str, str | int | float] = {}
        self._part = 0.0  # of the unit under way
        self._started = self._last_line = time.monotonic()
        self._written = -1  # the count in the last line of the log
        self._foretells = foretells and enabled and total is not None
        self._first: tuple[float, int] | None = None  # time and count when the first units were done
        self._bar: _Bar | None = None
        if enabled and sys.stderr.isatty():
            file = getattr(sys.stderr, "_file", sys.stderr)  # not through `Terminal`, which makes way for it
            shape: dict[str, Any] = {"total": total, "initial": initial, "unit": unit, "desc": description}
            # With None, a bar that runs within another one's work is taken away at its end.
            size = {"dynamic_ncols": True} if all(os.get_terminal_size(file.fileno())) else _usual_size()
            self._bar = _Bar(**shape, **size, leave=None, file=file)

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
        self._fields.update(fields)
        if self._foretells:
            self._foretell()
        if self._bar is not None:
            self._bar.fields = self._fields
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

    def _foretell(self) -> None:
        """Say how long the rest will take, unless that is hardly worth reading; the first units started things up."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, self._done
            return
        began, before = self._first
        if now - began < _MEASURED_SECONDS or self._done <= before or self._total is None:
            return
        self._foretells = False
        rate = (self._done - before) / (now - began)
        left = (self._total - self._done) / rate
        if left >= _WORTH_SAYING_SECONDS:
            about = (
                f"{left / 3600:.1f} h" if left >= 5400 else f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
            )
            logger.info("%s: about %s for %d %s", self._description, about, self._total - self._initial, self._unit)

    def _write_line(self) -> None:
        self._last_line, self._written = time.monotonic(), self._done
        count = self._done + self._part
        rate = (count - self._initial) / max(self._last_line - self._started, 1e-9)
        of_total = f"/{self._total}" if self._total is not None else ""
        eta = ""
        if self._total is not None and rate > 0 and count < self._total:
            eta = f", {_duration((self._total - count) / rate)} left"
        fields = "".join(f", {name} {_format(value)}" for name, value in self._fields.items())
        shown = f"{count:.2f}" if self._part else str(self._done)
        done = f"{shown}{of_total} {self._unit}, {format_rate(rate)}/s"
        logger.info("%s: %s%s%s", self._description, done, eta, fields)


def _usual_size() -> dict[str, int]:
    """Return a size for terminals that say they have no columns, such as those of containers and serial lines."""
    columns, rows = shutil.get_terminal_size()
    return {"ncols": columns, "nrows": rows}


def format_rate(rate: float) -> str:
    """Write a rate so that a slow one does not read as zero: 1234.6, 12.3, 0.033."""
    return f"{rate:.1f}" if rate >= 10 or rate == 0 else f"{rate:.2g}"


def _speed(rate: float) -> str:
    return f"{format_rate(rate)}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.3g} s each"


def _shown(name: str, value: str | int | float) -> str:
    """Return a field as a bar shows it: loss 6.29, acc 3.1%."""
    short = _SHORT.get(name, name)
    if isinstance(value, float):
        small = f"{value:.1e}".replace("e-0", "e-")
        value = f"{100 * value:.1f}%" if short in _SHARES else f"{value:.3g}" if abs(value) >= 1e-3 else small
    return f"{short} {value}"


def _format(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
