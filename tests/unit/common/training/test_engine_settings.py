"""The DeepSpeed JSON has one source for each number, and clipping is ours at ZeRO 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError, ResumableStop
from beit.common.training.config import DeepSpeedConfig, OptimizerConfig, TrainConfig, plan_training
from beit.common.training.engine_settings import deepspeed_json
from beit.tests.toy_training import ToyConfig, toy_config, train_toy


def settings(**deepspeed: Any) -> ToyConfig:
    train = TrainConfig(global_batch_size=32, micro_batch_size=4, steps=2)
    return ToyConfig(train=train, optimizer=OptimizerConfig(clip_grad=3.0), deepspeed=DeepSpeedConfig(**deepspeed))


def generated(of: ToyConfig, *, num_trained: int = 1000) -> dict[str, Any]:
    plan = plan_training(of.train, of.optimizer, of.checkpoint, num_samples=64, world_size=2)
    return deepspeed_json(of, plan, num_trained=num_trained)


def test_batch_sizes_come_from_the_plan() -> None:
    config = generated(settings())
    assert config["train_batch_size"] == 32
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(("stage", "clip"), [(0, 0.0), (1, 3.0), (2, 3.0), (3, 3.0)])
def test_deepspeed_clips_only_what_the_optimizer_cannot(stage: int, clip: float) -> None:
    assert generated(settings(zero_stage=stage))["gradient_clipping"] == clip


def test_user_json_is_merged_over(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}))
    config = generated(settings(zero_stage=1, config=str(file)))
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000}
    assert config["wall_clock_breakdown"] is True
    assert config["train_batch_size"] == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train_batch_size": 8}', "'train_batch_size'.*use train.global_batch_size"),
        ('{"optimizer": {"type": "Adam"}}', "'optimizer'.*optimizer"),
        ('{"fp16": {"enabled": true}}', "'fp16'.*use train.precision"),
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"zero_optimisation": {"stage": 2}}', "'zero_optimisation'; did you mean 'zero_optimization'"),
        ('{"zero_optimization": [2]}', "must be an object"),
        ('{"zero_optimization": {"stage": "2"}}', "stage to '2'; it must be 0, 1, 2 or 3"),
    ],
)
def test_bad_user_json_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        generated(settings(config=str(file)))


def test_auto_is_left_to_us(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    zero = {"stage": 2, "reduce_bucket_size": "auto"}
    content = {"train_batch_size": "auto", "fp16": {"enabled": "auto"}, "zero_optimization": zero}
    file.write_text(json.dumps(content))
    config = generated(settings(config=str(file)))
    assert config["train_batch_size"] == 32 and "fp16" not in config
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


@pytest.mark.parametrize(("num_trained", "bucket"), [(0, 1), (86_000_000, 86_000_000), (10**9, 500_000_000)])
def test_a_bucket_of_gradients_is_no_larger_than_the_model(num_trained: int, bucket: int) -> None:
    zero = generated(settings(zero_stage=2), num_trained=num_trained)["zero_optimization"]
    assert zero["reduce_bucket_size"] == bucket


def test_who_names_a_bucket_size_gets_it(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"reduce_bucket_size": 5000}}')
    zero = generated(settings(zero_stage=2, config=str(file)))["zero_optimization"]
    assert zero == {"stage": 2, "reduce_bucket_size": 5000}


def test_what_deepspeed_refuses_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 2, "overlap": true}}')
    with pytest.raises(InputError, match=r"ds.json\) is refused: .* overlap Extra inputs are not permitted$"):
        train_toy(tmp_path / "run", toy_config(f"deepspeed.config={file}"))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_user_json_with_offloading_trains_saves_and_resumes_alike(tmp_path: Path, stage: int) -> None:
    file = tmp_path / "ds.json"
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}, "sub_group_size": 50, "reduce_bucket_size": 1000}
    file.write_text(json.dumps({"zero_optimization": zero, "wall_clock_breakdown": False}))
    config = (f"deepspeed.config={file}", "train.ema_decay=0.9")
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "run", toy_config(*config, "stop_at=3"))
    train_toy(tmp_path / "run", toy_config(*config))
    train_toy(tmp_path / "plain", toy_config("train.ema_decay=0.9"))
    for name in ("model", "optimizer"):
        found, plain = (
            load_file(tmp_path / run / f"checkpoints/step_8/{name}.safetensors") for run in ("run", "plain")
        )
        assert found.keys() == plain.keys()
        for key, value in plain.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")


def test_missing_user_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read .No such file"):
        generated(settings(config=str(tmp_path / "none.json")))
