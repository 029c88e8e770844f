"""What a run was asked for: recipe and settings of its command, and in what several runs differ.

The command is recorded at every start, so that this needs no recipe, which may have changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beit.common.config import flatten
from beit.common.overview.report.run_files import RunFiles
from beit.common.overview.report.section import Section, folded, keys, table, text
from beit.common.pages.numbers import short_name
from beit.common.runs.changes import SPEED_KEYS, matches
from beit.common.runs.environment import redact
from beit.common.runs.starts import command_text

_MOST_DIFFERING = 40
"""Rows of the table of differences; runs of different kinds differ in nearly everything."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command of a start asked for."""

    recipe: str
    """As it was named; empty without one."""
    settings: tuple[tuple[str, str], ...]
    """Name and value of each --set, the last of a name only."""


def asked(start: Mapping[str, Any]) -> Asked:
    """Read the command of a start; nothing where it was not recorded."""
    words = [str(word) for word in start.get("command") or ()]
    recipe, found = "", dict[str, str]()
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option not in ("--recipe", "--set"):
            continue
        value = value if equals else words[place + 1] if place + 1 < len(words) else ""
        if option == "--recipe":
            recipe = short_name(value)
        elif "=" in value:
            name, _, chosen = value.partition("=")
            found.pop(name, None)
            found[name] = redact(chosen)
    return Asked(recipe, tuple(found.items()))


def recipe_text(run: RunFiles) -> str:
    """Name the recipe of a run, for a sentence."""
    if not run.starts:
        return ""
    recipe = asked(run.starts[-1]).recipe
    return f"recipe `{recipe}`" if recipe else "no recipe"


def value_text(value: Any) -> str:
    """Write the value of a setting as it is typed."""
    if value is None:
        return "left out"
    if isinstance(value, bool):
        return str(value).lower()
    return redact(short_name(value) if isinstance(value, str) and "/" in value else str(value))


def settings_section(runs: Sequence[RunFiles]) -> Section:
    """Return recipe and settings of every run, in what runs of one kind differ, and all settings to unfold."""
    parts = [*keys(runs), *_asked_for(runs)]
    for kind in dict.fromkeys(run.kind for run in runs):
        same = [run for run in runs if run.kind == kind]
        parts += _differences(same) if len(same) > 1 else []
    for run in runs:
        parts += _all_settings(run, is_alone=len(runs) == 1)
    return Section(title="Settings", anchor="settings", parts=tuple(parts))


def _asked_for(runs: Sequence[RunFiles]) -> list[Any]:
    rows = []
    for run in runs:
        for start in run.starts[-1:]:
            found = asked(start)
            listed = ", ".join(f"`{name}={value}`" for name, value in found.settings)
            rows.append([run.name, f"`{found.recipe}`" if found.recipe else "none", listed or "none"])
    if not rows:
        return []
    return [
        text("Asked for beside what the recipe says, or the defaults where there is none."),
        table("What each run was asked for", ["run", "recipe", "set on the command line"], rows),
    ]


def _differences(runs: Sequence[RunFiles]) -> list[Any]:
    names = sorted({name for run in runs for name in run.settings})
    values = {name: [run.settings.get(name) for run in runs] for name in names if not matches(name, SPEED_KEYS)}
    differing = {name: found for name, found in values.items() if any(value != found[0] for value in found)}
    if not differing:
        return [text(f"The settings of these runs ({runs[0].kind}) are the same, except for what decides speed only.")]
    rows = [[f"`{name}`", *map(value_text, found)] for name, found in list(differing.items())[:_MOST_DIFFERING]]
    left = len(differing) - len(rows)
    caption = f"In what the runs differ ({runs[0].kind}), speed left out" + (
        f"; {left} more are not shown" * bool(left)
    )
    return [
        table(
            f"Differences: {runs[0].kind}", ["setting", *(run.name for run in runs)], rows, kind="many", caption=caption
        )
    ]


def _all_settings(run: RunFiles, *, is_alone: bool) -> list[Any]:
    if not run.settings:
        return []
    rows = [[f"`{name}`", value_text(value)] for name, value in sorted(flatten(dict(run.settings)).items())]
    name = "All settings" if is_alone else f"All settings of {run.name}"
    commands = [text(command_text(start.get("command", ()))) for start in run.starts[-1:] if start.get("command")]
    return [folded(name, [*commands, table(name, ["setting", "value"], rows, kind="plain")])]
