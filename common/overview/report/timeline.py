"""When runs began, stopped and went on, as a table, and in which state they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from beit.common.overview.report.history import Start, history
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section, table, text
from beit.common.pages.html_page import Html
from beit.common.pages.numbers import ABSENT, count
from beit.common.runs.environment import redact

_UNBROKEN = "\u00a0"
_LAST, _LOST, _CHANGED = "last sign of life", "lost", "changed"
_BEGINNING = "the beginning"
_TITLES = ("start", "began", "from", _LAST, _LOST, "machine", _CHANGED)
_LEGEND = {
    _LAST: "The last sign of life is the last record, or what was saved at a stop.",
    _LOST: "What a start did after the checkpoint that the next one went on from is lost.",
}


def state_text(run: RunFiles) -> str:
    """Say in a few words how far a run is."""
    total, step = run.total_steps, run.step
    if run.divergence is not None:
        return f"diverged at step {run.divergence.step:,}" + (f" of {total:,}" if total else "")
    if run.kind == "probe":
        return "finished" if run.probes else "at work" if run.is_at_work else "not finished"
    if run.kind == "tokenizer" and not run.records and run.made:
        return "finished"
    if step == 0:
        return "at work, nothing recorded yet" if run.is_at_work else "nothing recorded yet"
    if total is not None and step >= total:
        return "finished"
    return f"{'at work' if run.is_at_work else 'stopped'} at step {step:,}" + (
        "" if total is None else f" of {total:,}"
    )


def duration(seconds: float) -> str:
    """Write a time: "45 s", "12 min", "3 h 20 min", "5 d 2 h"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // (24 * 60)
    if days:
        return f"{days} d {hours - 24 * days} h"
    return f"{hours} h {minutes - 60 * hours} min" if hours else f"{minutes} min"


def seconds_of(starts: Sequence[Start]) -> float | None:
    """Return how long all starts together were at work; None where nothing tells."""
    known = [start.seconds for start in starts if start.seconds is not None]
    return sum(known) if known else None


def timeline_section(runs: Sequence[RunFiles]) -> Section:
    """Return when each run began, stopped and went on."""
    rows = []
    for run in runs:
        for number, start in enumerate(history(run), 1):
            name = [run.name] if len(runs) > 1 else []
            rows.append([*name, *_row(run, start, number)])
    titles = [*(["run"] if len(runs) > 1 else []), *_TITLES]
    parts: list[Html] = []
    if rows:
        is_continued = any(row[titles.index("from")] != _BEGINNING for row in rows)
        told = [
            place
            for place, title in enumerate(titles)
            if title not in (_LAST, _LOST, _CHANGED)
            or any(row[place] != ABSENT for row in rows)
            or (title == _LOST and is_continued)  # that nothing was lost says something there
        ]
        shown = [[row[place] for place in told] for row in rows]
        parts.append(table("Starts and stops", [titles[place] for place in told], shown))
        legend = [found for title, found in _LEGEND.items() if titles.index(title) in told]
        parts.append(text(" ".join(["Times are those of the machine's clock, in UTC.", *legend])))
    parts += [
        text(f"{run.name}: {count(run.skipped_steps, 'step')} skipped, whose loss or gradients were not finite.")
        for run in runs
        if run.skipped_steps
    ]
    return Section(title="Starts and stops", anchor="starts", parts=tuple(parts))


def _row(run: RunFiles, start: Start, number: int) -> list[str]:
    record = start.record
    ranks = record.get("world_size", 1)
    machine = f"{count(ranks, 'process', plural='processes')} on {record.get('device', '?')}"
    changed = record.get("changed")
    told = (
        ", ".join(f"`{name}` {_value(pair, 0)} to {_value(pair, 1)}" for name, pair in changed.items())
        if isinstance(changed, dict)
        else ""
    )
    last = _when(start.last_seen) if start.last_seen else ABSENT
    at = f", step {start.last_step:,}" if start.last_step else ""
    took = f" ({duration(start.seconds).replace(' ', _UNBROKEN)})" if start.seconds is not None else ""
    return [
        str(number),
        _when(start.began) if start.began else ABSENT,
        f"step {start.from_step:,}" if start.is_resumed else _BEGINNING,
        f"{last}{at}{took}",
        count(start.lost_steps, "step") if start.lost_steps else ABSENT,
        machine,
        told or ABSENT,
    ]


def _value(pair: Any, place: int) -> str:
    found = pair[place] if isinstance(pair, list) and len(pair) == 2 else "?"
    return redact(str(found))


def _when(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
