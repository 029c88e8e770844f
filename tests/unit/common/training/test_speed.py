"""Compiled and recomputed models are the same models."""

import copy
import shutil

import pytest
import torch

from beit.common.errors import InputError
from beit.common.training.config import SpeedConfig
from beit.common.training.speed import apply_speed, missing_compiler
from beit.common.vit.config import ViTConfig
from beit.pretrain.model import MaskedImageModel, mim_loss
from beit.tests.toy_training import toy_config, train_toy

CONFIG = ViTConfig(img_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, drop_path=0.4, init_values=0.1)
CPU = torch.device("cpu")


def build():
    torch.manual_seed(0)
    model = MaskedImageModel(CONFIG, vocab_size=32, num_masked=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def gradients(model, *, autocast=False):
    """Return loss and gradients of one training step with drop path."""
    torch.manual_seed(1)
    images, mask = torch.randn(8, 3, 16, 16), torch.rand(8, 16) < 0.3
    token_ids = torch.randint(0, 32, (8, 16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = mim_loss(model(images, mask), token_ids).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what a forward pass keeps for the backward pass."""

    def __init__(self):
        self.total = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor):
        self.total += tensor.numel() * tensor.element_size()
        return tensor


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_gradients_are_equal_bit_for_bit(autocast):
    plain, recomputed = build(), build()
    apply_speed(recomputed, SpeedConfig(activation_checkpointing=True), device=CPU, zero_stage=0)
    loss, expected = gradients(plain, autocast=autocast)
    other_loss, found = gradients(recomputed, autocast=autocast)
    assert torch.equal(loss, other_loss)
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]


def test_recomputing_keeps_less():
    kept = []
    for activation_checkpointing in (False, True):
        model = build()
        apply_speed(model, SpeedConfig(activation_checkpointing=activation_checkpointing), device=CPU, zero_stage=0)
        saved = SavedBytes()
        with saved:
            model(torch.randn(8, 3, 16, 16), torch.rand(8, 16) < 0.3)
        kept.append(saved.total)
    assert kept[1] < kept[0] / 3


def test_compiling_with_partitioned_weights_is_refused():
    with pytest.raises(InputError, match=r"speed\.compile.*zero_stage = 3"):
        apply_speed(build(), SpeedConfig(compile=True), device=CPU, zero_stage=3)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert missing_compiler(CPU) == "a C compiler"
    with pytest.raises(InputError, match=r"speed\.compile needs a C compiler"):
        apply_speed(build(), SpeedConfig(compile=True), device=CPU, zero_stage=0)


@pytest.mark.parametrize("is_partitioned", [True, False])
def test_a_training_that_cannot_be_compiled_leaves_no_run(is_partitioned, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    partitions = ["deepspeed.zero_stage=3"] if is_partitioned else []
    with pytest.raises(InputError, match=r"zero_stage = 3" if is_partitioned else "needs a C compiler"):
        train_toy(tmp_path / "run", toy_config("speed.compile=true", *partitions))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_model_learns_the_same():
    plain = build()
    compiled = copy.deepcopy(plain)
    apply_speed(compiled, SpeedConfig(compile=True), device=CPU, zero_stage=0)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for model in (plain, compiled):
        for block in model.blocks:
            block.drop_path = 0.0  # compiled code draws other random numbers
    loss, expected = gradients(plain)
    other_loss, found = gradients(compiled)
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(found, expected)
