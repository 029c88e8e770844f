"""AdamW, alone or with Muon, that leaves weights and moments alone when any rank's gradients or losses are not finite.

DeepSpeed reduces gradients during backward and clips them inside its own step, so the one place that sees what is about
to be applied, at every ZeRO stage, is the optimizer handed to it.

The loss scale of float16 training is here, too: gradients too small for its range are lifted into it, and too large
ones seen. The scale is doubled after many good steps and halved after a step that overflowed, which is skipped.
Everything stays on the device, so that no step waits for the host.

Source: torch.amp.GradScaler's rule and constants for the loss scale. Differs: never below 1, where scaling has nothing
left to give.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.training.config import OptimizerConfig

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
MIN_SCALE, MAX_SCALE = 1.0, 2.0**24
MOMENTUM, MOMENTUM_BUFFER = 0.95, "momentum_buffer"
"""Muon's, and what its state is called."""
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5
"""Coefficients of an odd polynomial that lifts small values fast, and how often it is applied."""
UPDATE_RMS = 0.2
"""Root mean square of AdamW's updates, as measured in training."""
PARTS = "muon_parts"
"""Key of a parameter group that Muon trains: how many square or long matrices lie below each other in each tensor."""
_HIDDEN = re.compile(
    r"(?:^|\.)(?:blocks|cls_pt_layers)\.\d+\.(?P<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\."
    r"(?P<part>weight|lora_a|lora_b)$"
)


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
        self._update()

    def _update(self) -> None:
        """Move the weights by their gradients, unless `found_inf` is 1."""
        super().step()


class FiniteMuon(FiniteAdamW):
    """Muon for the groups that have `PARTS`, AdamW for the others, with the same guarantees; at ZeRO 0 only.

    A matrix moves by its momentum with all singular values made about one, scaled to the size of AdamW's updates, so
    that learning rates and weight decay chosen for AdamW serve both.

    Source: Muon (Jordan et al., 2024) as `torch.optim.Muon` computes it with adjust_lr_fn="match_rms_adamw", which is
    the rule of "Muon is Scalable for LLM Training" (2025), 2.2. Differs: queries, keys and values are three matrices,
    as Muon's author advises; float32 on a CPU, where bfloat16 is slower; matrices of one shape go through the products
    together, long ones by way of the product with themselves.
    """

    def _update(self) -> None:
        groups = [group for group in self.param_groups if PARTS in group]
        gradients = {parameter: parameter.grad for group in groups for parameter in group["params"]}
        for parameter in gradients:
            parameter.grad = None  # AdamW passes over it
        super()._update()
        is_bad, is_good = self.found_inf.bool(), 1.0 - self.found_inf
        steps: dict[Tensor, Tensor] = {}
        for parameter, gradient in gradients.items():
            state = self.state[parameter]
            if MOMENTUM_BUFFER not in state:
                state[MOMENTUM_BUFFER] = torch.zeros_like(parameter)
            momentum = state[MOMENTUM_BUFFER]
            gradient.masked_fill_(is_bad, 0.0)
            momentum.lerp_(gradient, (1.0 - MOMENTUM) * is_good)
            steps[parameter] = gradient.lerp_(momentum, MOMENTUM)  # Nesterov
        directions = _directions(groups, steps)
        for group in groups:
            rate = group["lr"] * is_good
            decay = 1.0 - rate * group["weight_decay"]
            for parameter in group["params"]:
                parameter.mul_(decay).sub_(directions[parameter].mul_(rate))


def _directions(groups: Iterable[dict[str, Any]], steps: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """Return the update of every parameter for a rate of 1; matrices of one shape are made orthogonal in one go."""
    stacks: dict[tuple[int, int], dict[Tensor, Tensor]] = {}
    for group in groups:
        for parameter in group["params"]:
            matrices = steps[parameter].reshape(group[PARTS], -1, parameter.shape[1])  # (parts, rows, columns)
            rows, columns = matrices.shape[1:]
            wide = matrices.mT if rows > columns else matrices
            stacks.setdefault((wide.shape[1], wide.shape[2]), {})[parameter] = wide
    directions = {}
    for (_, long_side), stack in stacks.items():
        found = orthogonal(torch.cat(list(stack.values()))) * (UPDATE_RMS * long_side**0.5)
        pieces = found.split([len(wide) for wide in stack.values()])
        for parameter, wide, piece in zip(stack, stack.values(), pieces, strict=True):
            is_turned = wide.shape[2] != parameter.shape[1]
            directions[parameter] = (piece.mT if is_turned else piece).reshape(parameter.shape)
    return directions


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of wide matrices (M, R, C), R <= C, near one: to between 0.7 and 1.2, by five steps.

    Zero stays zero. Each step puts a x + b x^3 + c x^5 for a singular value x; in long matrices it is applied to the
    small product of the matrix with itself, and to the matrix once, at the end.
    """
    is_half = matrices.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    now = matrices.to(torch.bfloat16 if is_half else torch.float32)
    now = now / now.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    if is_half or now.shape[2] < 2 * now.shape[1]:  # powers of the product need float32
        for _ in range(NEWTON_SCHULZ_STEPS):
            product = now @ now.mT
            now = torch.baddbmm(now, torch.baddbmm(product, product, product, beta=b, alpha=c), now, beta=a)
        return now.to(matrices.dtype)
    product, identity = now @ now.mT, torch.eye(now.shape[1], device=now.device)
    factor = identity
    for _ in range(NEWTON_SCHULZ_STEPS):
        step = torch.baddbmm(product, product, product, beta=b, alpha=c) + a * identity
        factor, product = step @ factor, step @ product @ step
    found: Tensor = factor @ now
    return found.to(matrices.dtype)


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return the trained matrices within the transformer blocks of a model, and of how many each is made.

    They are found by their official names: queries, keys and values are three in one; low-rank updates count, too.
    """
    found = {}
    for name, parameter in model.named_parameters():
        match = _HIDDEN.search(name)
        if match and parameter.requires_grad:
            is_three = match["layer"] == "attn.qkv" and match["part"] != "lora_a"
            found[parameter] = 3 if is_three else 1
    return found


def check_optimizer(config: OptimizerConfig, model: nn.Module, *, zero_stage: int) -> None:
    """Refuse an optimizer that cannot train this model in this way."""
    if config.kind == "adamw":
        return
    require(
        zero_stage == 0,
        f'optimizer.kind ("muon") needs whole matrices, which deepspeed.zero_stage = {zero_stage} cuts into pieces; '
        'set it to 0, or optimizer.kind to "adamw"',
    )
    require(
        bool(hidden_matrices(model)),
        'optimizer.kind ("muon") is for the matrices of transformer blocks, and none are trained here; use "adamw"',
    )


def build_optimizer(
    config: OptimizerConfig, groups: Sequence[dict[str, Any]], model: nn.Module, *, zero_stage: int
) -> FiniteAdamW:
    """Make the optimizer that the settings name for a model's parameter groups."""
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    clip_norm = config.clip_grad if zero_stage == 0 else None
    if config.kind == "adamw":
        return FiniteAdamW(groups, clip_norm=clip_norm, **options)
    return FiniteMuon(_marked(groups, hidden_matrices(model)), clip_norm=clip_norm, **options)


def _marked(groups: Iterable[dict[str, Any]], matrices: dict[nn.Parameter, int]) -> Iterator[dict[str, Any]]:
    """Split groups such that what Muon takes is apart, by the number of its parts."""
    for group in groups:
        by_parts: dict[int | None, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_parts.setdefault(matrices.get(parameter), []).append(parameter)
        for parts, params in by_parts.items():
            yield {**group, "params": params, **({} if parts is None else {PARTS: parts})}


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
