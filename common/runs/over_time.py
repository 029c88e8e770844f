"""Pictures that a run keeps of a few moments, so that one can see how they came about.

Every evaluation draws a sheet of the same images over the one before (`metrics.py`). Of the first evaluation, and of
those at a few shares of the run, closer together at its beginning, a copy stays in RUN/pictures. Which do follows from
the steps alone, so a run that goes on keeps those that it would have kept, and none is ever taken away again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from beit.common.runs.layout import PICTURES

SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Of a run; the first evaluation at or after each is kept. Much changes early."""
_NAME = re.compile(r"(?P<name>[a-z-]+)-step-(?P<step>\d+)\.png")


def is_moment(step: int, total_steps: int, kept: Iterable[int]) -> bool:
    """Tell whether the picture drawn after `step` steps is to stay, where those of `kept` steps do."""
    earlier = [one for one in kept if one < step]
    due = [share * total_steps for share in SHARES if share * total_steps <= step]
    return any(all(one < moment for one in earlier) for moment in due)


def moment_file(run: Path, name: str, step: int) -> Path:
    """Return where the picture `name` of a moment is kept."""
    return run / PICTURES / f"{name}-step-{step}.png"


def moments(run: Path) -> dict[str, dict[int, Path]]:
    """Return the pictures that a run kept, by name and in the order of their steps."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((run / PICTURES).glob("*.png")):
        match = _NAME.fullmatch(path.name)
        if match:
            found.setdefault(match["name"], {})[int(match["step"])] = path
    return {name: dict(sorted(steps.items())) for name, steps in found.items()}


def forget_later(run: Path, step: int) -> None:
    """Remove pictures of work that was lost: those after `step`."""
    for steps in moments(run).values():
        for later, path in steps.items():
            if later > step:
                path.unlink(missing_ok=True)
