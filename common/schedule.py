"""Learning rate and weight decay over the steps of a run; torch-free."""

from __future__ import annotations

import math

from beit.common.errors import require


def cosine_schedule(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Evaluate linear warmup from 0 followed by half a cosine down towards `final`.

    Both ends of the warmup are included, so step 0 has the value 0 exactly, and the peak stands twice: at the last
    warmup step and at the first cosine step. The last step stays one cosine step short of `final`.

    Args:
        step: Optimizer step, from 0; past the end the value of the last step holds.
        total_steps: Steps of the run, warmup included.
        warmup_steps: Steps of the warmup; 0 starts at the peak.
        peak: Value at the end of the warmup.
        final: Value the cosine approaches.

    Returns:
        The value at this step.

    Raises:
        InputError: warmup_steps is outside [0, total_steps].
    Source: the released BEiT code. Differs: a warmup given in steps alone works, and steps past the end are defined.
    """
    require(
        0 <= warmup_steps <= total_steps,
        f"warmup_steps ({warmup_steps}) must be in [0, total_steps ({total_steps})]; shorten the warmup",
    )
    step = min(step, total_steps - 1)
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))
