"""What the learning signal means, in one plain line: from the numbers of `held_out.py` and of earlier evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

TREND_BITS = 0.02
"""A rise of the held-out loss below this is taken for noise; arbitrary."""
TREND_SHARE = 0.005
"""The same for a squared error, as a share of the zero line."""


def verdict(metrics: Mapping[str, float], earlier: Sequence[Mapping[str, float]] = ()) -> str:
    """Say in one line what an evaluation means.

    Args:
        metrics: Of this evaluation, as `PretrainTask.evaluate` returns them.
        earlier: Records of the same run before it, each with its `step`; those without an evaluation do not count.
    """
    loss = metrics.get("held_out_bits", metrics.get("held_out_mse", math.nan))
    if not math.isfinite(loss):
        return (
            f"held-out loss is {loss}: diverged; go back to a checkpoint before it, with a lower learning rate or "
            "stronger clipping"
        )
    return "; ".join([_state(metrics), *_trend(metrics, earlier)])


def _state(metrics: Mapping[str, float]) -> str:
    if "held_out_mse" in metrics:
        return _pixel_state(metrics)
    bits, unigram, neighbour = metrics["held_out_bits"], metrics["unigram_bits"], metrics.get("neighbour_bits")
    line = f"held-out {bits:.2f} bits per token{_beside(metrics, 'train_bits')}, {_distance(bits, unigram)} unigram"
    if neighbour is not None:
        line += f" and {_distance(bits, neighbour)} neighbour"
    if bits >= unigram:
        meaning = "not yet better than token frequencies"
    elif neighbour is not None and bits >= neighbour:
        meaning = "learning, not yet better than copying the nearest patch"
    else:
        meaning = "learning"
    return f"{line}: {meaning}; accuracy {metrics['held_out_acc']:.1%} (chance {metrics['unigram_acc']:.1%})"


def _pixel_state(metrics: Mapping[str, float]) -> str:
    error, line = metrics["held_out_mse"], metrics["mean_mse"]
    meaning = "learning" if error < line else "not yet better than predicting the mean"
    beside = _beside(metrics, "train_mse")
    return (
        f"held-out squared error {error:.3f}{beside}, {error / line:.0%} of predicting the mean ({line:.3f}): {meaning}"
    )


def _beside(metrics: Mapping[str, float], name: str) -> str:
    return f" (training images {metrics[name]:.2f})" if name in metrics else ""


def _distance(value: float, line: float) -> str:
    return f"{abs(line - value):.2f} {'below' if value < line else 'above'}"


def _trend(metrics: Mapping[str, float], earlier: Sequence[Mapping[str, float]]) -> list[str]:
    """Compare with the evaluation that had the best held-out loss so far."""
    held_out, train, margin = "held_out_bits", "train_bits", TREND_BITS
    if "held_out_mse" in metrics:
        held_out, train, margin = "held_out_mse", "train_mse", TREND_SHARE * metrics["mean_mse"]
    before = [record for record in earlier if record.get(held_out) is not None]
    best = min(before, key=lambda record: record[held_out], default=None)
    if best is None or metrics[held_out] < best[held_out] + margin:
        return []
    since = f"since step {best['step']:.0f}"
    if best.get(train) is None or train not in metrics:
        return [f"held-out rises {since}"]
    if metrics[train] < best[train]:
        return [f"held-out rises {since} while train falls: memorising; more images or views"]
    if metrics[train] >= best[train] + margin:
        return [f"held-out and train both rise {since}: unstable; a lower learning rate or stronger clipping"]
    return [f"held-out rises {since}"]
