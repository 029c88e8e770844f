"""How often a training evaluates where the settings leave it open: counted before the first step, from images.

So the same command evaluates at the same steps on any day. The guard that heeds the clock of the run is
`common/training/rhythm.py`.
"""

from __future__ import annotations

import math

SHARE = 0.1
"""Of a run's time, the most that evaluations take by default."""
_FORWARD = 0.5
"""Of the time of an image trained on, what an evaluated one takes: a third for the forward pass, and its reading, which
nothing hides."""
_FIXED_SECONDS = 0.2
"""What an evaluation takes besides its images: a loader, pictures and their files. Measured on a CPU."""
_SPEED = {"cpu": (1e11, 1000.0), "cuda": (1e14, 10_000.0)}
"""Operations and images per second that a rank of a kind of device trains with: what turns the seconds above into
images, however fast this very machine is."""


def evaluation_cost(images: float, *, flops: float | None, device: str, world_size: int) -> float:
    """Return what one evaluation costs, in images trained on.

    Args:
        images: That it looks at, over all ranks.
        flops: Of one image trained on; None where nobody knows.
        device: Type of the ranks' device.
        world_size: How many ranks there are.
    """
    if not images:
        return 0.0
    operations, most = _SPEED["cpu" if device == "cpu" else "cuda"]
    images_per_second = most if flops is None else min(most, operations / flops)
    return _FORWARD * images + _FIXED_SECONDS * images_per_second * world_size


def default_interval(cost: float, *, per_epoch: int, total_steps: int, global_batch_size: int) -> int:
    """Return the steps between two evaluations: an epoch, or as many as leave training nine tenths of the work.

    At least as many as the whole run has where one evaluation alone is more: then there is only that at the end.

    Args:
        cost: Of one evaluation, from `evaluation_cost`; 0 where nothing is measured, or at no cost.
        per_epoch: Steps of an epoch.
        total_steps: Of the run.
        global_batch_size: Images of a step.
    """
    if not cost:
        return per_epoch
    trained = total_steps * global_batch_size
    evaluations = max(1, math.floor(SHARE / (1 - SHARE) * trained / cost))
    return max(per_epoch, math.ceil(total_steps / evaluations))


def due_steps(after: int, interval: int, *, total_steps: int, until: int | None = None) -> list[int]:
    """Return the steps with an evaluation after a step, up to the end or `until`.

    An interval that ends just before the run does is left to the evaluation there: epochs seldom divide into whole
    steps, so the last one often ends a step or two before the run.
    """
    last = total_steps if until is None else until
    due = [
        step
        for step in range((after // interval + 1) * interval, last + 1, interval)
        if 10 * (total_steps - step) >= interval
    ]
    return due + [total_steps] * (after < total_steps <= last and total_steps not in due)
