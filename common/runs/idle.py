"""Settings without effect beside the others of a run: one line each, and never an error, as recipes may set them, too.

Which setting needs which other one is said by each stage, beside its settings; here are those of every training.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from beit.common.processes.launcher_env import launched_rank
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE
from beit.common.runs.changes import matches

logger = logging.getLogger(__name__)

_OVERRULED = {"train.epochs": "train.steps", "optimizer.warmup_epochs": "optimizer.warmup_steps"}
"""Settings, and what they are not looked at beside."""
_ALWAYS_USED = ("train.seed", "run.report")
"""Where nothing is trained, too: of random weights that are measured as they are, and of every run's page."""


class Need(NamedTuple):
    """What one setting needs to have an effect."""

    setting: str
    """Section and key."""
    is_met: bool
    """Whether it has one."""
    why: str
    """As it reads after "has no effect": beside which others, and the way out."""


def training_needs(config: Any) -> list[Need]:
    """Return the needs of what all trainings have."""
    schedule = config.optimizer.schedule
    return [
        Need(
            "optimizer.power",
            schedule == "poly",
            f'with optimizer.schedule="{schedule}"; set that to "poly", or leave it out',
        )
    ]


def warn_of_idle(config: Any, needs: Iterable[Need]) -> None:
    """Warn of every setting that is not as by default and has no effect; of several ranks the first one does.

    Args:
        config: All settings, a dataclass.
        needs: Of this kind of run.
    """
    if launched_rank():
        return
    for line in idle_lines(config, needs):
        logger.warning("%s", line)


def idle_lines(config: Any, needs: Iterable[Need]) -> list[str]:
    """Return what `warn_of_idle` says, line by line."""
    lines = []
    for need in needs:
        *sections, name = need.setting.split(".")
        section = config
        for part in sections:
            section = getattr(section, part)
        value = getattr(section, name)
        if not need.is_met and value != _default(section, name):
            lines.append(f"{need.setting} ({_shown(value)}) has no effect {need.why}")
    return lines


def warn_of_overruled(config: Any, overrides: Sequence[str]) -> None:
    """Warn of lengths in epochs that a user gave by --set beside a length in steps, which counts."""
    for name, stronger in _OVERRULED.items():
        value = _value(config, stronger) if name in _names(overrides) else None
        if value is not None:
            _say_once(
                f"--set {name} has no effect beside {stronger} ({value}); add --set {stronger}=none, or leave it out"
            )


def warn_of_unused(overrides: Sequence[str], unused: Sequence[str], task: str) -> None:
    """Warn of settings that a user gave by --set and that `task` never looks at: names, or prefixes ending in a dot."""
    for name in _names(overrides):
        if matches(name, unused) and name not in _ALWAYS_USED:
            _say_once(f"--set {name} has no effect on {task}; leave it out")


def _names(overrides: Sequence[str]) -> list[str]:
    return [override.partition("=")[0].strip() for override in overrides]


def _say_once(line: str) -> None:
    """Warn, unless the first of several ranks or the command that started this one does."""
    if not launched_rank() and LAUNCHER_PID_VARIABLE not in os.environ:
        logger.warning("%s", line)


def _value(config: Any, setting: str) -> Any:
    for part in setting.split("."):
        config = getattr(config, part, None)
    return config


def _default(section: Any, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(section) if field.name == name)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
