"""Muon: torch's own numbers on the matrices of blocks, AdamW's on the rest, and AdamW's guarantees for both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from beit.common.errors import InputError
from beit.common.training.config import OptimizerConfig
from beit.common.training.optimizer import (
    MOMENTUM_BUFFER,
    NEWTON_SCHULZ,
    FiniteMuon,
    build_optimizer,
    check_optimizer,
    hidden_matrices,
    orthogonal,
)
from beit.common.vit.adaptation import Adaptation, adapt
from beit.common.vit.config import ViTConfig
from beit.common.vit.param_groups import param_groups
from beit.common.vit.vit import VisionTransformer
from beit.tests.toy_training import ToyModel, toy_config, train_toy

MUON = OptimizerConfig(kind="muon", lr=0.01, min_lr=0.0)


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=2))


def optimizer_of(model: nn.Module, *, layer_decay: float = 1.0, clip_grad: float | None = None) -> FiniteMuon:
    groups = param_groups(model, weight_decay=0.1, layer_decay=layer_decay, depth=2)
    config = OptimizerConfig(kind="muon", lr=0.01, min_lr=0.0, clip_grad=clip_grad)
    found = build_optimizer(config, groups, model, zero_stage=0)
    assert isinstance(found, FiniteMuon)
    return found


def set_gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)


def five_steps(matrix: Tensor) -> Tensor:
    """Compute in float64, by the singular values themselves, what the iteration makes of a matrix."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return left @ values.diag() @ right


@pytest.mark.parametrize("shape", [(8, 8), (6, 10), (6, 12), (5, 40)])
def test_singular_values_go_through_five_steps_whatever_the_shape(shape):
    torch.manual_seed(0)
    matrices = torch.randn(300, *shape)  # more than go through together
    found = orthogonal(matrices)
    for number in (0, 150, 299):
        torch.testing.assert_close(found[number].double(), five_steps(matrices[number]), rtol=0, atol=1e-5)
    assert orthogonal(torch.zeros(2, *shape)).count_nonzero() == 0


def test_a_whole_matrix_moves_as_torchs_muon_moves_it():
    """Whose products are in bfloat16."""
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    model = small_vit()
    layers = [block.mlp.fc1 for block in model.blocks] + [block.mlp.fc2 for block in model.blocks]
    copies = [nn.Parameter(layer.weight.detach().clone()) for layer in layers]
    ours, theirs = optimizer_of(model), muon(copies, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [copy.detach().clone() for copy in copies]
    for step in range(3):
        set_gradients(model, step)
        for layer, copy in zip(layers, copies, strict=True):
            copy.grad = layer.weight.grad.clone()
        ours.step()
        theirs.step()
    for layer, copy, before in zip(layers, copies, start, strict=True):
        moved, error = (copy - before).norm(), (layer.weight - copy).norm()
        assert error < 0.02 * moved


def test_what_is_no_matrix_of_a_block_moves_as_adamw_moves_it_bit_for_bit():
    left, right = small_vit(), small_vit()
    muon = optimizer_of(left)
    adamw = build_optimizer(
        OptimizerConfig(lr=0.01, min_lr=0.0, clip_grad=None), param_groups(right, weight_decay=0.1), right, zero_stage=0
    )
    for step in range(2):
        for model, optimizer in ((left, muon), (right, adamw)):
            set_gradients(model, step)
            optimizer.step()
    matrices, others = hidden_matrices(left), dict(right.named_parameters())
    for name, parameter in left.named_parameters():
        assert torch.equal(parameter, others[name]) == (parameter not in matrices), name
        kept = {MOMENTUM_BUFFER} if parameter in matrices else {"step", "exp_avg", "exp_avg_sq"}
        assert set(muon.state[parameter]) == kept


def test_layers_learn_at_their_own_rates_and_decay():
    model = small_vit()
    optimizer = optimizer_of(model, layer_decay=0.5)
    before = [block.mlp.fc1.weight.detach().clone() for block in model.blocks]
    set_gradients(model, 0)
    gradient = [block.mlp.fc1.weight.grad.clone() for block in model.blocks]
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["lr_scale"]
    optimizer.step()
    for block, old, grad, rate in zip(model.blocks, before, gradient, (0.0025, 0.005), strict=True):
        wanted = old * (1 - rate * 0.1) - rate * 0.2 * 96**0.5 * five_steps(grad).float()
        torch.testing.assert_close(block.mlp.fc1.weight, wanted, rtol=1e-5, atol=1e-6)


def test_nonfinite_gradient_or_loss_leaves_weights_and_momentum():
    model = small_vit()
    optimizer = optimizer_of(model, clip_grad=1.0)
    set_gradients(model, 0)
    optimizer.step()
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    states = [{kind: value.clone() for kind, value in optimizer.state[p].items()} for p in model.parameters()]
    for bad in ("gradient", "loss"):
        set_gradients(model, 1)
        if bad == "gradient":
            model.blocks[0].attn.qkv.weight.grad[0, 0] = float("nan")
        else:
            optimizer.bad_loss = torch.ones(())
        optimizer.step()
        assert optimizer.found_inf == 1
    for parameter, weight, state in zip(model.parameters(), weights, states, strict=True):
        assert torch.equal(parameter, weight)
        assert all(torch.equal(optimizer.state[parameter][kind], value) for kind, value in state.items())


def test_low_rank_updates_are_trained_by_it():
    model = small_vit()
    adapt(model, Adaptation.parse("lora:2"))
    names = {name for name, parameter in model.named_parameters() if parameter in hidden_matrices(model)}
    assert names == {
        f"blocks.{block}.{layer}.{part}"
        for block in (0, 1)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for part in ("lora_a", "lora_b")
    }
    before = model.blocks[1].attn.qkv.lora_b.detach().clone()
    optimizer = optimizer_of(model)
    set_gradients(model, 0)
    optimizer.step()
    assert not torch.equal(model.blocks[1].attn.qkv.lora_b, before)


def test_models_without_blocks_and_partitions_are_refused():
    with pytest.raises(InputError, match=r'optimizer.kind \("muon"\) is for the matrices of transformer blocks'):
        check_optimizer(MUON, ToyModel(), zero_stage=0)
    with pytest.raises(InputError, match=r"deepspeed.zero_stage = 2 cuts into pieces"):
        check_optimizer(MUON, small_vit(), zero_stage=2)
    check_optimizer(OptimizerConfig(), ToyModel(), zero_stage=3)


def test_a_refused_training_leaves_no_run(tmp_path: Path):
    with pytest.raises(InputError, match="transformer blocks"):
        train_toy(tmp_path / "run", toy_config("optimizer.kind=muon"))
    assert not (tmp_path / "run").exists()
