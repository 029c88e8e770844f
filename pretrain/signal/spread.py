"""What each held-out image costs, and how far means over a few images can be trusted.

Two evaluations of a run look at the same images under the same masks, so their difference is known far better than
either: its error is that of the differences image by image.

n images; the cost of one is summed over its masked patches, of which it has `weights`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.processes.distributed import World
from beit.common.storage.samples import spread_evenly
from beit.common.tokenizers.discounting import Float64Array, Int64Array

_KEPT_IMAGES = 512
"""Of which a checkpoint keeps the costs; enough to know their spread to 3 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCosts:
    """Costs of the images of one evaluation, or of a part of them."""

    positions: Int64Array
    """(n,) which images, ascending."""
    costs: Float64Array
    """(n,) in bits, or squared errors."""
    weights: Float64Array
    """(n,) masked patches."""
    lines: Float64Array
    """(n,) costs of a model that looks at nothing: the unigram line; NaN where there is none."""
    num_images: int
    """Images of the evaluation, of which these are all or a part."""

    def mean(self) -> tuple[float, float]:
        """Return what a patch costs, and the standard error of it."""
        return self._mean(self.costs, self.weights)

    def difference(self, other: ImageCosts) -> tuple[float, float]:
        """Return how much more a patch costs here than there, and the standard error of it; over images in both."""
        _, here, there = np.intersect1d(self.positions, other.positions, assume_unique=True, return_indices=True)
        return self._mean(self.costs[here] - other.costs[there], self.weights[here])

    def below_line(self) -> tuple[float, float]:
        """Return how much less than the line a patch costs, and the standard error of it."""
        return self._mean(self.lines - self.costs, self.weights)

    def _mean(self, costs: Float64Array, weights: Float64Array) -> tuple[float, float]:
        """Return a ratio of sums and its standard error, from how the images differ (the delta method)."""
        if not len(costs) or not weights.sum():
            return math.nan, math.nan
        mean = float(costs.sum() / weights.sum())
        if len(costs) < 2:
            return mean, math.inf
        spread = float(np.std((costs - mean * weights) / weights.mean(), ddof=1))
        return mean, spread / math.sqrt(max(len(costs), self.num_images))

    def thinned(self) -> ImageCosts:
        """Return those of a few images, spread evenly: how images differ is known from them."""
        kept = spread_evenly(len(self.positions), _KEPT_IMAGES)
        return ImageCosts(
            positions=self.positions[kept],
            costs=self.costs[kept],
            weights=self.weights[kept],
            lines=self.lines[kept],
            num_images=self.num_images,
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        names = ("positions", "costs", "weights", "lines")
        return {name: _text(getattr(self, name)) for name in names} | {"num_images": self.num_images}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ImageCosts:
        """Return what had such a `state`; any error stands for damage."""
        costs, weights, lines = (_array(state[name], np.float64) for name in ("costs", "weights", "lines"))
        positions, num_images = _array(state["positions"], np.int64), int(state["num_images"])
        if not len(positions) == len(costs) == len(weights) == len(lines):
            raise ValueError("arrays of different lengths")
        return cls(positions=positions, costs=costs, weights=weights, lines=lines, num_images=num_images)


class CostLog:
    """Takes the costs of images, batch by batch on every rank."""

    def __init__(self) -> None:
        self._rows: list[tuple[Int64Array, Float64Array]] = []

    def add(self, positions: Any, *rows: Any) -> None:
        """Take a batch: positions (b,), and costs, weights and lines, (b,) each."""
        self._rows.append((np.asarray(positions, np.int64), np.stack([np.asarray(row, np.float64) for row in rows], 1)))

    def collect(self, world: World) -> ImageCosts | None:
        """Return the record of all ranks, on every rank; None where no rank had an image."""
        own = [np.concatenate(parts) for parts in zip(*self._rows, strict=True)] if self._rows else None
        parts = [part for part in world.gather(own) if part is not None]
        if not parts:
            return None
        positions, rows = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(positions, kind="stable")
        costs, weights, lines = rows[order].T
        return ImageCosts(
            positions=positions[order], costs=costs, weights=weights, lines=lines, num_images=len(positions)
        )


def _text(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _array(text: str, dtype: Any) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).copy()
