"""What the learning signal means, in one plain line: from the numbers of `held_out.py` and of earlier evaluations.

A rise of the held-out loss is named only where it is larger than chance and lasts: beyond three standard errors of the
difference, image by image, in two evaluations in a row. What was said is not said again until it changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beit.common.pages.numbers import percent
from beit.pretrain.signal.spread import ImageCosts

TREND_BITS = 0.02
"""A rise of the held-out loss below this matters to nobody; arbitrary."""
TREND_SHARE = 0.005
"""The same for a squared error, as a share of the zero line."""
_SURE = 3.0
"""Standard errors beyond which a difference is no chance: one alarm in 700 evaluations without a cause."""
_NINETY_FIVE = 1.96
"""Standard errors to either side that hold the true value 95 times in 100."""
_LASTING = 2
"""Evaluations in a row."""
_TELLING_BITS = 0.1
"""Where the error of a difference hides this much, there are too few images to tell."""
_LITTLE_BITS, _MUCH_BITS = 0.5, 1.5
"""Below the unigram line: encoders of 0.5 bits were hardly better than random weights, and those of 1.5 bits clearly
were, in every table of docs/results.md."""

Costs = Mapping[str, ImageCosts]


@dataclass(kw_only=True)
class Judge:
    """Follows one run from evaluation to evaluation; its state goes into the checkpoints."""

    earlier: Sequence[Mapping[str, float]] = ()
    """Records of a run of before that kept no state: its best evaluation counts, without its images."""
    grace_steps: int = 0
    """Steps until which a loss above the unigram line means nothing: warmup, and some more."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best evaluation: step, loss, train."""
    costs: dict[str, ImageCosts] = field(default_factory=dict)
    """Of some images of the best evaluation."""
    risen: int = 0
    """Evaluations in a row that were surely worse than it."""
    above: int = 0
    """Evaluations in a row, after the grace, that were surely worse than the unigram line."""
    said: str = ""
    """What the last evaluation meant."""

    def take(self, metrics: Mapping[str, float], step: int, costs: Costs | None = None, *, alarm: str = "") -> str:
        """Say in one line what an evaluation means.

        Args:
            metrics: As `HeldOut.measure` returns them.
            step: Steps completed.
            costs: Of the images, "held_out" and "train".
            alarm: What else went wrong so far.
        """
        costs = costs or {}
        loss = metrics.get("held_out_bits", metrics.get("held_out_mse", math.nan))
        if not math.isfinite(loss):
            return (
                f"held-out loss is {loss}: diverged; go back to a checkpoint before it, with a lower learning rate or "
                "stronger clipping"
            )
        alarms = [alarm] if alarm else []
        meaning = "; ".join([*self._state(metrics, step), *self._trend(metrics, step, costs), *alarms])
        is_news, self.said = meaning != self.said, meaning
        return _numbers(metrics) + (f": {meaning}" if is_news else "")

    def _state(self, metrics: Mapping[str, float], step: int) -> list[str]:
        meaning = _meaning(metrics)
        if "held_out_bits" in metrics:
            below, error = _below_unigram(metrics)
            is_above = step > self.grace_steps and below < -max(TREND_BITS, _SURE * error)
            self.above = self.above + 1 if is_above else 0
        if self.above >= _LASTING:
            return ["worse than token frequencies: unstable; a lower learning rate or stronger clipping"]
        return [meaning]

    def _trend(self, metrics: Mapping[str, float], step: int, costs: Costs) -> list[str]:
        """Compare with the evaluation that had the best held-out loss so far."""
        held_out, train = "held_out_bits", "train_bits"
        margin = TREND_BITS
        if "held_out_mse" in metrics:
            held_out, train, margin = "held_out_mse", "train_mse", TREND_SHARE * metrics["mean_mse"]
        best = self.best or _best_of(self.earlier, held_out, train, step)
        if not best or metrics[held_out] < best["loss"]:
            self.best = {"step": step, "loss": metrics[held_out], "train": metrics.get(train)}
            self.costs = {side: measured.thinned() for side, measured in costs.items()}
            self.risen = 0
            return []
        self.best = best
        rise, error = self._rise("held_out", metrics[held_out] - best["loss"], metrics, costs)
        is_sure = rise >= max(margin, _SURE * error)
        self.risen = self.risen + 1 if is_sure else 0
        if self.risen < _LASTING:
            is_hidden = "held_out_bits" in metrics and rise >= margin and not is_sure and 2 * error > _TELLING_BITS
            return ["too few held-out images to tell whether it rises"] if is_hidden else []
        since = f"since step {best['step']:.0f}"
        if best.get("train") is None or train not in metrics:
            return [f"held-out rises {since}"]
        rise, error = self._rise("train", metrics[train] - best["train"], metrics, costs)
        if rise <= -_SURE * error and rise < 0:
            return [f"held-out rises {since} while train falls: memorising; more images or views"]
        if rise >= max(margin, _SURE * error):
            return [f"held-out and train both rise {since}: unstable; a lower learning rate or stronger clipping"]
        return [f"held-out rises {since}"]

    def _rise(self, side: str, rise: float, metrics: Mapping[str, float], costs: Costs) -> tuple[float, float]:
        """Return a rise since the best evaluation and its standard error, from the images of both.

        Without them, from a run of before, the error of this evaluation alone: larger, as it should be then.
        """
        before, now = self.costs.get(side), costs.get(side)
        if before is not None and now is not None and before.num_images == now.num_images:
            return rise, now.difference(before)[1]
        return rise, metrics.get("held_out_bits_se", metrics.get("held_out_mse_se", 0.0))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        costs = {side: measured.state() for side, measured in self.costs.items()}
        return {"best": self.best, "costs": costs, "risen": self.risen, "above": self.above, "said": self.said}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from an earlier `state`; one that is damaged is as good as none."""
        try:
            costs = {side: ImageCosts.restored(measured) for side, measured in state["costs"].items()}
            best, said = dict(state["best"]), str(state["said"])
            if best:
                best = {"step": int(best["step"]), "loss": float(best["loss"]), "train": best["train"]}
            self.best, self.costs, self.said = best, costs, said
            self.risen, self.above = int(state["risen"]), int(state["above"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return


def verdict(metrics: Mapping[str, float], alarm: str = "", *, is_continued: bool = False) -> str:
    """Say in one line how a run ended, and what that is worth, from its last evaluation and what went wrong before.

    Of an encoder that is continued the bits do not tell what the features are worth: most of that it had before.
    """
    loss = metrics.get("held_out_bits", metrics.get("held_out_mse", math.nan))
    if not math.isfinite(loss):
        return f"the held-out loss is {loss}: diverged; nothing of use was learned"
    if "held_out_mse" in metrics:
        return f"{_numbers(metrics)}: {_meaning(metrics)}{f'; {alarm}' if alarm else ''}"
    below, error = _below_unigram(metrics)
    interval = f" +- {_NINETY_FIVE * error:.2f}" if 0 < error < math.inf else ""
    distance = f"held-out {loss:.2f} bits, {abs(below):.2f}{interval} {'below' if below >= 0 else 'above'} unigram"
    right = f"{percent(metrics['held_out_acc'])} of tokens right (chance {percent(metrics['unigram_acc'])})"
    worth = (_worth_of_continued if is_continued else _worth)(below, error, metrics)
    return f"{distance}, {right}: {worth}{f'; {alarm}' if alarm else ''}"


def _worth(below: float, error: float, metrics: Mapping[str, float]) -> str:
    if below < -max(TREND_BITS, _SURE * error):
        return "worse than token frequencies, nothing learned: too few steps, or too high a learning rate"
    if below < _NINETY_FIVE * error and error > _TELLING_BITS / 2:
        return f"too few held-out images ({metrics.get('held_out_images', 0):.0f}) to tell whether anything was learned"
    if below <= _NINETY_FIVE * error:
        return "nothing learned: more steps, or another learning rate"
    if below < _LITTLE_BITS:
        return "expect little, random weights may do as well; more images or steps"
    if below < _MUCH_BITS:
        return "of some use with few labels; more images or steps give more"
    return "features of use"


def _worth_of_continued(below: float, error: float, metrics: Mapping[str, float]) -> str:
    if below < -max(TREND_BITS, _SURE * error):
        return "worse than token frequencies: more steps if the head is new, or a lower learning rate"
    if below <= _NINETY_FIVE * error:
        return "the words are not learned yet: more steps, or more held-out images to tell"
    return "whether the features gained is told by probing both encoders (beit finetune linear-probe), not by bits"


def _numbers(metrics: Mapping[str, float]) -> str:
    if "held_out_mse" in metrics:
        error, mean = metrics["held_out_mse"], metrics["mean_mse"]
        beside = _beside(metrics, "train_mse")
        return (
            f"held-out squared error {error:.3f}{beside}, {percent(error / mean)} of predicting the mean ({mean:.3f})"
        )
    bits, neighbour = metrics["held_out_bits"], metrics.get("neighbour_bits")
    line = f"held-out {bits:.2f} bits per token{_beside(metrics, 'train_bits')}"
    line += f", {_distance(bits, metrics['unigram_bits'])} unigram"
    return line if neighbour is None else f"{line} and {_distance(bits, neighbour)} neighbour"


def _meaning(metrics: Mapping[str, float]) -> str:
    """Say on which side of the lines the model is, where that is more than chance."""
    if "held_out_mse" in metrics:
        is_better = metrics["held_out_mse"] < metrics["mean_mse"]
        return "learning" if is_better else "not yet better than predicting the mean"
    bits, neighbour = metrics["held_out_bits"], metrics.get("neighbour_bits")
    below, error = _below_unigram(metrics)
    if below <= 0:
        return "not yet better than token frequencies"
    if below < _NINETY_FIVE * error:
        return f"too few held-out images ({metrics.get('held_out_images', 0):.0f}) to tell it from token frequencies"
    if neighbour is not None and bits >= neighbour:
        return "learning, not yet better than copying the nearest patch"
    return "learning"


def _below_unigram(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Return the bits below the unigram line and their standard error over images; 0 in records of before."""
    return metrics["unigram_bits"] - metrics["held_out_bits"], metrics.get("below_unigram_se", 0.0)


def _best_of(records: Sequence[Mapping[str, float]], held_out: str, train: str, step: int) -> dict[str, Any]:
    before = [record for record in records if record.get(held_out) is not None and record["step"] < step]
    best = min(before, key=lambda record: record[held_out], default=None)
    return {} if best is None else {"step": best["step"], "loss": best[held_out], "train": best.get(train)}


def _beside(metrics: Mapping[str, float], name: str) -> str:
    return f" (training images {metrics[name]:.2f})" if name in metrics else ""


def _distance(value: float, line: float) -> str:
    return f"{abs(line - value):.2f} {'below' if value < line else 'above'}"
