"""What happens to optimizer steps whose loss or gradients were not finite: counted, recorded, and limited.

That such a step changes nothing is `optimizer.py`'s work; here they are remembered, until a run gives up.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from beit.common.errors import RunFailed

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 3
MAX_IN_WINDOW = 10
WINDOW_STEPS = 1000


class Diverged(RunFailed):
    """Too many steps were not finite; the last checkpoint is still good."""


class NonFiniteGuard:
    """Counts non-finite steps and stops the run beyond the limits (more than 3 in a row, or 10 in 1000 steps).

    Args:
        path: File that gets one JSON line per such step; None on ranks that write nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._recent: list[int] = []
        self.total = 0
        """Since the start of the run, over resumes."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"total": self.total, "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.total, self._recent = state["total"], list(state["recent"])

    def note(self, step: int, sample_ids: list[list[str]], *, is_overflow: bool = False) -> None:
        """Record that `step` was skipped.

        Args:
            step: Counted from 0.
            sample_ids: Of the batch, per rank.
            is_overflow: Its gradients left the range of float16, and the loss scale was lowered: part of finding that
                scale, so counted, but neither recorded nor limited.
        Raises:
            Diverged: beyond a limit.
        """
        self.total += 1
        if is_overflow:
            return
        self._recent = [earlier for earlier in self._recent if earlier > step - WINDOW_STEPS] + [step]
        if self._path is not None:
            logger.warning("step %d was skipped: its loss or gradients are not finite (%d so far)", step, self.total)
            self._record(step, sample_ids)
        self._require_within_limits(step)

    def _record(self, step: int, sample_ids: list[list[str]]) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "sample_ids": sample_ids}) + "\n")
        except OSError as error:  # a full disk; not worth a training
            logger.warning("the samples of step %d were not recorded (%s)", step, error)

    def _require_within_limits(self, step: int) -> None:
        last = self._recent[-MAX_IN_A_ROW - 1 :]
        in_a_row = len(last) > MAX_IN_A_ROW and last[-1] - last[0] == MAX_IN_A_ROW
        if in_a_row or len(self._recent) > MAX_IN_WINDOW:
            limit = f"more than {MAX_IN_A_ROW} in a row" if in_a_row else f"more than {MAX_IN_WINDOW} in {WINDOW_STEPS}"
            raise Diverged(
                f"stopped at step {step}: {limit} steps were not finite; their samples are listed in "
                "nonfinite.jsonl of the run; lower optimizer.lr and resume from the last checkpoint"
            )
