"""AdamW with a verdict: equal to torch's where all is finite, inert where not."""

from __future__ import annotations

import torch

from beit.common.training.optimizer import FiniteAdamW


def build(clip_norm: float | None) -> tuple[FiniteAdamW, torch.optim.AdamW]:
    def groups() -> list[dict[str, object]]:
        torch.manual_seed(0)
        values = [torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(3, 2))]
        return [{"params": values[:1], "weight_decay": 0.0}, {"params": values[1:], "weight_decay": 0.1}]

    return FiniteAdamW(groups(), clip_norm=clip_norm, lr=0.1), torch.optim.AdamW(groups(), lr=0.1)


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: torch.optim.Optimizer, scale: float) -> None:
    for p in parameters(optimizer):
        p.grad = torch.full_like(p, scale)


def test_finite_steps_are_torchs_own_with_clipping() -> None:
    ours, theirs = build(clip_norm=1.0)
    for scale in (0.1, 5.0):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, scale)
        norm = torch.nn.utils.clip_grad_norm_(parameters(theirs), 1.0)
        ours.step()
        theirs.step()
        assert ours.found_inf == 0
        assert torch.equal(ours.grad_norm, norm)
    for left, right in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(left, right)


def test_nonfinite_gradient_or_loss_leaves_everything() -> None:
    ours, _ = build(clip_norm=None)
    set_gradients(ours, 1.0)
    ours.step()
    before = [p.clone() for p in parameters(ours)]
    moments = [ours.state[p]["exp_avg"].clone() for p in parameters(ours)]
    for bad in ("gradient", "loss"):
        set_gradients(ours, 1.0)
        if bad == "gradient":
            parameters(ours)[1].grad[0, 0] = float("inf")
        else:
            ours.bad_loss = torch.ones(())
        ours.step()
        assert ours.found_inf == 1
    assert all(torch.equal(p, old) for p, old in zip(parameters(ours), before, strict=True))
    for p, old in zip(parameters(ours), moments, strict=True):
        assert torch.equal(ours.state[p]["exp_avg"], old)
        assert ours.state[p]["step"] == 1
