"""When a run was started, how far each start got, and what was lost: from its record of starts and TensorBoard's files.

metrics.jsonl has no times, and loses what was done after the checkpoint that a run went on from. TensorBoard's files
lose nothing: one belongs to each start, and every event in it has a time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from beit.common.overview.report.run_files import RunFiles
from beit.common.runs.layout import TENSORBOARD
from beit.common.runs.starts import start_time

_CLOCKS_APART = 120.0
"""Seconds between the record of a start and its first event, at most, are long where much is read first; a file that
was begun after the next start belongs to that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One start of a run."""

    began: datetime | None
    """When; None where the record is damaged."""
    from_step: int
    """Where it went on; 0 at the beginning."""
    is_resumed: bool
    """Whether it went on from a checkpoint."""
    last_seen: datetime | None = None
    """When it last wrote something; None where nothing tells."""
    last_step: int | None = None
    """Step of its last record, or that it saved when it was stopped, if the next one went on from that."""
    lost_steps: int = 0
    """Of those that the next start did not go on from."""
    record: Mapping[str, Any]
    """What environment.json says of it."""

    @property
    def seconds(self) -> float | None:
        """From beginning to last sign of life."""
        if self.began is None or self.last_seen is None:
            return None
        return max(0.0, (self.last_seen - self.began).total_seconds())


def history(run: RunFiles) -> list[Start]:
    """Return the starts of a run in their order."""
    began = [start_time(start) for start in run.starts]
    files = [found for file in sorted((run.path / TENSORBOARD).glob("events.*")) if (found := _seen(file)) is not None]
    starts = []
    for place, record in enumerate(run.starts):
        following = next((time for time in began[place + 1 :] if time is not None), None)
        own = [file for file in files if _belongs(file[0], began[place], following)]
        from_step = _resumed_step(record)
        starts.append(
            Start(
                began=began[place],
                from_step=from_step or 0,
                is_resumed=from_step is not None,
                last_seen=max((file[1] for file in own), default=None),
                last_step=max((file[2] for file in own), default=None),
                record=record,
            )
        )
    return _with_losses(starts)


def _with_losses(starts: Sequence[Start]) -> list[Start]:
    """Say of each start what of it the next one did not go on from."""
    found = list(starts)
    for place, (start, following) in enumerate(pairwise(starts)):
        if start.last_step is not None:
            lost = max(0, start.last_step - following.from_step)
            # A stop is saved between two records, and the next start went on from there.
            found[place] = replace(start, last_step=max(start.last_step, following.from_step), lost_steps=lost)
    return found


def _belongs(time: datetime, began: datetime | None, following: datetime | None) -> bool:
    return began is not None and began <= time and (following is None or time < following)


def _resumed_step(record: Mapping[str, Any]) -> int | None:
    """Return the step of the checkpoint that a start went on from; None for a start from zero."""
    number = str(record.get("resumed_from") or "").rpartition("step_")[2]
    return int(number) if number.isdecimal() else None


def _seen(file: Path) -> tuple[datetime, datetime, int] | None:
    """Return first and last time and the last step of an event file; None for one without events, or damaged ones."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    first, last, step = 0.0, 0.0, 0
    try:
        for data in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(data)
            first, last = first or event.wall_time, event.wall_time
            if event.HasField("summary"):  # where a writer begins anew it notes the step it will come to
                step = max(step, event.step)
    except (OSError, ValueError, struct.error):
        return None
    if not first:
        return None
    return datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC), step
