"""What the settings that every training has make of its forecast: its course, its reading, and advice about its plan.

Torch-free, so that `beit plan` answers at once. The arithmetic is `common/forecast/`; what a stage trains is in its own
`forecast.py`.
"""

from __future__ import annotations

from beit.common.errors import InputError
from beit.common.forecast.hardware import Hardware
from beit.common.forecast.model import TrainedModel
from beit.common.forecast.rules import Problem, problems_of
from beit.common.forecast.training import Course, Reading, TrainingForecast, forecast_training
from beit.common.forecast.words import in_digits
from beit.common.training.config import TrainingConfig, TrainingPlan, plan_training
from beit.common.training.engine_settings import check_partition, zero_stage

_FEW_STEPS, _STEPS_PER_EPOCH = 100, 10
"""A run of fewer steps learns little, whatever it reads; what is advised instead has so many steps per epoch."""
_NORMAL_SECONDS = 3e-3
"""Of one core, for a sample of which nothing else is known."""


def forecast_run(
    config: TrainingConfig,
    model: TrainedModel,
    hardware: Hardware,
    *,
    num_samples: int,
    seconds_per_image: float = _NORMAL_SECONDS,
    worker_bytes: float = 0.0,
    evaluation_images: float = 0.0,
    evaluated_at_once: int = 0,
    tokens: int = 0,
    rows_together: int | None = 1,
    copies: int = 1,
    artifacts: int = 1,
    problems: tuple[Problem, ...] = (),
    plan: TrainingPlan | None = None,
) -> TrainingForecast:
    """Return what a training of these settings takes.

    Args:
        config: The settings, those of the model and the data apart.
        model: What is trained, counted for the device and its precision.
        hardware: Where.
        num_samples: To train on, in an epoch.
        seconds_per_image: Of one core, to read a sample.
        worker_bytes: Of each data worker, more than any has.
        evaluation_images: That an evaluation looks at; 0 where nothing is measured.
        evaluated_at_once: Of these, per forward pass of a rank.
        tokens: Of an image; 0 where a micro-batch is a rank's whole share.
        rows_together: As for `TrainingData`.
        copies: Of the weights in a checkpoint.
        artifacts: Copies of the weights outside of checkpoints.
        problems: Found before.
        plan: Of a run that begins; left out, what the settings make.
    """
    stage, found = zero_stage(config), list(problems)
    size = config.train.micro_batch_size if plan is None else plan.micro_batch_size
    found += problems_of(lambda: check_partition(config.optimizer, zero_stage=stage))
    if plan is None:
        plan, broken = _planned(config, num_samples=num_samples, world_size=hardware.num_devices)
        found += broken
    advice = plan_advice(config, plan)
    found += [advice] if advice is not None else []
    train, checkpoint = config.train, config.checkpoint
    forecast = forecast_training(
        model,
        Course(
            steps=plan.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
            global_batch_size=plan.global_batch_size,
            save_interval_steps=plan.save_interval_steps,
            eval_interval_steps=train.eval_interval_steps,
            keep=checkpoint.keep,
            keep_every_steps=checkpoint.keep_every_steps,
            copies=copies,
            artifacts=artifacts,
        ),
        Reading(
            seconds_per_image=seconds_per_image,
            num_workers=config.reader.num_workers,
            prefetch_batches=config.reader.prefetch_batches,
            worker_bytes=worker_bytes,
            evaluation_images=evaluation_images,
            evaluated_at_once=evaluated_at_once,
        ),
        hardware,
        micro_batch_size=size,
        rows_together=rows_together,
        tokens=tokens,
        zero_stage=stage,
        ema=train.ema_decay is not None,
        optimizer=config.optimizer.kind,
        problems=tuple(found),
    )
    return forecast


def _planned(config: TrainingConfig, *, num_samples: int, world_size: int) -> tuple[TrainingPlan, tuple[Problem, ...]]:
    """Return the plan of a run, and what is wrong with it; where the ranks cannot share its batch, that of one rank."""

    def of(ranks: int) -> TrainingPlan:
        return plan_training(
            config.train, config.optimizer, config.checkpoint, num_samples=num_samples, world_size=ranks
        )

    try:
        return of(world_size), ()
    except InputError as error:
        return of(1), (Problem.of(error),)


def settled_precision(config: TrainingConfig, hardware: Hardware) -> Hardware:
    """Return the hardware in the number format that the settings ask for."""
    precision = config.train.precision
    return hardware if precision == "auto" else hardware.in_precision(precision)


def plan_advice(config: TrainingConfig, plan: TrainingPlan) -> Problem | None:
    """Advise where a step has more images than there are, or the steps are too few to learn from."""
    num_samples = round(plan.steps_per_epoch * plan.global_batch_size)
    batch = better_batch(num_samples)
    if batch >= plan.global_batch_size:
        return None
    # Where the batch shrinks, so does what a step may change: the rule for AdamW goes by the square root.
    lr = config.optimizer.lr * (batch / plan.global_batch_size) ** 0.5
    way_out = f"--set train.global_batch_size={batch} --set optimizer.lr={lr:.1g}"
    if plan.steps_per_epoch < 1:
        what = (
            f"train.global_batch_size ({plan.global_batch_size}) is more than the {num_samples} "
            f"image{'s' * (num_samples != 1)} to train on: a step has each {in_digits(1 / plan.steps_per_epoch)} "
            f"times, and {counted(plan)} teach little"
        )
        return Problem(what=what, way_out=f"take a smaller one: {way_out}", is_fatal=False)
    if plan.total_steps < _FEW_STEPS and config.train.steps is None:
        what = f"{counted(plan)} of {num_samples} image{'s' * (num_samples != 1)} teach little"
        return Problem(what=what, way_out=f"take smaller batches: {way_out}", is_fatal=False)
    return None


def better_batch(num_samples: int) -> int:
    """Return a batch for so many images, a power of two: about ten steps per epoch, of 8 images at least."""
    largest = max(1, num_samples // _STEPS_PER_EPOCH)
    return max(8, 1 << (largest.bit_length() - 1))


def counted(plan: TrainingPlan) -> str:
    """Say how many steps and epochs a plan has."""
    epochs = in_digits(plan.total_steps / plan.steps_per_epoch, 4)
    return f"{plan.total_steps} step{'s' * (plan.total_steps != 1)} = {epochs} epoch{'s' * (epochs != '1')}"
