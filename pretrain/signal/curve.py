"""Whether the training loss itself ever rose beyond reason: an alarm that needs no held-out images and no evaluations.

A model that knows nothing guesses, at log2 of the vocabulary. Training begins there, falls to the unigram line and
below; that several steps together lie above guessing, or above the unigram line once that was left behind, is the mark
of a learning rate too high, also where the run recovers before anybody measures. Of pixels nobody knows beforehand what
guessing takes: the first steps say it, and the mean of all stands for the unigram line.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

_BLOCK_STEPS = 8
"""Steps that are looked at together: one alone may have hard images."""
_SURE = 4.0
"""Standard errors of a block."""
_MIDDLE_OF_NORMAL = 0.6745
"""Median distance from the mean, in standard deviations."""
_MARGIN_BITS = 0.05
"""Above a line, besides; arbitrary."""
_MARGIN_SHARE = 0.05
"""The same of a squared error, as a share of the line; arbitrary."""
_MANY = 4096
"""Losses on the device before they are fetched, where nothing else asks for them."""


@dataclass(kw_only=True)
class TrainingCurve:
    """Follows the loss of every step, bits per token or a squared error, of the images of this rank.

    Its state goes into the checkpoints.
    """

    vocab_size: int | None
    """Words; None for pixels."""
    parts: int
    """Micro-batches per step."""
    first: float = math.inf
    """Of pixels, the first block; of words not used."""
    low: float = math.inf
    """The best block so far; guessing, before there is one."""
    peak: dict[str, float] = field(default_factory=dict)
    """The block that surely rose most above the best one before it: step, bits, at_least, low."""
    noise: float = 0.0
    """Of one step, the mean over blocks."""
    num_blocks: int = 0
    """Blocks so far."""
    block: list[float] = field(default_factory=list)
    """The steps of the block under way."""
    _pending: list[tuple[int, torch.Tensor]] = field(default_factory=list)

    def note(self, step: int, bits: torch.Tensor) -> None:
        """Take the loss of a micro-batch, without waiting for the device, but once in many steps."""
        if len(self._pending) >= _MANY and self._pending[-1][0] != step:
            self._settle()
        self._pending.append((step, bits.detach()))

    @property
    def _guessing(self) -> float:
        return self.first if self.vocab_size is None else math.log2(self.vocab_size)

    def alarm(self, simple: float) -> str:
        """Say what was beyond reason so far; empty where nothing was.

        `simple` is what held-out images take without looking: unigram_bits, or mean_mse.
        """
        self._settle()
        if not self.peak:
            return ""
        is_pixels = self.vocab_size is None
        margin = _MARGIN_SHARE * simple if is_pixels else _MARGIN_BITS
        was_below = self.peak["low"] < simple - margin
        line, name = (simple, "token frequencies take") if was_below else (self._guessing, "guessing takes")
        if is_pixels:
            name = "predicting the mean takes" if was_below else "the first steps took"
        if self.peak["at_least"] < line + margin:
            return ""
        value = f"{'a squared error of ' if is_pixels else ''}{self.peak['bits']:.2f}{'' if is_pixels else ' bits'}"
        return (
            f"training was unstable, {value} at step {self.peak['step']:.0f} where {name} "
            f"{line:.2f}: too high a learning rate, or too short a warmup"
        )

    def _settle(self) -> None:
        """Fetch what is pending; a step of which a part is missing is to be done again."""
        if not self._pending:
            return
        values = torch.stack([bits.float() for _, bits in self._pending]).tolist()
        by_step: dict[int, list[float]] = {}
        for (step, _), value in zip(self._pending, values, strict=True):
            by_step.setdefault(step, []).append(value)
        self._pending.clear()
        for step, parts in by_step.items():
            mean = sum(parts) / len(parts)
            if len(parts) >= self.parts and math.isfinite(mean):  # what is not finite is counted by the training
                self.block.append(mean)
            if len(self.block) == _BLOCK_STEPS:
                self._judge(step)

    def _judge(self, step: int) -> None:
        block, self.block = self.block, []
        mean = sum(block) / len(block)
        # From one step to the next, and of these the middle, so that a rise or a leap in the block is no noise; few
        # tell little, hence those of all blocks so far beside them.
        change = statistics.median(abs(after - before) for before, after in zip(block, block[1:], strict=False))
        noise = change / (_MIDDLE_OF_NORMAL * math.sqrt(2))
        self.num_blocks += 1
        self.noise += (noise - self.noise) / self.num_blocks
        error = max(noise, self.noise) / math.sqrt(len(block))
        if self.vocab_size is None and math.isinf(self.first):
            self.first = mean
        low = min(self.low, self._guessing)
        at_least = mean - _SURE * error
        if at_least > low and at_least - low > self.peak.get("at_least", low) - self.peak.get("low", low):
            self.peak = {"step": step - _BLOCK_STEPS // 2, "bits": mean, "at_least": at_least, "low": low}
        self.low = min(self.low, mean)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        self._settle()
        low = min(self.low, self._guessing)
        known = {name: value for name, value in (("low", low), ("first", self.first)) if math.isfinite(value)}
        return {**known, **{name: getattr(self, name) for name in ("peak", "noise", "num_blocks", "block")}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from an earlier `state`; one that is damaged or missing is as good as none."""
        try:
            low, block = float(state.get("low", math.inf)), [float(value) for value in state["block"]]
            noise, num_blocks = float(state["noise"]), int(state["num_blocks"])
            peak = {str(name): float(value) for name, value in state["peak"].items()}
            first = float(state.get("first", math.inf))
            if peak and set(peak) != {"step", "bits", "at_least", "low"}:
                return
        except (KeyError, TypeError, ValueError, AttributeError):
            return
        self.low, self.block, self.peak, self.noise, self.num_blocks = low, block, peak, noise, num_blocks
        self.first = first
