"""Metrics and pictures to Weights & Biases, beside metrics.jsonl and TensorBoard; `wandb` is imported here only.

The run there has the id of the run directory (environment.json), so a run that goes on, on this machine or on another,
goes on there too. W&B never forgets: steps that are done again after a crash appear twice, with equal values. Entity,
login and mode are W&B's own matter, by its environment variables (WANDB_ENTITY, WANDB_API_KEY, WANDB_MODE=offline).
"""

from __future__ import annotations

import importlib.util
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image

from beit.common.errors import InputError
from beit.common.runs.layout import CONFIG, ENVIRONMENT, RUN_ID
from beit.common.storage.documents import read_json

logger = logging.getLogger(__name__)


def require_wandb(project: str | None) -> None:
    """Check, before anything is built, that what `run.wandb` asks for is installed; None asks for nothing."""
    if project is None:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # W&B leaves folders called wandb behind, which Python takes for packages
        raise InputError(
            f"run.wandb ({project}) needs the package wandb, which is not installed; pip install wandb, or "
            "leave run.wandb out"
        )


class WandbLog:
    """A `beit.common.runs.metrics.MetricsWriter` that sends everything to W&B, which keeps its files in RUN/wandb.

    Failures after the start are reported once and end the sending, never the training.
    """

    def __init__(self, run: Path, project: str) -> None:
        import wandb  # a second of imports that only its users pay

        self._wandb = wandb
        try:
            self._run: Any = wandb.init(
                project=project,
                id=read_json(run / ENVIRONMENT)[RUN_ID],
                name=run.resolve().name,
                dir=str(run),
                config=tomllib.loads((run / CONFIG).read_text(encoding="utf-8")),
                resume="allow",
            )
            # W&B's own count of calls is no step: a resumed run would have to count on from where it was.
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except wandb.Error as error:
            raise InputError(
                f"W&B does not start ({_one_line(error)}); log in with `wandb login`, set WANDB_MODE=offline, or leave "
                "run.wandb out"
            ) from None

    def write(self, record: Mapping[str, float]) -> None:
        """Send one record."""
        self._send(dict(record))

    def picture(self, name: str, image: Image, step: int) -> None:
        """Send one picture."""
        self._send({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        """Wait until everything is sent, or, offline, written."""
        if self._run is not None:
            run, self._run = self._run, None
            self._try(run.finish)

    def _send(self, values: dict[str, Any]) -> None:
        if self._run is not None:
            run = self._run
            self._try(lambda: run.log(values))

    def _try(self, work: Any) -> None:
        try:
            work()
        except self._wandb.Error as error:
            logger.warning("nothing more is sent to W&B (%s); the training goes on", _one_line(error))
            self._run = None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
