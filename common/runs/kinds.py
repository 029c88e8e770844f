"""Which command made a run, told by its settings, so that another command names it instead of listing what differs.

Here: the table, and what a folder is refused for. Not here: folders that are no runs (`storage/documents.py`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.common.config import flatten
from beit.common.errors import InputError
from beit.common.runs.layout import CHECKPOINTS, CONFIG, FEATURES, MASK_PROBE, PROBES

PRETRAIN = "beit pretrain"
CLASSIFICATION, SEGMENTATION = "beit finetune classification", "beit finetune segmentation"
PROBE = "beit finetune linear-probe or knn"
TOKENIZER = "beit tokenizer train --kind "
"""Followed by the kind."""
_ONLY_IN = {
    "mask.mode": PRETRAIN,
    "classifier.pooling": CLASSIFICATION,
    "head.kind": SEGMENTATION,
    "objective.autoencoder_fraction": f"{TOKENIZER}dvae",
    "clustering.steps": f"{TOKENIZER}kmeans",
    "decoder.depth": f"{TOKENIZER}vqkd",
}
"""Settings that every version has recorded, and runs of one command only."""
_LEFT_BY_PROBES = (*(f"{name}.json" for name in (*PROBES, MASK_PROBE)), FEATURES)
"""What tells a probe from a training, whose settings it shares."""


def command_of(run: Path) -> str | None:
    """Return the command that a run is of; None where it cannot be told, or there is no run.

    A probe has the settings of a training, so where neither has left anything yet, it may be both.
    """
    try:
        values = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever needs the file says what is wrong with it
    command = command_of_settings(values)
    if command not in (CLASSIFICATION, SEGMENTATION):
        return command
    if any((run / name).exists() for name in _LEFT_BY_PROBES):
        return PROBE
    return command if (run / CHECKPOINTS).exists() else None


def command_of_settings(values: Mapping[str, Any]) -> str | None:
    """Return the command whose settings these are, nested or flat; None where that cannot be told."""
    names = flatten(values)
    return next((command for name, command in _ONLY_IN.items() if name in names), None)


def require_command(run: Path, command: str, *, is_read: bool = False) -> None:
    """Refuse the run of another command than `command`; `is_read` where the run is only to be looked at."""
    _refuse_other(run, command_of(run), command, is_read=is_read)


def require_same_command(run: Path | str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a run whose saved settings are those of another command than the present ones; both nested or flat."""
    _refuse_other(run, command_of_settings(saved), command_of_settings(now), is_read=False)


def _refuse_other(run: Path | str, found: str | None, command: str | None, *, is_read: bool) -> None:
    if None in (found, command) or found == command:
        return
    way_out = f"name a RUN of {command}" if is_read else "run that command to go on with it, or name another folder"
    raise InputError(f"{run} holds a run of {found}, not {command}; {way_out}")
