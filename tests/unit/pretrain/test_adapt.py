"""Pre-training that changes only a part of the encoder it continues: what stays, what is written, how it goes on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from beit.common.encoder import load_encoder, read_encoder_state
from beit.common.errors import InputError
from beit.common.runs.metrics import read_metrics
from beit.pretrain.train import run
from beit.tests.continued import ASLEEP, settings, task_of

FASTER = {"optimizer": {"lr": 1e-2, "warmup_steps": 1}}
ENCODER = "encoder/model.safetensors"


def bits(path):
    return [record["held_out_bits"] for record in read_metrics(path / "metrics.jsonl") if "held_out_bits" in record]


def changed(before, after):
    before, after = read_encoder_state(before), read_encoder_state(after)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("setting", ["lora:4", "last:1"])
def test_what_does_not_learn_is_the_encoder_it_continues(store, first, tmp_path, setting):
    run(settings(first, adapt=setting, **ASLEEP), store=store.location, run_dir=tmp_path / "run")
    assert not changed(first, tmp_path / "run")
    assert bits(tmp_path / "run")[-1] == pytest.approx(bits(first)[-1], abs=1e-6)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_updates_are_merged_into_the_matrices_and_all_else_stays(store, first, tmp_path, zero_stage, caplog):
    caplog.set_level("INFO")
    stage = {"deepspeed": {"zero_stage": zero_stage}}
    run(settings(first, adapt="lora:4", **FASTER, **stage), store=store.location, run_dir=tmp_path / "run")
    matrices = {
        f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    after = {"mask_token", "norm.weight", "norm.bias", "lm_head.weight", "lm_head.bias"}
    assert changed(first, tmp_path / "run") == matrices | after
    assert "M parameters trained, objective masked_tokens" in caplog.text


def test_the_last_block_and_what_follows_learn(store, first, tmp_path):
    run(settings(first, adapt="last:1", **FASTER), store=store.location, run_dir=tmp_path / "run")
    found = changed(first, tmp_path / "run")
    assert {name.split(".")[0] for name in found} == {"blocks", "norm", "lm_head"}
    assert {name.split(".")[1] for name in found if name.startswith("blocks")} == {"1"}


def test_a_mask_token_that_the_encoder_never_had_is_trained(store, dino, tmp_path):
    for setting in ("last:1", "lora:2"):
        task = task_of(store, dino, adapt=setting)
        trained = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
        assert {"mask_token", "lm_head.weight", "norm.weight"} <= trained
        assert not trained & {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}


@pytest.mark.parametrize("setting", ["all", "lora:4", "last:1"])
@pytest.mark.parametrize("kind", ["first", "dino"])
def test_arithmetic_is_counted_as_torch_counts_it(store, setting, kind, request):
    task = task_of(store, request.getfixturevalue(kind), adapt=setting)
    batch = next(iter(task.data.micro_batches(0)))
    with FlopCounterMode(display=False) as counter:
        loss, _ = task.forward(task.model, batch, 0)
        loss.backward()
    assert counter.get_total_flops() == len(batch["images"]) * task.flops_per_sample()


@pytest.mark.parametrize("setting", ["lora:4", "last:1"])
def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(store, first, tmp_path, setting):
    encoder = shutil.copytree(first / "encoder", tmp_path / "encoder")
    config = settings(
        encoder,
        adapt=setting,
        **FASTER,
        train={"steps": 4, "ema_decay": 0.9, "early_stop_evals": 3, "eval_interval_steps": 2, "micro_batch_size": 4},
        speed={"activation_checkpointing": True},
        layer_decay=0.7,
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(config, store=store.location, run_dir=whole)
    shutil.copytree(whole, cut)
    for lost in ("checkpoints/step_4", "encoder"):
        shutil.rmtree(cut / lost)
    shutil.rmtree(encoder)  # a run goes on without it
    run(config, store=store.location, run_dir=cut)
    for file in ("checkpoints/step_4/model.safetensors", "checkpoints/step_4/optimizer.safetensors", ENCODER):
        left, right = load_file(whole / file), load_file(cut / file)
        assert left.keys() == right.keys()
        assert not [name for name in left if not torch.equal(left[name], right[name])]
    kept = load_file(whole / "checkpoints/step_4/model.safetensors")
    assert any("lora_a" in name for name in kept) == (setting == "lora:4")


def test_what_was_measured_is_what_is_written(store, first, tmp_path):
    """The average of updates is merged as it was measured, and says as much when it is continued."""
    averaged = {"train": {"steps": 4, "ema_decay": 0.5}}
    run(settings(first, adapt="lora:4", **FASTER, **averaged), store=store.location, run_dir=tmp_path / "run")
    run(settings(tmp_path / "run", **ASLEEP), store=store.location, run_dir=tmp_path / "again")
    assert bits(tmp_path / "again")[-1] == pytest.approx(bits(tmp_path / "run")[-1], abs=1e-5)
    images = torch.randn(2, 3, 16, 16)
    found = [load_encoder(path).forward_features(images) for path in (first, tmp_path / "run")]
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("setting", "message"),
    [("last:3", r"at most 2 blocks"), ("lora:17", "rank of at most 16"), ("last:0", "name at least one block")],
)
def test_what_cannot_be_is_one_clear_line(store, first, setting, message):
    with pytest.raises(InputError, match=message) as caught:
        task_of(store, first, adapt=setting)
    assert "\n" not in str(caught.value)


def test_random_weights_are_trained_whole():
    with pytest.raises(InputError, match=r'adapt \("lora:4"\) must be "all" without --init'):
        settings(adapt="lora:4")


@pytest.mark.parametrize("resume", ["auto", "run"])
def test_another_adaptation_does_not_go_on(store, first, tmp_path, resume):
    path = tmp_path / "run"
    run(settings(first, train={"steps": 2}, adapt="lora:4"), store=store.location, run_dir=path)
    for other in ("all", "last:1", "lora:2"):
        config = settings(first, train={"steps": 2}, adapt=other)
        with pytest.raises(InputError, match=f"adapt was lora:4, is {other}"):
            run(config, store=store.location, run_dir=path, resume=str(path) if resume == "run" else resume)
