"""The DeepSpeed configuration that follows from the settings: generated, the user's merged over it.

One source for every number: batch sizes, precision and optimizer come from beit's settings, and a user's JSON that sets
them is refused. The engine itself is `engine.py`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, require
from beit.common.training.config import OptimizerConfig, TrainingConfig, TrainingPlan

_OWN_KEYS = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "optimizer.clip_grad",
    "optimizer": "the section [optimizer]",
    "scheduler": "the section [optimizer]",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "torch_autocast": "train.precision",
}
"""DeepSpeed settings that have a source of their own here."""
_KEYS = (
    *("zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "activation_checkpointing"),
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "data_types"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "comms_logger"),
    *("aio", "tensorboard", "csv_monitor", "wandb", "compile", "checkpoint", "elasticity", "autotuning"),
    *_OWN_KEYS,
)
"""DeepSpeed's usual settings, to find misspelt ones by."""
ADAMW_LR = 0.5
"""AdamW's learning rate in that of Muon; between a half and a quarter (docs/pretraining.md), a half measured most."""
_LARGEST_BUCKET = 500_000_000
"""Gradients that ZeRO reduces at a time, in elements: DeepSpeed's default."""


def deepspeed_json(config: TrainingConfig, plan: TrainingPlan, *, num_trained: int) -> dict[str, Any]:
    """Generate DeepSpeed's configuration, to train so many elements, and merge the user's file over it."""
    clip, stage = config.optimizer.clip_grad, zero_stage(config)
    generated: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.grad_accum_steps,
        "zero_optimization": {
            "stage": stage,
            # ZeRO allocates the whole bucket at every step, 2 GB by default, however small the model is.
            "reduce_bucket_size": max(1, min(num_trained, _LARGEST_BUCKET)),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    merged = _merge(generated, _user_settings(config))
    # Always given, because DeepSpeed 0.19 clips at 1.0 by default; at ZeRO 0 the optimizer clips.
    merged["gradient_clipping"] = (clip or 0.0) if stage > 0 else 0.0
    return merged


def zero_stage(config: TrainingConfig) -> int:
    """Return the stage of ZeRO: what the user's file says, else the setting's."""
    stage = _user_settings(config).get("zero_optimization", {}).get("stage", config.deepspeed.zero_stage)
    require(
        stage in (0, 1, 2, 3) and not isinstance(stage, bool),
        f"{config.deepspeed.config} sets zero_optimization.stage to {stage!r}; it must be 0, 1, 2 or 3",
    )
    return int(stage)


def check_partition(config: OptimizerConfig, *, zero_stage: int) -> None:
    """Refuse an optimizer that cannot train weights divided in this way."""
    require(
        config.kind == "adamw" or zero_stage == 0,
        f'optimizer.kind ("muon") needs whole matrices, which deepspeed.zero_stage = {zero_stage} cuts into pieces; '
        f"set it to 0, or {by_adamw(config)}",
    )


def by_adamw(config: OptimizerConfig) -> str:
    """Say how settings are made ones for AdamW; whether the rate was chosen for Muon only the user knows."""
    lr = max(config.lr * ADAMW_LR, config.min_lr)
    return (
        "go over to AdamW, at half the rate if it was chosen for Muon: --set optimizer.kind=adamw --set "
        f"optimizer.lr={lr:.3g}"
    )


def _user_settings(config: TrainingConfig) -> dict[str, Any]:
    """Read the user's file, if there is one, and refuse what it may not say."""
    file = config.deepspeed.config
    user: dict[str, Any] = _without_auto(_read_user_json(file))
    _check_user_keys(file, user)
    return user


def _without_auto(value: Any) -> Any:
    """Leave out what is "auto", as files made for Hugging Face's trainer say where the trainer is to decide."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_auto(entry) for key, entry in value.items() if entry != "auto"}
    return {key: entry for key, entry in kept.items() if entry != {} or value[key] == {}}


def _check_user_keys(file: str | None, user: Mapping[str, Any]) -> None:
    for key, value in user.items():
        if key in _OWN_KEYS:
            raise InputError(f"{file} sets {key!r}, set elsewhere; remove it and use {_OWN_KEYS[key]}")
        likely = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.8)
        if key not in _KEYS and likely:  # DeepSpeed takes any key, and makes nothing of those it does not know
            raise InputError(f"{file} sets {key!r}; did you mean {likely[0]!r}?")
        if key == "zero_optimization" and not isinstance(value, Mapping):
            raise InputError(f"{file} sets {key!r} to {value!r}; it must be an object")


def _read_user_json(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"deepspeed.config ({path}) cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise InputError(f"deepspeed.config ({path}) is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"deepspeed.config ({path}) must hold a JSON object")
    return content


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = _merge(result[key], value) if nested else value
    return result
