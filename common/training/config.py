"""Settings of the training loop and the numbers derived from them; torch-free, so that mistakes are reported at once.

Stages put these sections into their own config, `SpeedConfig` among them: how fast a training runs and what is measured
of it, never what is learned. What depends on the model or the data is in `<stage>/config.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from beit.common.config import above, at_least, checked, within
from beit.common.errors import InputError, require
from beit.common.reading.batch_plan import grad_accum_steps_for
from beit.common.reading.config import ReaderConfig

_WINDOW = re.compile(r"(\d+):(\d+)")
_WARMUP_START = 1e-6
"""Share of the learning rate at which the warmup of `poly_schedule` begins."""


@checked("train")
class TrainConfig:
    """Length, batch and rhythm of a run."""

    epochs: Annotated[float, above(0)] = 800.0
    """Passes over the training samples; ignored when `steps` is given."""
    steps: Annotated[int | None, at_least(1)] = None
    """Optimizer steps of the whole run."""
    global_batch_size: Annotated[int, at_least(1)] = 2048
    """Samples per optimizer step over all ranks; part of the data order, so it is fixed for a run."""
    micro_batch_size: Annotated[int | None, at_least(1)] = None
    """Samples per forward pass of one rank. Left out, it is chosen: on a CPU as small as is quick, on a GPU as large as
    fits; and kept when the run goes on. Smaller needs less memory for the same step."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16, fp16: torch.autocast over fp32 weights; weights, moments and the residual stream stay fp32. fp16 adds a
    dynamic loss scale; it is for GPUs without bf16. auto: bf16 where the device is quicker in it, else fp32."""
    seed: int = 0
    """Of initialisation, data order, masks and drop path."""
    log_interval_steps: Annotated[int, at_least(1)] = 50
    """Optimizer steps between two records in metrics.jsonl; reading a metric waits for the device."""
    eval_interval_steps: Annotated[int | None, at_least(1)] = None
    """Optimizer steps between two evaluations; left out, once per epoch, or less often so that they take at most a
    tenth of the time. There is always one at the end."""
    ema_decay: Annotated[float | None, within("(0, 1)", "use none for no average")] = None
    """Share per step that a running average of the weights keeps of itself, such as 0.999; what is measured and written
    for use is then the average. Left out, no average. The first steps keep less: min(ema_decay, (1 + t) / (10 + t))."""
    early_stop_evals: Annotated[int | None, at_least(1)] = None
    """End the run when this many evaluations in a row have not improved on the best; left out, run to the end."""
    meeting_timeout_seconds: Annotated[float, at_least(1)] = 120.0
    """How long a rank waits for the others to start; longer where machines or pods come minutes apart."""
    collective_timeout_seconds: Annotated[float, at_least(1)] = 300.0
    """How long a rank waits for the others before the run fails; must exceed the time to write one checkpoint."""


@checked("optimizer")
class OptimizerConfig:
    """AdamW with linear warmup and a way down; the defaults are BEiT's pre-training setting."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: the matrices of the transformer blocks by Muon, everything else by AdamW; `lr` and `weight_decay` serve
    both. Only with deepspeed.zero_stage 0."""
    lr: Annotated[float, above(0)] = 1.5e-3
    """Peak learning rate, used as it is: never scaled with the batch."""
    min_lr: float = 1e-5
    """Learning rate the schedule ends at."""
    schedule: Literal["cosine", "poly"] = "cosine"
    """Way down after the warmup: half a cosine, or poly, a power of the share of the run that is left."""
    power: Annotated[float, above(0)] = 1.0
    """Of poly; 1 is a straight line."""
    warmup_epochs: Annotated[float, at_least(0)] = 10.0
    """Length of the linear warmup; ignored when `warmup_steps` is given."""
    warmup_steps: Annotated[int | None, at_least(0)] = None
    """Length of the linear warmup in optimizer steps."""
    weight_decay: Annotated[float, at_least(0)] = 0.05
    """Decoupled weight decay of matrices; biases and norms have none."""
    final_weight_decay: Annotated[float | None, at_least(0)] = None
    """Weight decay at the end of a cosine of its own; left out, it stays constant."""
    betas: Annotated[tuple[float, float], within("[0, 1)")] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: Annotated[float, above(0)] = 1e-8
    """AdamW's denominator offset."""
    clip_grad: Annotated[float | None, above(0, "use none for no clipping")] = 3.0
    """Largest global L2 norm of the gradient; left out, no clipping."""

    def __post_init__(self) -> None:
        require(
            0 <= self.min_lr <= self.lr, f"optimizer.min_lr ({self.min_lr}) must be in [0, optimizer.lr = {self.lr}]"
        )


@checked("checkpoint")
class CheckpointConfig:
    """When to save and how much to keep."""

    interval_steps: Annotated[int | None, at_least(1)] = None
    """Optimizer steps between two checkpoints; left out, once per epoch, unless the last is too recent for what one
    costs. The end of a run is always saved."""
    every_minutes: Annotated[float | None, above(0)] = None
    """Save also when this long has passed since the last save; left out, by steps only."""
    keep: Annotated[int, at_least(2)] = 2
    """Committed checkpoints to keep; at least two, so that a damaged one has a predecessor."""
    keep_every_steps: Annotated[int | None, at_least(1)] = None
    """Keep for good, besides, the first checkpoint at or after every multiple of so many steps; left out, none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """What belongs to a run as a whole."""

    sync_to: str | None = None
    """Folder or URL, such as "s3://bucket/runs/name", that every committed checkpoint is copied to in the background,
    with metrics and artifacts; on a machine without the run, --resume auto fetches it from there."""
    wandb: str | None = None
    """Weights & Biases project that metrics and pictures go to as well; left out, none. Needs the extra `wandb`."""
    report: bool = True
    """Write RUN/report.html, one page about the run, when it ends or stops; takes seconds."""
    allow_data_change: bool = False
    """Continue although the data are not those of the checkpoint: another index, or another number of views. The order
    is then that of the new data, from the same position on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepSpeedConfig:
    """What is passed on to DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """0 replicates; 1, 2, 3 partition optimizer states, gradients, weights over the ranks."""
    config: str | None = None
    """Path of a DeepSpeed JSON that is merged over the generated one."""


class TrainingConfig(Protocol):
    """The sections of a stage's settings that every training has."""

    @property
    def reader(self) -> ReaderConfig:
        """Loading."""

    @property
    def train(self) -> TrainConfig:
        """Length, batch, rhythm, precision and seed."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW and schedule."""

    @property
    def checkpoint(self) -> CheckpointConfig:
        """What to keep."""

    @property
    def deepspeed(self) -> DeepSpeedConfig:
        """ZeRO stage."""

    @property
    def speed(self) -> SpeedConfig:
        """How the model is run."""

    @property
    def profile(self) -> ProfileConfig:
        """Steps to record."""

    @property
    def run(self) -> RunConfig:
        """Where copies go."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPlan:
    """Numbers derived once from the settings, the data and the world."""

    total_steps: int
    """Optimizer steps of the whole run."""
    warmup_steps: int
    """Of these, in the warmup."""
    steps_per_epoch: float
    """Training samples / global batch size; not rounded, because batches straddle epochs."""
    global_batch_size: int
    """Samples per optimizer step."""
    micro_batch_size: int
    """Samples per forward pass of one rank."""
    grad_accum_steps: int
    """Micro-batches per rank and optimizer step."""
    eval_interval_steps: int
    """Optimizer steps between two evaluations as set, else in an epoch; see `rhythm.py`."""
    save_interval_steps: int
    """Optimizer steps between two checkpoints as set, else in an epoch."""

    def __str__(self) -> str:
        epochs = self.total_steps / self.steps_per_epoch
        return f"{self.total_steps} steps of {self.global_batch_size} images = {epochs:.1f} epochs"


def plan_training(
    train: TrainConfig, optimizer: OptimizerConfig, checkpoint: CheckpointConfig, *, num_samples: int, world_size: int
) -> TrainingPlan:
    """Derive step counts and batch shares, for `num_samples` training samples in an epoch.

    A micro-batch that is left out is the whole share here; `micro_batches.py` chooses one when the run begins.
    """
    batch = train.global_batch_size
    micro_batch_size = train.micro_batch_size or max(1, batch // world_size)
    steps_per_epoch = num_samples / batch
    total_steps = train.steps or max(1, round(train.epochs * num_samples) // batch)
    # Given in epochs, the warmup of a long recipe must still end when somebody tries a few steps of it.
    warmup_steps = min(round(optimizer.warmup_epochs * steps_per_epoch), total_steps // 2)
    if optimizer.warmup_steps is not None:
        warmup_steps = optimizer.warmup_steps
    require(
        warmup_steps <= total_steps,
        f"optimizer.warmup_steps ({warmup_steps}) must not exceed the {total_steps} steps of the run; lower it",
    )
    per_epoch = max(1, round(steps_per_epoch))
    return TrainingPlan(
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        steps_per_epoch=steps_per_epoch,
        global_batch_size=batch,
        micro_batch_size=micro_batch_size,
        grad_accum_steps=grad_accum_steps_for(batch, micro_batch_size, world_size),
        eval_interval_steps=train.eval_interval_steps or per_epoch,
        save_interval_steps=checkpoint.interval_steps or per_epoch,
    )


def cosine_schedule(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Evaluate linear warmup from 0 followed by half a cosine down towards `final`.

    Both ends of the warmup are included, so step 0 has the value 0 exactly, and the peak stands twice: at the last
    warmup step and at the first cosine step. The last step stays one cosine step short of `final`.

    Args:
        step: Optimizer step, from 0; past the end the value of the last step holds.
        total_steps: Steps of the run, warmup included.
        warmup_steps: Steps of the warmup; 0 starts at the peak.
        peak: Value at the end of the warmup.
        final: Value the cosine approaches.

    Returns:
        The value at this step.

    Source: the released BEiT code. Differs: a warmup given in steps alone works, and steps past the end are defined.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise InputError(
            f"warmup_steps ({warmup_steps}) must be in [0, total_steps ({total_steps})]; shorten the warmup"
        )
    step = min(step, total_steps - 1)
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps - 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


def poly_schedule(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float, power: float = 1.0
) -> float:
    """Evaluate a power of the share of the run that is left, from `peak` down to `final`, with a linear warmup on it.

    The way down begins at step 0, and the warmup is a factor on it, from a millionth at step 0 to 1 at `warmup_steps`.
    The arguments are those of `cosine_schedule`, and `power`: 1 is a straight line.

    Source: mmcv 1.3 (`PolyLrUpdaterHook` with warmup linear, warmup_ratio 1e-6), as BEiT's segmentation sets it.
        Differs: steps past the end have the value of the last step.
    """
    step = min(step, total_steps - 1)
    value: float = final + (peak - final) * (1 - step / total_steps) ** power
    missing = max(0.0, 1 - step / warmup_steps) if warmup_steps else 0.0
    return value * (1 - missing * (1 - _WARMUP_START))


def learning_rate(step: int, optimizer: OptimizerConfig, plan: TrainingPlan) -> float:
    """Return the learning rate of a step by the schedule of the settings."""
    span = {"total_steps": plan.total_steps, "warmup_steps": plan.warmup_steps}
    if optimizer.schedule == "poly":
        return poly_schedule(step, **span, peak=optimizer.lr, final=optimizer.min_lr, power=optimizer.power)
    return cosine_schedule(step, **span, peak=optimizer.lr, final=optimizer.min_lr)


@checked("speed")
class SpeedConfig:
    """The `[speed]` section: time and memory of a step of a vision transformer."""

    compile: bool = False
    """Put the model through torch.compile. The first step then takes a minute or more, and a C++ compiler must be
    installed; on a GPU a C compiler and triton. Not with ZeRO 3."""
    activation_checkpointing: bool = False
    """Keep only what enters each block, and compute the rest again in the backward pass: a model of many blocks or a
    large micro-batch then fits, for about a third more time. Gradients are the same, bit for bit."""
    peak_tflops: Annotated[float | None, above(0)] = None
    """What a rank's device can do at most, in 10^12 multiplications and additions per second in the precision of the
    run; `mfu` in metrics.jsonl is relative to it. Left out, the data sheet's value of common GPUs, else no mfu."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """The `[profile]` section: a look at where the time of a few steps goes."""

    steps: str | None = None
    """Steps to record, as FIRST:END, counted from 0 and without END, such as 10:13. Each rank leaves a trace for
    Perfetto or chrome://tracing in RUN/profile, on a GPU also a snapshot of its memory. Left out, nothing is recorded.
    """

    def __post_init__(self) -> None:
        if self.steps is not None:
            match = _WINDOW.fullmatch(self.steps)
            require(
                match is not None and int(match[1]) < int(match[2]),
                f"profile.steps ({self.steps}) must be FIRST:END with FIRST < END, such as 10:13",
            )

    @property
    def window(self) -> range:
        """The steps to record; empty where there are none."""
        if self.steps is None:
            return range(0)
        first, end = self.steps.split(":")
        return range(int(first), int(end))
