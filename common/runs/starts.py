"""What a run recorded of its starts, in the words of a reader: date, version, command.

What is recorded is `environment.py`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from beit.common.errors import InputError
from beit.common.pages.numbers import short_name
from beit.common.runs.environment import STARTS, read_environment, redact
from beit.common.runs.layout import ENVIRONMENT

_ABSOLUTE = re.compile(r"^((?:[^/\s]*=)?)(/.+)$")


def recorded_starts(run: Path) -> list[dict[str, Any]]:
    """Return what a run recorded of each start; empty where there is no such record, or none that can be read."""
    try:
        return [dict(start) for start in read_environment(run / ENVIRONMENT).get(STARTS, [])]
    except (InputError, OSError):
        return []


def last_start(run: Path) -> dict[str, Any]:
    """Return what a run recorded of its last start; empty where nothing is known of it."""
    starts = recorded_starts(run)
    return starts[-1] if starts else {}


def start_time(start: Mapping[str, Any]) -> datetime | None:
    """Return when a start began; None where its record is damaged."""
    try:
        return datetime.strptime(str(start.get("time")), "%Y-%m-%dT%H:%M:%S%z")
    except ValueError:
        return None


def named(path: str) -> str:
    """Name a place without the folders before it and without what may be secret."""
    return short_name(redact(path))


def command_text(words: Sequence[str]) -> str:
    """Write a command as it was typed, except that absolute paths lose all but their ends; as code. Empty for none."""
    if not words:
        return ""
    program = Path(words[0]).stem
    shown = ["beit" if program == "cli" else program, *map(_shortened_word, words[1:])]
    return f"`{' '.join(shown)}`".replace("\n", " ")


def _shortened_word(word: str) -> str:
    found = _ABSOLUTE.match(word)
    if found is None:
        return shlex.quote(word)
    short = short_name(found[2])
    # Nobody is to take it for a path that can be typed again.
    return f"{found[1]}…/{short}" if f"/{short}" != found[2] else shlex.quote(word)


def when(start: Mapping[str, Any]) -> str:
    """Write date and version."""
    parts = [str(start.get("time", ""))[:16].replace("T", " ")]
    parts += [f"beit {start['beit']}"] if start.get("beit") else []
    parts += [f"commit {str(start['git_commit'])[:12]}"] if start.get("git_commit") else []
    return ", ".join(part for part in parts if part)
