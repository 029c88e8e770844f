"""Which model of a fine-tuning run is kept: the newest, and beside it the best of those that were measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.common.encoder import save_model
from beit.common.runs.layout import LAST, MODEL
from beit.common.training.config import CheckpointConfig, TrainConfig
from beit.common.vit.description import CONFIG_FILE, EncoderConfig, read_encoder_config


@dataclass(kw_only=True, slots=True)
class BestModel:
    """Writes the models of one run.

    Args:
        validation_sha256: Identity of what models are measured on; None where nothing is measured.
        score: What makes one model better than another, of its metrics: the larger, the better.
    """

    validation_sha256: str | None
    score: Callable[[Mapping[str, Any]], tuple[float, ...]]
    _kept_steps: set[int] = field(default_factory=set)
    """Whose models this process kept."""

    def save(
        self,
        state: dict[str, Tensor],
        directory: Path,
        description: EncoderConfig,
        *,
        step: int,
        start_step: int,
        result: Mapping[str, Any] | None,
    ) -> bool:
        """Write `directory`/last, and `directory`/model where this step did better than any before; tell whether.

        Args:
            state: Weights.
            directory: Of the run.
            description: Of the model.
            step: Whose weights they are.
            start_step: Where this process began.
            result: Metrics of this very step; None where it was not measured.
        """
        save_model(directory / LAST, state, description)
        best = directory / MODEL
        if self.validation_sha256 is None or (
            result is not None and self._is_better(result, best, start_step=start_step)
        ):
            save_model(best, state, description)
            self._kept_steps.add(step)
            return True
        return False

    def _is_better(self, result: Mapping[str, Any], best: Path, *, start_step: int) -> bool:
        """Compare with the model kept so far.

        One that was measured on other images does not count, nor one of steps that this run has left behind.
        """
        if not (best / CONFIG_FILE).is_file():
            return True
        provenance = read_encoder_config(best).provenance
        kept, step = provenance.get("metrics"), provenance.get("step", 0)
        if not kept or provenance.get("validation_sha256") not in (None, self.validation_sha256):
            return True
        if step is not None and step not in self._kept_steps and step > start_step:
            return True
        return self.score(result) > self.score(kept)


def saved_when_measured(checkpoint: CheckpointConfig, train: TrainConfig, *, is_measured: bool) -> CheckpointConfig:
    """Return when to save: the best model is chosen among those that are, so whenever one is measured."""
    if not is_measured or checkpoint.interval_steps is not None:
        return checkpoint
    return replace(checkpoint, interval_steps=train.eval_interval_steps)
