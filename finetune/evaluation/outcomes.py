"""What a classifier said about every labelled image, collected from all ranks in the order of the images.

Everything an evaluation reports is computed from this record (`scores.py`), so no number depends on how the images were
spread over ranks and batches.

Legend: n = images, C = classes, K = min(5, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.common.processes.distributed import World

TOP_K = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """One row per image."""

    positions: NDArray[np.int64]
    """(n,) place in the index, ascending."""
    losses: NDArray[np.float64]
    """(n,) cross-entropy in nats, without smoothing; the mean over the classes with several labels per image."""
    top_classes: NDArray[np.int64]
    """(n, K) classes with the largest logits, the largest first."""
    top_probabilities: NDArray[np.float32]
    """(n, K) of `top_classes`, in [0, 1]."""
    labels: NDArray[np.int64]
    """(n,) class id; not used with several labels per image."""
    targets: NDArray[np.bool_]
    """(n, C) classes of an image, with several labels per image; else (n, 0)."""
    probabilities: NDArray[np.float32]
    """(n, C) with several labels per image, which exclude each other's thresholds; else (n, 0)."""

    @property
    def is_multi_label(self) -> bool:
        """Whether images have several labels or none."""
        return bool(self.targets.shape[1] > 0)

    def __len__(self) -> int:
        return len(self.positions)


class OutcomeLog:
    """Takes batches of logits; what it keeps stays on the device until the end, so that no batch waits.

    Args:
        label_table: With several labels per image, bool (K + 1, C): the targets of each label; else None.
    """

    def __init__(self, label_table: NDArray[np.bool_] | None = None) -> None:
        self._table = None if label_table is None else torch.from_numpy(label_table)
        self._positions: list[int] = []
        self._rows: list[dict[str, Tensor]] = []

    def add(self, positions: Sequence[int], logits: Tensor, labels: Tensor) -> None:
        """Take the logits (B, C) float32 and labels (B,) int64 of the images at `positions`."""
        self._positions += positions
        scores = logits.log_softmax(1) if self._table is None else logits.sigmoid()
        top = scores.topk(min(TOP_K, logits.shape[1]), dim=1)
        row = {"top_classes": top.indices, "top_probabilities": top.values, "labels": labels}
        if self._table is None:
            none = logits.new_empty(len(logits), 0)
            row |= {"top_probabilities": top.values.exp(), "targets": none.bool(), "probabilities": none}
            losses = nn.functional.nll_loss(scores, labels, reduction="none")
        else:
            self._table = self._table.to(logits.device)
            targets = self._table[labels]
            row |= {"targets": targets, "probabilities": scores}
            losses = nn.functional.binary_cross_entropy_with_logits(
                logits, targets.to(logits.dtype), reduction="none"
            ).mean(1)
        self._rows.append(row | {"losses": losses.double()})

    def collect(self, world: World) -> Outcomes | None:
        """Return the record of all ranks, on every rank, or None when no rank had an image."""
        own: dict[str, Any] = {"positions": np.asarray(self._positions, np.int64)}
        if self._rows:
            own |= {name: torch.cat([row[name] for row in self._rows]).cpu().numpy() for name in self._rows[0]}
        parts = [part for part in world.gather(own) if len(part["positions"])]
        if not parts:
            return None
        whole = {field.name: np.concatenate([part[field.name] for part in parts]) for field in fields(Outcomes)}
        order = np.argsort(whole["positions"], kind="stable")
        return Outcomes(**{name: values[order] for name, values in whole.items()})
