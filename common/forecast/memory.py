"""The memory of a training, by parts: its own formula, checked against measured peaks (`docs/plan.md`).

DeepSpeed's estimate of ZeRO 2 counts half precision weights, which no training here has: weights, gradients and moments
are float32 at every stage.

On a CPU it is the memory of one rank's process and of its data workers, as the operating system counts it. On a GPU it
is what the rank takes of the device; its process in the host's memory is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from beit.common.forecast.hardware import Precision
from beit.common.forecast.model import FLOAT, TrainedModel, vit_model
from beit.common.vit.config import ViTConfig

_PROCESS_BYTES = 465e6
"""Of a process that trains on a CPU: Python, torch, DeepSpeed and what they bring, and what libraries of products keep;
measured on Linux: 450 MB before the first product, and up to 30 more behind it on processors without AVX-512."""
_REPORT_BYTES = 45e6
"""Of the page at the end, charts above all; data workers are gone by then. Measured."""
_ZERO_BYTES = 60e6
"""Of what ZeRO 1 to 3 bring along, on a CPU; measured."""
_WORKERS_BYTES, _WORKER_BYTES = 177e6, 25e6
"""Of all data workers together, with the server that imports for them and Python's tracker of resources, and of each,
beside the rank; measured."""
_CONTEXT_BYTES = 600e6
"""Of a GPU's memory, what CUDA and the collectives take for themselves; assumed."""
_FRAGMENTS = 0.05
"""Of activations, what the allocator cannot use; assumed on a GPU, measured on a CPU."""
_EVALUATED_FRAGMENTS = 0.5
"""Of what an evaluation has at once on a CPU, the same: of many sizes, nothing of which is kept from layer to layer.
Measured with 256 images at once; the predictions of the batch before are in it."""
_SAVED_TWICE = 1.15
"""Of moments and averages, what writing a checkpoint takes besides; measured."""
_COPIES_EXCHANGED = {"cpu": 4, "cuda": 2}
"""Of the bucket, while ZeRO's ranks exchange it: measured with gloo, assumed with NCCL."""
_LARGEST_BUCKET = 500_000_000
"""Gradients that are exchanged at a time, in elements: DeepSpeed's default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes per rank, by what they are for."""

    weights: float
    """Of the model, with copies in another number format."""
    gradients: float
    """Of what is trained."""
    optimizer: float
    """Moments, averages, and what ZeRO keeps of the weights."""
    activations: float
    """What a micro-batch keeps for the backward pass, or an evaluation or a checkpoint needs, whichever is most."""
    workspace: float
    """What is there for a moment: buffers, the loss; and the process itself, or what CUDA takes of a device."""
    loaders: float
    """Data workers; of a GPU's memory, the batches that they have made."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    @property
    def of_model(self) -> float:
        """What does not depend on the micro-batch and is not shared by processes."""
        return self.weights + self.gradients + self.optimizer


def training_memory(
    shape: ViTConfig,
    *,
    micro_batch_size: int,
    head_rows: int = 1,
    head_outputs: int = 1000,
    zero_stage: int = 0,
    world_size: int = 1,
    precision: Precision = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    ema: bool = False,
    optimizer: Literal["adamw", "muon"] = "adamw",
    evaluated_at_once: int = 0,
    num_workers: int = 0,
    prefetch_batches: int = 2,
    **model: Any,
) -> Memory:
    """Return the memory of a rank that trains a vision transformer; see `vit_model` and `memory_of`."""
    return memory_of(
        vit_model(shape, head_rows=head_rows, head_outputs=head_outputs, precision=precision, device=device, **model),
        micro_batch_size=micro_batch_size,
        zero_stage=zero_stage,
        world_size=world_size,
        device=device,
        ema=ema,
        optimizer=optimizer,
        evaluated_at_once=evaluated_at_once,
        num_workers=num_workers,
        prefetch_batches=prefetch_batches,
    )


def memory_of(
    model: TrainedModel,
    *,
    micro_batch_size: int,
    zero_stage: int = 0,
    world_size: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    ema: bool = False,
    optimizer: Literal["adamw", "muon"] = "adamw",
    evaluated_at_once: int = 0,
    num_workers: int = 0,
    prefetch_batches: int = 2,
    worker_bytes: float = 0.0,
) -> Memory:
    """Return the memory of a rank that trains a model.

    Args:
        model: Counted for the precision and the device of the training.
        micro_batch_size: Images per forward pass of a rank.
        zero_stage: 0 replicates; 1, 2, 3 part moments, gradients, weights over the ranks.
        world_size: Ranks on all machines.
        device: Where the ranks compute.
        ema: Whether an average of the weights is kept.
        optimizer: Muon has one moment of the matrices in the place of two.
        evaluated_at_once: Images per forward pass of an evaluation; 0 where nothing is.
        num_workers: Data workers of a rank.
        prefetch_batches: Micro-batches that each of them has ready.
        worker_bytes: Of each, more than any has.
    """
    trained = FLOAT * model.trained
    part = trained / world_size if zero_stage > 0 else trained
    weights = FLOAT * model.parameters - (trained - part if zero_stage == 3 else 0)
    gradients = trained if zero_stage == 0 else part
    states = part * ((1.1 if optimizer == "muon" else 2) + ema)
    bucket = FLOAT * min(model.trained, _LARGEST_BUCKET)
    exchanged = 0.0
    if zero_stage > 0:
        states += part  # of its own copy of the weights
        copies = 1 if world_size == 1 else _COPIES_EXCHANGED[device]
        exchanged = copies * bucket + (trained if zero_stage == 1 else 0)
    elif world_size > 1:
        exchanged = bucket
    step = micro_batch_size * (model.kept_bytes + model.passing_bytes) + model.step_bytes
    evaluation = evaluated_at_once * model.forward_bytes + model.step_bytes
    is_cpu = device == "cpu"
    # A checkpoint is put together in the host's memory; what a step or an evaluation needs is free again by then. So is
    # it when the page at the end is drawn, and more: the workers.
    saving = _SAVED_TWICE * trained * (2 + ema) if is_cpu else 0.0
    drawing = _REPORT_BYTES if is_cpu and not num_workers else 0.0
    evaluation *= 1 + (_EVALUATED_FRAGMENTS if is_cpu else _FRAGMENTS)
    activations = max((1 + _FRAGMENTS) * step, evaluation, saving, drawing)
    rows = prefetch_batches * micro_batch_size * model.row_bytes
    if is_cpu:
        itself = _PROCESS_BYTES + _ZERO_BYTES * (zero_stage > 0)
        loaders = _WORKERS_BYTES * (num_workers > 0) + num_workers * (_WORKER_BYTES + worker_bytes + rows)
    else:  # the batch that is computed, and the next one on its way
        itself, loaders = _CONTEXT_BYTES, 2 * micro_batch_size * model.row_bytes
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states,
        activations=activations,
        workspace=exchanged + itself,
        loaders=loaders,
    )
