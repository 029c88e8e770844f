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
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.training.config import OptimizerConfig
from beit.common.training.engine_settings import by_adamw, check_partition

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000
MIN_SCALE, MAX_SCALE = 1.0, 2.0**24
MOMENTUM, MOMENTUM_BUFFER = 0.95, "momentum_buffer"
"""Muon's, and what its state is called."""
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.7750, 2.0315), 5
"""Coefficients of an odd polynomial that lifts small values fast, and how often it is applied."""
UPDATE_RMS = 0.2
"""Root mean square of AdamW's updates, as measured in training."""
_BYTES_AT_ONCE = 512 * 1024
"""Of matrices that go through the steps together on a CPU, so that they stay in a core's cache."""
PARTS = "muon_parts"
"""Key of a parameter group that Muon trains: how many square or long matrices lie below each other in each tensor."""
_HIDDEN = re.compile(
    r"(?:^|\.)(?:blocks|cls_pt_layers)\.\d+\.(?P<layer>attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\."
    r"(?P<part>weight|lora_a|lora_b)$"
)


class Parts(NamedTuple):
    """How many equal matrices a weight is made of, and along which of its sides they lie."""

    side: int
    number: int


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
    the rule of "Muon is Scalable for LLM Training" (2025), 2.2. Differs: what each head asks, offers, passes
    on and writes are matrices of their own, where Muon's author advises one each for all queries, keys and values;
    float32 on a CPU, where bfloat16 is slower; matrices of one shape go through the products together.
    """

    def _update(self) -> None:
        groups = [group for group in self.param_groups if PARTS in group]
        gradients = {parameter: parameter.grad for group in groups for parameter in group["params"]}
        for parameter in gradients:
            parameter.grad = None  # AdamW passes over it
        super()._update()
        is_bad, is_good = self.found_inf.bool(), 1.0 - self.found_inf
        for parameter, gradient in gradients.items():
            state = self.state[parameter]
            if MOMENTUM_BUFFER not in state:
                state[MOMENTUM_BUFFER] = torch.zeros_like(parameter)
            gradient.masked_fill_(is_bad, 0.0)
            state[MOMENTUM_BUFFER].lerp_(gradient, (1.0 - MOMENTUM) * is_good)
            gradient.lerp_(state[MOMENTUM_BUFFER], MOMENTUM)  # Nesterov: now the step
        rates = {id(group): group["lr"] * is_good for group in groups}
        for group in groups:
            torch._foreach_mul_(group["params"], 1.0 - rates[id(group)] * group["weight_decay"])
        for (_, long_side), members in _by_shape(groups, gradients).items():
            found = orthogonal(torch.cat([wide for _, _, wide in members]))
            pieces = torch.split(found, [len(wide) for _, _, wide in members])
            for (group, parameter, wide), piece in zip(members, pieces, strict=True):
                target = _matrices(parameter, group[PARTS])
                direction = piece if wide.shape == target.shape else piece.mT
                target.addcmul_(direction, rates[id(group)], value=-UPDATE_RMS * long_side**0.5)


def _matrices(tensor: Tensor, parts: Parts) -> Tensor:
    """View a weight (rows, columns) as the matrices (M, rows, columns) that it is made of."""
    rows, columns = tensor.shape
    if parts.side == 0:
        return tensor.view(parts.number, -1, columns)
    return tensor.view(rows, parts.number, -1).movedim(1, 0)


def _by_shape(
    groups: Iterable[dict[str, Any]], steps: dict[Tensor, Tensor]
) -> dict[tuple[int, int], list[tuple[dict[str, Any], Tensor, Tensor]]]:
    """Collect group, parameter and its matrices (M, R, C), laid wide so that R <= C, by (R, C)."""
    found: dict[tuple[int, int], list[tuple[dict[str, Any], Tensor, Tensor]]] = {}
    for group in groups:
        for parameter in group["params"]:
            matrices = _matrices(steps[parameter], group[PARTS])
            wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
            found.setdefault((wide.shape[1], wide.shape[2]), []).append((group, parameter, wide))
    return found


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of wide matrices (M, R, C), R <= C, near one, to between 0.7 and 1.2.

    Five steps of a x + b x^3 + c x^5 for each singular value x lift those that are not too small a part of all: from
    0.003 of the root of their sum of squares. Zero stays zero.
    """
    now = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if now.device.type == "cpu":
        at_once = max(1, _BYTES_AT_ONCE // now[0].nbytes)
        return torch.cat([_by_products(part) for part in torch.split(now, at_once)])
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return _by_steps(now.to(dtype)).to(matrices.dtype)


def _by_steps(now: Tensor) -> Tensor:
    """Apply the five steps to the matrices themselves."""
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = now @ now.mT
        now = torch.baddbmm(now, torch.baddbmm(square, square, square, beta=b, alpha=c), now, beta=a)
    return now


def _by_products(now: Tensor) -> Tensor:
    """Apply the five steps in float32: where matrices are long, to their small product with themselves.

    Each step is then one more factor to the left, and they are all applied at the end.
    """
    if now.shape[2] < 2 * now.shape[1]:
        return _by_steps(now)
    a, b, c = NEWTON_SCHULZ
    square, factor = now @ now.mT, None
    for number in range(NEWTON_SCHULZ_STEPS):
        step = torch.baddbmm(square, square, square, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        factor = step if factor is None else step @ factor
        if number + 1 < NEWTON_SCHULZ_STEPS:
            square = step @ square @ step
    assert factor is not None
    return factor @ now


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, Parts]:
    """Return the trained matrices within the transformer blocks of a model, and of what each is made.

    They are found by their official names; low-rank updates count, too.
    """
    found = {}
    for name, parameter in model.named_parameters():
        match = _HIDDEN.search(name)
        if match is None or not parameter.requires_grad:
            continue
        found[parameter] = Parts(0, 1)
        if match["layer"].startswith("attn."):
            heads = cast(int, model.get_submodule(name[: match.start("layer")] + "attn").num_heads)
            if match["layer"] == "attn.qkv" and match["part"] != "lora_a":
                found[parameter] = Parts(0, 3 * heads)
            elif match["layer"] == "attn.proj" and match["part"] != "lora_b":
                found[parameter] = Parts(1, heads)
    return found


def check_optimizer(config: OptimizerConfig, model: nn.Module, *, zero_stage: int) -> None:
    """Refuse an optimizer that cannot train this model in this way."""
    check_partition(config, zero_stage=zero_stage)
    require(
        config.kind == "adamw" or bool(hidden_matrices(model)),
        'optimizer.kind ("muon") is for the matrices of transformer blocks, and none are trained here; '
        f"{by_adamw(config)}",
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


def _marked(groups: Iterable[dict[str, Any]], matrices: dict[nn.Parameter, Parts]) -> Iterator[dict[str, Any]]:
    """Split groups such that what Muon takes is apart, by the number of its parts."""
    for group in groups:
        by_parts: dict[Parts | None, list[nn.Parameter]] = {}
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
