"""The loss scale of float16 training: gradients too small for its range are lifted into it, and too large ones seen.

The scale is doubled after many good steps and halved after a step that overflowed, which is skipped. Everything stays
on the device, so that no step waits for the host.

Source: torch.amp.GradScaler's rule and constants. Differs: never below 1, where scaling has nothing left to give.
"""

from __future__ import annotations

import torch

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
MIN_SCALE, MAX_SCALE = 1.0, 2.0**24


class LossScale:
    """A dynamic loss scale.

    Args:
        device: Where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), INITIAL_SCALE, device=device)
        """Float scalar that the loss is multiplied with."""
        self._good_steps = torch.zeros((), device=device)

    def update(self, skipped: torch.Tensor, bad_loss: torch.Tensor) -> torch.Tensor:
        """Adapt the scale to how a step ended; the same on every rank.

        Args:
            skipped: Float scalar, 1 when gradients or losses were not finite.
            bad_loss: Float scalar, 1 when some loss was not, which no scale is to blame for.
        Returns:
            Float scalar, 1 when the step was skipped for no other reason than the scale.
        """
        is_excused = skipped * (1 - bad_loss) * (self.scale > MIN_SCALE)
        good_steps = (self._good_steps + 1) * (1 - skipped)
        is_due = (good_steps >= GROWTH_INTERVAL).float()
        factor = torch.where(is_excused > 0, 0.5, 1.0 + is_due)
        self.scale = (self.scale * factor).clamp(MIN_SCALE, MAX_SCALE)
        self._good_steps = good_steps * (1 - is_due)
        return is_excused

    def state(self) -> torch.Tensor:
        """Return what a checkpoint keeps: scale and count of good steps, float32 (2,)."""
        return torch.stack([self.scale, self._good_steps])

    def restore(self, state: torch.Tensor) -> None:
        """Continue from an earlier `state`."""
        scale, good_steps = state.to(self.scale.device)
        self.scale, self._good_steps = scale.clone(), good_steps.clone()
