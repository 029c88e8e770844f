"""How many images go through the model at a time where the settings leave it open, and whether the run fits at all.

The optimizer step is the same whatever the micro-batch; only memory and time differ. So on a CPU it is the smallest
that is about as fast as any larger one, on a GPU the largest that fits. It is recorded, and a run that goes on takes
what was recorded: rounding and the draws of drop path depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from beit.common.errors import InputError, RunFailed
from beit.common.forecast.micro_batch import divisors, largest_that_fits, wanted_size
from beit.common.forecast.words import in_gb
from beit.common.processes.cores import ranks_here
from beit.common.processes.distributed import World, apart
from beit.common.runs.checkpoint import Checkpoint
from beit.common.runs.layout import MICRO_BATCH
from beit.common.training.config import TrainingConfig, TrainingPlan
from beit.common.training.engine import autocast_to, choose_precision
from beit.common.training.measure import free_memory_bytes
from beit.common.training.speed import apply_speed
from beit.common.training.task import Task
from beit.common.vit.vit import VisionTransformer

logger = logging.getLogger(__name__)

_VALUES_KEPT, _VALUES_PASSED, _VALUES_RECOMPUTED = 12, 6, 1
"""Values per token, channel and block that the backward pass needs at the very least: of a block that is trained, of
one that only hands gradients down, and of one that is computed again. Measured: 19 to 24 (20 with updates of low rank),
13, and 1.3 to 2.2; less is kept of the last block."""
_BELOW_BLOCKS = ("cls_token", "mask_token", "pos_embed", "patch_embed.", "rel_pos_bias.")
_SPARE = 1.1
"""Room to leave on a GPU beside what training is known to need: buffers of collectives, fragments."""
_WAY_OUT = "take a smaller model or smaller images, or speed.activation_checkpointing=true"


def settle_micro_batch(task: Task, config: TrainingConfig, *, checkpoint: Checkpoint | None, world: World) -> None:
    """Decide on the micro-batch of a run that is about to begin or go on, the same on every rank.

    Raises:
        InputError: the memory of this machine is surely not enough.
    """
    data, chosen = task.data, config.train.micro_batch_size
    if chosen is None:
        share = data.plan.global_batch_size // world.world_size
        if checkpoint is None:
            size = _choose(task, config, share, world)
        else:
            size = recorded_size(checkpoint.record, share, ranks=world.world_size if data.is_joint else None)
        if size is not None:
            data.use_micro_batches_of(size)
    if checkpoint is None or checkpoint.step < data.plan.total_steps:
        _refuse_too_large(task, config, world)
    plan = data.plan
    if world.is_main and data.is_joint and checkpoint is not None:
        _warn_of_other_statistics(checkpoint.record, plan.micro_batch_size * world.world_size)
    if world.is_main and chosen is None and plan.grad_accum_steps > 1:
        logger.info(
            "micro-batches of %d images, %d per step%s (train.micro_batch_size)",
            plan.micro_batch_size,
            plan.grad_accum_steps,
            ", as the run began" if checkpoint is not None else "",
        )


def recorded_size(record: Mapping[str, Any], share: int, *, ranks: int | None = None) -> int | None:
    """Return the micro-batch that a checkpoint was trained with, or with other ranks the next smaller one.

    None where it does not say: it is of before, and a rank's whole share went through the model at once.

    Args:
        record: Of the checkpoint.
        share: Samples of a step on each rank.
        ranks: Of now, where as many images are to go through the model at a time over all of them as before.
    """
    size = record.get(MICRO_BATCH)
    if size is None:
        return None
    if ranks is not None:
        size = max(1, size * int(record["world_size"]) // ranks)
    return max(divisor for divisor in divisors(share) if divisor <= size)


def _warn_of_other_statistics(record: Mapping[str, Any], now: int) -> None:
    """Say so where statistics are of another number of images than before: the run ends otherwise than it would have.

    Args:
        record: Of the checkpoint.
        now: Images that go through the model at a time, over all ranks.
    """
    before = record[MICRO_BATCH] * record["world_size"] if MICRO_BATCH in record else now
    if before != now:
        logger.warning(
            "batch norm saw %d images at a time and now sees %d, which changes what is learned; to go on as before, "
            "leave train.micro_batch_size out or set it to %d divided by the number of ranks",
            *(before, now, before),
        )


def _choose(task: Task, config: TrainingConfig, share: int, world: World) -> int | None:
    together = task.data.rows_together
    if together is None:  # the loss looks across the whole of it
        return None
    sizes = divisors(share, together)
    if world.device.type == "cuda":
        return _try_sizes(task, config, sizes, world)
    tokens = max((1 + vit.config.num_patches for vit in _transformers(task.model)), default=0)
    if not tokens:
        return None
    size = wanted_size(sizes, tokens)
    free = free_memory_bytes(world.device)
    if free is not None:
        room = 0.8 * free / ranks_here(world.world_size)
        fitting = [one for one in sizes if one <= size and needed_bytes(task.model, config, one, world) <= room]
        size = max(fitting, default=sizes[0])
    # Machines may have more or less memory; the smallest of the answers fits all.
    return int(-world.max_of([-size])[0])


def _try_sizes(task: Task, config: TrainingConfig, sizes: Sequence[int], world: World) -> int:
    """Return the largest size whose forward and backward pass every GPU of the run has the memory for."""
    model, device = task.model.to(world.device), world.device
    precision = choose_precision(config.train.precision, world)
    apply_speed(model, replace(config.speed, compile=False), device=device, zero_stage=config.deepspeed.zero_stage)
    example = task.data.example(sizes[0])

    def attempt(size: int) -> None:  # of its own, so that all it allocated is free again when it returns or fails
        reserved = torch.empty(_held_bytes(model, config, world), dtype=torch.uint8, device=device)
        with _without_trace(model, device), apart():
            with autocast_to(precision, device):
                loss, _ = task.forward(model, _enlarged(example, size, device), 0)
            loss.float().backward()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(device)
        del reserved

    def fits(size: int) -> bool:
        # Every rank tries, none waits for another inside a try, and all go by the one with the least room.
        fitted = True
        try:
            attempt(size)
        except torch.cuda.OutOfMemoryError:
            fitted = False
        torch.cuda.empty_cache()
        return not world.max_of([float(not fitted)])[0]

    size = largest_that_fits(sizes, fits)
    if size is None:
        raise InputError(
            f"a forward and backward pass of {sizes[0]} image{'s' * (sizes[0] > 1)} does not fit into the memory of "
            f"this GPU ({in_gb(free_memory_bytes(device) or 0)} are free); {_WAY_OUT}"
        )
    return size


@contextmanager
def shortage_in_words(plan: Callable[[], TrainingPlan]) -> Iterator[None]:
    """Let a training that runs out of memory say so in one line, with the setting that helps.

    Raises:
        RunFailed: there was no memory left; what was saved is intact.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_short = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)
        if not is_short:
            raise
        size = plan().micro_batch_size
        smaller = max((one for one in divisors(size) if one <= size // 2), default=None)
        way_out = f"train.micro_batch_size={smaller} needs less, for the same step" if smaller else _WAY_OUT
        raise RunFailed(
            f"out of memory with micro-batches of {size} images; {way_out}; run the same command with it to go on"
        ) from error


@contextmanager
def _without_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave gradients, buffers, mode and random numbers as they were, whatever happens inside."""
    mode, buffers = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(mode)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _enlarged(example: Mapping[str, Any], size: int, device: torch.device) -> dict[str, Any]:
    """Return a micro-batch of `size` rows: the first of the example's, again and again."""
    batch: dict[str, Any] = {}
    for name, values in example.items():
        if isinstance(values, torch.Tensor):
            batch[name] = values[:1].to(device).repeat(size, *[1] * (values.ndim - 1))
        else:
            batch[name] = list(values[:1]) * size
    return batch


def _held_bytes(model: nn.Module, config: TrainingConfig, world: World) -> int:
    """Return what a training holds of a GPU beside weights, gradients and activations, with some to spare.

    Moments and average of the weights; with ZeRO also its copies of the weights and its buckets.
    """
    trained = _num_trained(model)
    copies = 2 + (config.train.ema_decay is not None) + 3 * (config.deepspeed.zero_stage > 0)
    return int(4 * trained * copies + (_SPARE - 1) * torch.cuda.mem_get_info(world.device)[1])


def needed_bytes(model: nn.Module, config: TrainingConfig, size: int, world: World) -> int:
    """Return the memory that a training is sure to take beyond a model that is there, for micro-batches of `size`.

    Gradients, moments and average of the weights, and what vision transformers keep for the backward pass. A lower
    bound, also at ZeRO 1 to 3.
    """
    trained = _num_trained(model)
    states = 4 * trained * (2 + (config.train.ema_decay is not None))
    if config.deepspeed.zero_stage > 0:
        states //= world.world_size
    if config.deepspeed.zero_stage < 2:
        states += 4 * trained
    is_recomputed = config.speed.activation_checkpointing
    kept = sum(_kept_values(vit, is_recomputed=is_recomputed) for vit in _transformers(model))
    return states + 4 * kept * size


def _kept_values(vit: VisionTransformer, *, is_recomputed: bool) -> int:
    shape = vit.config
    flags = [any(weight.requires_grad for weight in block.parameters()) for block in vit.blocks]
    trained = sum(flags)
    # Where something before the blocks is trained, gradients go through those below the first that is, too.
    below = [weight for name, weight in vit.named_parameters() if name.startswith(_BELOW_BLOCKS)]
    passed = flags.index(True) if trained and any(weight.requires_grad for weight in below) else 0
    per_block = (1 + shape.num_patches) * shape.embed_dim
    # Of the last block only what is predicted may be kept; under recomputation one block at a time is kept whole.
    whole = 1 if is_recomputed else max(0, trained - 1)
    handed = 0 if is_recomputed else passed
    recomputed = trained - whole + passed - handed
    return per_block * (_VALUES_KEPT * whole + _VALUES_PASSED * handed + _VALUES_RECOMPUTED * recomputed)


def _refuse_too_large(task: Task, config: TrainingConfig, world: World) -> None:
    """Refuse a run that the memory of this machine is surely not enough for; on a GPU what was set is believed."""
    if world.device.type != "cpu":
        return
    size = task.data.plan.micro_batch_size
    sizes = divisors(task.data.plan.global_batch_size // world.world_size, task.data.rows_together or 1)
    free = free_memory_bytes(world.device)
    if free is None:
        return
    ranks = ranks_here(world.world_size)
    least = {one: ranks * needed_bytes(task.model, config, one, world) for one in (size, *sizes)}
    lacking, *_ = world.max_of([float(least[size] > free)])
    if not lacking:
        return
    fitting = max((one for one in sizes if one < size and least[one] <= 0.9 * free), default=None)
    (advised,) = world.max_of([-float(fitting or 0)])
    way_out = (
        _WAY_OUT if not advised else f"leave train.micro_batch_size out or set it to {int(-advised)}, for the same step"
    )
    raise InputError(
        f"a training with micro-batches of {size} images needs more than {in_gb(least[size])} of memory, of which "
        f"{in_gb(free)} are free; {way_out}"
    )


def _transformers(model: nn.Module) -> list[VisionTransformer]:
    return [module for module in model.modules() if isinstance(module, VisionTransformer)]


def _num_trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
