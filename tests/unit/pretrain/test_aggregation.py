"""Patch aggregation against the same written by hand, and what it leaves as it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.runs.metrics import read_metrics
from beit.common.vit.config import ViTConfig
from beit.common.vit.position_bias import relative_position_index
from beit.pretrain.model import MaskedImageModel
from beit.pretrain.step import MimStep
from beit.pretrain.train import run
from beit.tests.support import write_store
from beit.tests.unit.pretrain.test_train import make_config

VOCAB, DEPTH, DIM, HEADS, GRID = 11, 4, 24, 3, 4


def vit_config(pos_bias: str) -> ViTConfig:
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    return ViTConfig(**shape, pos_bias=pos_bias, init_values=0.1, drop_path=0.0)


def build(pos_bias: str = "shared", blocks: int = 2, taken_from: int | None = None) -> MaskedImageModel:
    torch.manual_seed(0)
    model = MaskedImageModel(vit_config(pos_bias), vocab_size=VOCAB, num_masked=6)
    if blocks:
        model.aggregate(blocks, taken_from)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # initial tables are zero, and layers nearly do nothing
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith(("table", "q_bias", "v_bias")) or name.startswith("cls_pt_layers"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def batch_of(images: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(images, 3, 16, 16, generator=generator)
    mask = torch.zeros(images, GRID**2, dtype=torch.bool)
    for number in range(images):
        mask[number, torch.randperm(GRID**2, generator=generator)[: 4 + number]] = True
    return pixels, mask, torch.randint(VOCAB, (images, GRID**2), generator=generator)


# The reference: plain torch on named tensors


def block_by_hand(state: dict[str, Tensor], at: str, stream: Tensor, bias: Tensor | None) -> Tensor:
    def tensor(name: str) -> Tensor:
        return state[f"{at}.{name}"]

    def norm(name: str, values: Tensor) -> Tensor:
        return nn.functional.layer_norm(values, (DIM,), tensor(f"{name}.weight"), tensor(f"{name}.bias"), 1e-6)

    batch, length, _ = stream.shape
    qkv_bias = torch.cat([tensor("attn.q_bias"), torch.zeros(DIM), tensor("attn.v_bias")])
    qkv = norm("norm1", stream) @ tensor("attn.qkv.weight").T + qkv_bias
    query, key, value = qkv.reshape(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
    logits = query @ key.transpose(-1, -2) / math.sqrt(DIM // HEADS)
    mixed = (logits if bias is None else logits + bias).softmax(-1) @ value
    mixed = mixed.transpose(1, 2).reshape(batch, length, DIM)
    stream = stream + tensor("gamma_1") * (mixed @ tensor("attn.proj.weight").T + tensor("attn.proj.bias"))
    inner = nn.functional.gelu(norm("norm2", stream) @ tensor("mlp.fc1.weight").T + tensor("mlp.fc1.bias"))
    return stream + tensor("gamma_2") * (inner @ tensor("mlp.fc2.weight").T + tensor("mlp.fc2.bias"))


def losses_by_hand(
    state: dict[str, Tensor], pixels: Tensor, mask: Tensor, words: Tensor, *, early: int
) -> tuple[Tensor, Tensor]:
    index = relative_position_index((GRID, GRID))

    def bias_of(at: str) -> Tensor | None:
        table = state.get("rel_pos_bias.relative_position_bias_table")
        table = state.get(f"{at}.attn.relative_position_bias_table") if table is None else table
        return None if table is None else table[index.flatten()].reshape(*index.shape, HEADS).permute(2, 0, 1)

    patches = nn.functional.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    patches = patches.flatten(2).transpose(1, 2)
    patches = torch.where(mask[..., None], state["mask_token"], patches)
    stream = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches], 1)
    for number in range(DEPTH):
        stream = block_by_hand(state, f"blocks.{number}", stream, bias_of(f"blocks.{number}"))
        if number + 1 == early:
            early_patches = stream[:, 1:]
    second = torch.cat([stream[:, [0]], early_patches], 1)
    for number in range(2):
        second = block_by_hand(state, f"cls_pt_layers.{number}", second, bias_of(f"cls_pt_layers.{number}"))
    losses = []
    for found in (stream, second):
        normed = nn.functional.layer_norm(found[:, 1:], (DIM,), state["norm.weight"], state["norm.bias"], 1e-6)
        logits = normed @ state["lm_head.weight"].T + state["lm_head.bias"]
        losses.append(nn.functional.cross_entropy(logits[mask], words[mask]))
    return losses[0], losses[1]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("pos_bias", "taken_from"), [("shared", None), ("per_block", 2), ("none", 1)])
def test_both_losses_and_all_gradients_are_those_written_by_hand(pos_bias, taken_from, recompute):
    model = build(pos_bias, taken_from=taken_from).train()
    model.recompute_blocks = recompute
    pixels, mask, words = batch_of()
    step = MimStep(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    batch = {"images": pixels, "bool_masked_pos": mask, "token_ids": words}
    loss, metrics = step(model, batch, 0)
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.state_dict().items()}
    first, second = losses_by_hand(state, pixels, mask, words, early=taken_from or 3)
    torch.testing.assert_close(metrics["bits"], first.detach() / math.log(2))
    torch.testing.assert_close(metrics["aggregated_bits"], second.detach() / math.log(2))
    torch.testing.assert_close(loss, first + second)
    loss.backward()
    (first + second).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-4, atol=1e-6, msg=name)


def test_evaluation_is_that_of_the_encoders_own_predictions():
    model, plain = build().eval(), build(blocks=0).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    pixels, mask, _ = batch_of()
    prediction = model(pixels, mask)
    assert prediction.aggregated is None
    assert torch.equal(prediction.logits, plain(pixels, mask).logits)


def test_blocks_begin_as_if_they_stood_behind_the_early_one():
    torch.manual_seed(0)
    config = ViTConfig(img_size=16, patch_size=4, embed_dim=64, depth=4, num_heads=4, drop_path=0.3)
    model = MaskedImageModel(config, vocab_size=VOCAB, num_masked=6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.aggregate(2)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert model.early_block == 3
    assert [block.drop_path for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    # Source: the released code's linspace over max(depth, early + extra) = 5 blocks would begin at 0 and end at 0.3.
    assert [layer.drop_path for layer in model.cls_pt_layers] == pytest.approx([0.225, 0.3])
    for number, layer in enumerate(model.cls_pt_layers, start=4):
        for weight in (layer.attn.proj.weight, layer.mlp.fc2.weight):
            assert float(weight.detach().std()) == pytest.approx(0.0108 / math.sqrt(2 * number), rel=0.05)


@pytest.mark.parametrize("early", [0, 4, 9])
def test_an_early_block_that_is_none_is_refused(early):
    with pytest.raises(InputError, match=rf"objective.aggregate_from \({early}\) must be in \[1, 3\]"):
        build(taken_from=early)


def test_a_single_block_has_none_before_it():
    model = MaskedImageModel(
        ViTConfig(img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=2), vocab_size=VOCAB, num_masked=6
    )
    with pytest.raises(InputError, match=r"model.depth \(1\) leaves none; leave it out, or take more blocks"):
        model.aggregate(1)


def test_pixels_are_predicted_twice_likewise(tmp_path):
    store = write_store(tmp_path / "store")
    objective = {"kind": "masked_pixels", "aggregate": 1}
    run(make_config(objective=objective, train={"steps": 2}), store=store.location, run_dir=tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(first["mse"] + first["aggregated_mse"], rel=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_run_goes_on_bit_for_bit_and_its_encoder_is_one_of_before(zero_stage, tmp_path):
    store = write_store(tmp_path / "store")
    sections = {"objective": {"aggregate": 2}, "deepspeed": {"zero_stage": zero_stage}, "train": {"steps": 4}}
    run(make_config(**sections), store=store.location, run_dir=tmp_path / "whole")
    half = make_config(**sections, checkpoint={"interval_steps": 2})
    run(half, store=store.location, run_dir=tmp_path / "parts", resume=str(tmp_path / "whole/checkpoints/step_2"))
    whole, parts = (read_encoder_state(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert any(name.startswith("cls_pt_layers.1.") for name in whole)
    encoder = load_encoder(tmp_path / "whole")
    assert not any(name.startswith("cls_pt_layers") for name, _ in encoder.named_parameters())
    last = read_metrics(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert "held_out_bits" in last and "aggregated_bits" not in last
