"""A few steps of a real pre-training model under every ZeRO stage, precision and accumulation; run as a module.

Usage: python -m beit.tests.zero_parity STORE OUT, which starts two ranks; rank 0 writes what happened to OUT.
In step `BAD_STEP` the gradient of one weight is NaN on rank 1 alone.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from beit.common.config import config_from_dict
from beit.common.processes.distributed import World, init_distributed
from beit.common.processes.launch import launch_ranks
from beit.common.processes.launcher_env import under_launcher
from beit.common.processes.rank_reports import capture_output, record_exit
from beit.common.shards.token_store import TokenStore
from beit.common.store import open_store
from beit.common.training.config import DeepSpeedConfig
from beit.common.training.engine import Engine
from beit.common.training.portable_state import gather_state, scatter_state
from beit.common.vit.adaptation import Adaptation, adapt
from beit.pretrain.config import PretrainConfig
from beit.pretrain.train import PretrainTask

STEPS, BAD_STEP, BAD_RANK, WORLD_SIZE = 5, 2, 1, 2
MICRO_BATCH_SIZES = {1: 8, 2: 4}
"""By micro-batches per rank and step."""
PRECISIONS = ("fp32", "bf16", "fp16")
CASES = (
    [(stage, "fp32", 1, "all") for stage in range(4)]
    + [(stage, precision, 2, "all") for precision, stage in itertools.product(PRECISIONS, range(4))]
    + [(stage, "fp32", 2, "lora:4") for stage in range(4)]
    + [(stage, precision, 2, "lora:4") for stage, precision in ((0, "fp16"), (1, "bf16"), (2, "fp16"), (3, "bf16"))]
    + [(stage, "fp32", 2, "last:1") for stage in (0, 2, 3)]
)
"""ZeRO stage, precision, micro-batches per rank and step, what is trained."""
LR = 1e-2
Case = tuple[int, str, int, str]


def config_for(precision: str, accumulation: int) -> PretrainConfig:
    return config_from_dict(
        PretrainConfig,
        {
            "model": {"size": "tiny", "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path": 0.0},
            "mask": {"exact": True},
            "train": {
                "steps": STEPS,
                "global_batch_size": 16,
                "micro_batch_size": MICRO_BATCH_SIZES[accumulation],
                "precision": precision,
            },
            "optimizer": {"lr": LR, "clip_grad": 0.5, "warmup_steps": 0},
            "reader": {"num_workers": 0},
        },
    )


def task_for(store: TokenStore, precision: str, accumulation: int, setting: str, world: World) -> PretrainTask:
    torch.manual_seed(0)
    task = PretrainTask(config_for(precision, accumulation), store, world)
    adapt(task.model, Adaptation.parse(setting))
    return task


def steps_of(task: PretrainTask) -> Iterator[list[Any]]:
    batches = iter(task.data.micro_batches(0))
    for _ in range(STEPS):
        yield list(itertools.islice(batches, task.data.plan.grad_accum_steps))


def poison(model: torch.nn.Module) -> Any:
    parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    return parameter.register_hook(lambda gradient: gradient * float("nan"))


def train(store: TokenStore, world: World, case: Case) -> dict[str, Any]:
    """Train through DeepSpeed; also moves the state after the bad step to the next ZeRO stage, and goes on there."""
    stage, precision, accumulation, setting = case
    task = task_for(store, precision, accumulation, setting, world)
    engine = build(task, stage, world)
    losses, verdicts, states = [], [], []
    for step, batches in enumerate(steps_of(task)):
        engine.set_schedule(lr=LR, weight_decay_factor=1.0)
        is_bad = step == BAD_STEP and world.rank == BAD_RANK
        hook = poison(engine.model) if is_bad else None
        if step in (BAD_STEP, BAD_STEP + 1):
            states.append(gather_state(engine))
        means = [engine.forward_backward(batch, step)[0] for batch in batches]
        engine.step()
        if hook is not None:
            hook.remove()
        losses.append(world.mean_of([float(torch.stack(means).mean())])[0])
        verdicts.append(float(engine.verdict()))
    engine.close()
    result = {"losses": losses, "verdicts": verdicts, "moved": moved(store, world, case, states[1])}
    if world.is_main:
        before, after = states
        values = [(before.model, after.model), (before.optimizer, after.optimizer)]
        result["changed"] = [name for old, new in values for name in old if not torch.equal(old[name], new[name])]
    return result


def moved(store: TokenStore, world: World, case: Case, state: Any) -> float:
    """Return the loss of the step after the bad one, computed by a fresh engine of another stage from the state."""
    stage, precision, accumulation, setting = case
    task = task_for(store, precision, accumulation, setting, world)
    engine = build(task, (stage + 1) % 4, world)
    state = world.broadcast(state)
    scatter_state(engine, state.model.__getitem__, state.optimizer.get)
    batches = next(itertools.islice(steps_of(task), BAD_STEP + 1, None))
    means = [engine.forward_backward(batch, BAD_STEP + 1)[0] for batch in batches]
    engine.step()
    engine.close()
    return world.mean_of([float(torch.stack(means).mean())])[0]


def build(task: PretrainTask, stage: int, world: World) -> Engine:
    return Engine(task, replace(task.config, deepspeed=DeepSpeedConfig(zero_stage=stage)), world=world)


@functools.cache
def train_plainly(store: TokenStore, precision: str, accumulation: int, setting: str) -> list[float]:
    """Train with torch alone, in this process, on what the ranks read together; the bad step is left out."""
    shares = []
    for rank in range(WORLD_SIZE):
        world = World(rank=rank, local_rank=rank, world_size=WORLD_SIZE, device=torch.device("cpu"))
        task = task_for(store, precision, accumulation, setting, world)
        shares.append(list(steps_of(task)))
    optimizer = torch.optim.AdamW(
        [{name: value for name, value in group.items() if name != "lr_scale"} for group in task.param_groups()], lr=LR
    )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    losses = []
    for step in range(STEPS):
        batches = [batch for share in shares for batch in share[step]]
        values = []
        for batch in batches:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss, _ = task.forward(task.model, batch, step)
            (loss.float() / len(batches)).backward()
            values.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 0.5)
        if step != BAD_STEP:
            optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(values) / len(values))
    return losses


def main() -> int:
    if not under_launcher():
        return launch_ranks(gpus=WORLD_SIZE, module="beit.tests.zero_parity")
    capture_output()
    store, out = open_store(sys.argv[1]), Path(sys.argv[2])
    world = init_distributed()
    found = {repr(case): train(store, world, case) for case in CASES}
    if world.is_main:
        out.write_text(json.dumps(found))
    record_exit(0)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
