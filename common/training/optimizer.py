"""AdamW that leaves weights, moments and step count alone when any rank's gradients or losses are not finite.

DeepSpeed reduces gradients during backward and clips them inside its own step, so the one place that sees what is about
to be applied, at every ZeRO stage, is the optimizer handed to it.

The loss scale of float16 training is here, too: gradients too small for its range are lifted into it, and too large
ones seen. The scale is doubled after many good steps and halved after a step that overflowed, which is skipped.
Everything stays on the device, so that no step waits for the host.

Source: torch.amp.GradScaler's rule and constants for the loss scale. Differs: never below 1, where scaling has nothing
left to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
MIN_SCALE, MAX_SCALE = 1.0, 2.0**24


class FiniteAdamW(torch.optim.AdamW):
    """Fused AdamW with a finite check across ranks.

    The verdict stays on the device: the fused kernel takes it as `found_inf` and does nothing where it is 1, so a check
    on every step costs no synchronisation.

    Args:
        params: Parameter groups.
        clip_norm: Largest global L2 norm, applied here; None where DeepSpeed clips (ZeRO 1 to 3: ranks own pieces).
        options: AdamW's own: lr, betas, eps.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, clip_norm: float | None, **options: Any) -> None:
        super().__init__(params, fused=True, **options)
        self.clip_norm = clip_norm
        device = self.param_groups[0]["params"][0].device
        self.found_inf = torch.zeros((), device=device)
        """Float scalar: 1 when the last step was skipped. Read by the fused kernel under this name."""
        self.bad_loss = torch.zeros((), device=device)
        """Float scalar, set by the engine: 1 when a loss of this step was not finite."""
        self.grad_norm = torch.zeros((), device=device)
        """Float scalar: L2 norm before clipping of the gradients this rank stepped with."""
        self.loss_scale: torch.Tensor | None = None
        """Float scalar that the gradients still carry; None where they are as they should be."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update, or nothing at all on all ranks."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        for parameter in params:
            if parameter.grad is None:  # not used in this step, for which DeepSpeed's reduction would put zeros, too
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in params]
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale)
        self.grad_norm = torch.nn.utils.get_total_norm(gradients).to(self.bad_loss.device)
        bad = torch.maximum(self.bad_loss, (~torch.isfinite(self.grad_norm)).float())
        verdicts = torch.stack([bad, self.bad_loss])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(verdicts, op=dist.ReduceOp.MAX)
        self.found_inf, self.bad_loss = verdicts.unbind()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(params, self.clip_norm, self.grad_norm)
        super().step()


class LossScale:
    """A dynamic loss scale, on the device of the model."""

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
