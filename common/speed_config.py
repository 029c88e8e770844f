"""Settings that decide how fast a training runs and what is measured of it, never what is learned; torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from beit.common.errors import require

_WINDOW = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedConfig:
    """The `[speed]` section: time and memory of a step of a vision transformer."""

    compile: bool = False
    """Put the model through torch.compile. The first step then takes a minute or more, and a C++ compiler must be
    installed; on a GPU a C compiler and triton. Not with ZeRO 3."""
    activation_checkpointing: bool = False
    """Keep only what enters each block, and compute the rest again in the backward pass: a model of many blocks or a
    large micro-batch then fits, for about a third more time. Gradients are the same, bit for bit."""
    peak_tflops: float | None = None
    """What a rank's device can do at most, in 10^12 multiplications and additions per second in the precision of the
    run; `mfu` in metrics.jsonl is relative to it. Left out, the data sheet's value of common GPUs, else no mfu."""

    def __post_init__(self) -> None:
        """Check the range."""
        peak = self.peak_tflops
        require(peak is None or peak > 0, f"speed.peak_tflops ({peak}) must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """The `[profile]` section: a look at where the time of a few steps goes."""

    steps: str | None = None
    """Steps to record, as FIRST:END, counted from 0 and without END, such as 10:13. Each rank leaves a trace for
    Perfetto or chrome://tracing in RUN/profile, on a GPU also a snapshot of its memory. Left out, nothing is recorded.
    """

    def __post_init__(self) -> None:
        """Check the form."""
        if self.steps is not None:
            match = _WINDOW.fullmatch(self.steps)
            require(
                match is not None and int(match[1]) < int(match[2]),
                f"profile.steps ({self.steps}) must be FIRST:END with FIRST < END, such as 10:13",
            )

    @property
    def window(self) -> range:
        """The steps to record; empty where there are none."""
        if self.steps is None:
            return range(0)
        first, end = self.steps.split(":")
        return range(int(first), int(end))
