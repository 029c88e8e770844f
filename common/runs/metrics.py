"""Metrics on disk: one JSON object per line in metrics.jsonl, the same numbers and pictures for TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL.Image import Image

from beit.common.errors import InputError
from beit.common.pages.pictures import png_bytes
from beit.common.runs.layout import METRICS, TENSORBOARD
from beit.common.runs.over_time import forget_later, is_moment, moment_file, moments
from beit.common.storage.documents import parse_json
from beit.common.storage.files import write_atomic

logger = logging.getLogger(__name__)


class MetricsWriter(Protocol):
    """One place that records go to."""

    def write(self, record: Mapping[str, float]) -> None:
        """Take one record; it has a `step`."""

    def picture(self, name: str, image: Image, step: int) -> None:
        """Take one RGB picture of what the model does at `step`."""

    def close(self) -> None:
        """Finish."""


class Metrics:
    """Hands records and pictures on to all writers of a run; on ranks that write nothing there is none."""

    def __init__(self, *writers: MetricsWriter) -> None:
        self._writers = writers

    def write(self, record: Mapping[str, float]) -> None:
        """Hand on the record."""
        for writer in self._writers:
            writer.write(record)

    def picture(self, name: str, image: Image, step: int) -> None:
        """Hand on the picture."""
        for writer in self._writers:
            writer.picture(name, image, step)

    def close(self) -> None:
        """Close all."""
        for writer in self._writers:
            writer.close()


class MetricsLog:
    """Writes metrics.jsonl and tensorboard/ of a run, and its pictures.

    A disk that is full costs records, and is said once, but no training: what must not be lost is in the checkpoints.

    Args:
        run: The run directory.
        step: Records of later steps, from work that was lost, are removed first.
        total_steps: Of the whole run, which decides the moments whose pictures stay.
    """

    def __init__(self, run: Path, step: int, *, total_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second of imports only training needs

        self._run, self._path, self._total_steps = run, run / METRICS, total_steps
        truncate_metrics(self._path, step)
        forget_later(run, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: SummaryWriter | None = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)
        self._has_warned = False

    def write(self, record: Mapping[str, float]) -> None:
        """Append one record; values that are not finite become null, which JSON has, unlike NaN."""
        clean = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self._survive(lambda: self._append(json.dumps(clean) + "\n"))
        self._show(lambda board: _add_scalars(board, record))

    def picture(self, name: str, image: Image, step: int) -> None:
        """Write RUN/NAME.png, replacing an earlier one, keep it where it is a moment, and show it in TensorBoard."""
        data = png_bytes(image, is_quick=True)
        write_atomic(self._run / f"{name}.png", data)
        if is_moment(step, self._total_steps, moments(self._run).get(name, ())):
            kept = moment_file(self._run, name, step)
            kept.parent.mkdir(exist_ok=True)
            write_atomic(kept, data)
        self._show(lambda board: board.add_image(name, np.asarray(image), step, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close both."""
        self._survive(self._file.close)
        self._show(lambda board: board.close())

    def _append(self, line: str) -> None:
        # What could not be written stays in the file's buffer, and is tried again with the next record.
        self._file.write(line)
        self._file.flush()

    def _show(self, action: Callable[[Any], None]) -> None:
        """Do something to TensorBoard's files; after an error they are given up, as its writer gives up then."""
        if self._board is not None and not self._survive(lambda: action(self._board)):
            self._board = None

    def _survive(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except OSError as error:
            if not self._has_warned:
                logger.warning("metrics are not written any more (%s); training goes on", error)
            self._has_warned = True
            return False
        return True


def _add_scalars(board: Any, record: Mapping[str, float]) -> None:
    for name, value in record.items():
        if name != "step":
            board.add_scalar(name, value, int(record["step"]))


def open_metrics(run: Path, step: int, *, total_steps: int, wandb_project: str | None) -> Metrics:
    """Open all that records of a run go to, on the one rank that writes; those of steps after `step` are removed."""
    log = MetricsLog(run, step, total_steps=total_steps)
    if wandb_project is None:
        return Metrics(log)
    from beit.common.runs.wandb_log import WandbLog

    return Metrics(log, WandbLog(run, wandb_project))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all complete records of a metrics.jsonl, what is no number left out of them."""
    return [{name: value for name, value in record.items() if _is_number(value)} for record in read_records(path)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of steps; a line cut short by a crash, or damaged, is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            record = parse_json(line.encode(), label=str(path))
        except InputError:
            continue
        step = record.get("step") if isinstance(record, dict) else None
        if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
            records.append(record)
    return records


def _is_number(value: Any) -> bool:
    """Tell whether a value is what a metric can be; null is one that was not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def truncate_metrics(path: Path, step: int) -> None:
    """Remove records after `step`, so that a resumed run has one record per step."""
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept).encode())
