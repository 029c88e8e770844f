"""The DeepSpeed JSON has one source for each number, and clipping is ours at ZeRO 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from beit.common.engine import EngineSettings, deepspeed_json
from beit.common.errors import InputError
from beit.common.train_config import CheckpointConfig, DeepSpeedConfig, OptimizerConfig, TrainConfig, plan_training


def settings(**deepspeed: Any) -> EngineSettings:
    optimizer = OptimizerConfig(clip_grad=3.0)
    train = TrainConfig(global_batch_size=32, micro_batch_size=4, steps=2)
    plan = plan_training(train, optimizer, CheckpointConfig(), num_samples=64, world_size=2)
    return EngineSettings(optimizer=optimizer, deepspeed=DeepSpeedConfig(**deepspeed), precision="fp32", plan=plan)


def test_batch_sizes_come_from_the_plan() -> None:
    config = deepspeed_json(settings())
    assert config["train_batch_size"] == 32
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(("stage", "clip"), [(0, 0.0), (1, 3.0), (2, 3.0), (3, 3.0)])
def test_deepspeed_clips_only_what_the_optimizer_cannot(stage: int, clip: float) -> None:
    assert deepspeed_json(settings(zero_stage=stage))["gradient_clipping"] == clip


def test_user_json_is_merged_over(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock_breakdown": True}))
    config = deepspeed_json(settings(zero_stage=1, config=str(file)))
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
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
    ],
)
def test_bad_user_json_is_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "ds.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        deepspeed_json(settings(config=str(file)))


def test_missing_user_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read .No such file"):
        deepspeed_json(settings(config=str(tmp_path / "none.json")))
