"""What a training will take, from its settings and what it runs on: steps, time, memory, disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from beit.common.forecast.evaluations import default_interval, due_steps, evaluation_cost
from beit.common.forecast.hardware import Hardware
from beit.common.forecast.memory import Memory, memory_of
from beit.common.forecast.micro_batch import divisors, largest_that_fits, wanted_size
from beit.common.forecast.model import FLOAT, TrainedModel
from beit.common.forecast.rules import Problem
from beit.common.forecast.words import in_gb, in_words

_EVALUATED = 0.5
"""Of the time of an image trained on, what an evaluated one takes: the forward pass, and its reading."""
_SMALL_STEP_SECONDS = {"cpu": 0.004, "cuda": 0.02}
"""What a micro-batch takes however small it is: calls, launches of kernels; assumed."""
_SPARE_MEMORY = 0.9
"""Of a device's memory, what micro-batches are chosen to fill at most."""


RUN_BYTES = 1_500_000
"""Of a run besides weights: report, pictures, TensorBoard; measured on small ones, where it is a tenth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """How long a training is, by its settings: what `plan_training` counts."""

    steps: int
    """Optimizer steps of the run."""
    steps_per_epoch: float
    """Not rounded."""
    global_batch_size: int
    """Images of a step over all ranks."""
    save_interval_steps: int
    """Between two checkpoints."""
    eval_interval_steps: int | None = None
    """Between two evaluations, as set; None leaves it to their cost."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    keep_every_steps: int | None = None
    """Kept for good, besides."""
    copies: int = 1
    """Of the weights in a checkpoint: 2 where the best ones are kept in it, too."""
    artifacts: int = 1
    """Copies of the weights that the run leaves for use, beside its checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What it takes to read and judge samples."""

    seconds_per_image: float
    """Of one core, for a sample to train on."""
    num_workers: int
    """Data workers per rank."""
    prefetch_batches: int = 2
    """That each has ready."""
    worker_bytes: float = 0.0
    """Memory of each data worker, more than any has."""
    evaluation_images: float = 0.0
    """That one evaluation looks at, over all ranks."""
    evaluated_at_once: int = 0
    """Of these, per forward pass of a rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingForecast:
    """What a training will take."""

    hardware: Hardware
    """Where it was asked for."""
    model: TrainedModel
    """What is trained."""
    steps: int
    """Optimizer steps."""
    epochs: float
    """Passes over the training images."""
    samples_seen: int
    """Over all epochs."""
    global_batch_size: int
    """Images per step."""
    micro_batch_size: int
    """Images per forward pass of a rank: as set, or as would be chosen there."""
    images_per_second: float | None
    """On all devices; None where the speed of the device is not known."""
    seconds: float | None
    """Of the steps."""
    evaluations: int
    """How many there are."""
    evaluations_seconds: float | None
    """Of all of them."""
    memory: Memory
    """Per rank."""
    memory_settings: dict[str, Any]
    """What it was counted with, for `memory_of`."""
    micro_batch_sizes: tuple[int, ...]
    """That cut a rank's share of a step evenly, ascending."""
    checkpoint_bytes: int
    """Of one."""
    disk_bytes: int
    """Of what is kept at the end; while a checkpoint is written, that much more is needed."""
    loader_cores_per_device: float | None
    """CPU cores that must decode for a device not to wait."""
    problems: tuple[Problem, ...]
    """Rules that are broken, and advice."""

    @property
    def total_seconds(self) -> float | None:
        """Steps and evaluations."""
        return None if self.seconds is None else self.seconds + (self.evaluations_seconds or 0.0)

    @property
    def fits(self) -> bool | None:
        """Whether a rank's share of the memory is enough; None where nobody knows how much there is."""
        room = memory_per_rank(self.hardware)
        return None if room is None else self.memory.total <= room

    def memory_at(self, micro_batch_size: int, **changes: Any) -> Memory:
        """Return the memory with other micro-batches, or `zero_stage` and others of `memory_settings`."""
        return memory_of(self.model, micro_batch_size=micro_batch_size, **self.memory_settings | changes)

    def lines(self, *, after: int = 0, free_disk: int | None = None) -> tuple[str, str]:
        """Return the two lines that matter: time and memory; then disk and steps.

        Args:
            after: Steps that are done already.
            free_disk: Bytes free where the run will be, if that is known.
        """
        left = (self.steps - after) / self.steps
        seconds, each = self.total_seconds, " per rank" if self.hardware.num_devices > 1 else ""
        time = "a time that nobody knows" if seconds is None else f"about {in_words(left * seconds)}"
        room = "" if free_disk is None else f", {in_gb(free_disk)} are free there"
        return (
            f"expected: {time} ({self.hardware.flops_source}) and {in_gb(self.memory.total)} of memory{each}, in "
            f"micro-batches of {self.micro_batch_size}",
            f"expected: {in_gb(self.disk_bytes)} of disk (checkpoints of {in_gb(self.checkpoint_bytes)}){room}; "
            f"{self.steps - after} steps see {left * self.samples_seen:.0f} images in all",
        )

    def with_problems(self, *more: Problem) -> TrainingForecast:
        """Return the same with what was found later."""
        return replace(self, problems=(*self.problems, *more))

    def as_json(self) -> dict[str, Any]:
        """Return all of it, JSON-able."""
        found = asdict(self)
        found["memory"]["total"] = self.memory.total
        return found | {"total_seconds": self.total_seconds}


def memory_per_rank(hardware: Hardware) -> float | None:
    """Return the bytes that one rank may take: a GPU's, or its share of a machine's."""
    if hardware.memory_bytes is None:
        return None
    return hardware.memory_bytes / (hardware.devices_per_machine if hardware.device == "cpu" else 1)


def forecast_training(
    model: TrainedModel,
    course: Course,
    reading: Reading,
    hardware: Hardware,
    *,
    micro_batch_size: int | None,
    rows_together: int | None = 1,
    tokens: int = 0,
    zero_stage: int = 0,
    ema: bool = False,
    optimizer: str = "adamw",
    problems: tuple[Problem, ...] = (),
) -> TrainingForecast:
    """Return what a training takes.

    Args:
        model: Counted for the device and the precision.
        course: Its length.
        reading: Of its samples.
        hardware: Where it happens.
        micro_batch_size: As set; None chooses it as the run would.
        rows_together: Neighbouring rows that a micro-batch must not part; None where it is the rank's share.
        tokens: Of an image, by which a CPU's micro-batch is chosen; 0 takes the whole share.
        zero_stage: Of ZeRO.
        ema: Whether an average of the weights is kept.
        optimizer: adamw or muon.
        problems: Found before.
    """
    ranks = hardware.num_devices
    settings: dict[str, Any] = {
        "zero_stage": zero_stage,
        "world_size": ranks,
        "device": hardware.device,
        "ema": ema,
        "optimizer": optimizer,
        "evaluated_at_once": reading.evaluated_at_once,
        "num_workers": reading.num_workers,
        "prefetch_batches": reading.prefetch_batches,
        "worker_bytes": reading.worker_bytes,
    }
    share = max(1, course.global_batch_size // ranks)
    room = memory_per_rank(hardware)

    def fits(size: int) -> bool:
        return room is None or memory_of(model, micro_batch_size=size, **settings).total <= _SPARE_MEMORY * room

    sizes = [share] if rows_together is None else divisors(share, rows_together)
    size = micro_batch_size
    if size is None:
        largest = largest_that_fits(sizes, fits) or sizes[0]
        size = largest if hardware.device == "cuda" or not tokens else min(largest, wanted_size(sizes, tokens))
    memory = memory_of(model, micro_batch_size=size, **settings)
    found = list(problems)
    if room is not None and memory.total > room:
        smaller = [one for one in sizes if one < size and fits(one)]
        found.append(_too_large(memory, size, room, smaller))
    moments = 1.1 if optimizer == "muon" else 2  # which has one of the matrices
    checkpoint = round(FLOAT * (course.copies * model.parameters + (moments + ema) * model.trained))
    seconds, rate, cores = _speed(model, course, reading, hardware, size)
    interval = course.eval_interval_steps or default_interval(
        evaluation_cost(
            reading.evaluation_images, flops=model.flops_per_image, device=hardware.device, world_size=ranks
        ),
        per_epoch=max(1, round(course.steps_per_epoch)),
        total_steps=course.steps,
        global_batch_size=course.global_batch_size,
    )
    evaluations = len(due_steps(0, interval, total_steps=course.steps)) if reading.evaluation_images else 0
    return TrainingForecast(
        hardware=hardware,
        model=model,
        steps=course.steps,
        epochs=course.steps / course.steps_per_epoch,
        samples_seen=course.steps * course.global_batch_size,
        global_batch_size=course.global_batch_size,
        micro_batch_size=size,
        images_per_second=rate,
        seconds=seconds,
        evaluations=evaluations,
        evaluations_seconds=None if rate is None else _EVALUATED * evaluations * reading.evaluation_images / rate,
        memory=memory,
        memory_settings=settings,
        micro_batch_sizes=tuple(sizes),
        checkpoint_bytes=checkpoint,
        disk_bytes=kept_checkpoints(course) * checkpoint + FLOAT * course.artifacts * model.parameters + RUN_BYTES,
        loader_cores_per_device=cores,
        problems=tuple(found),
    )


def kept_checkpoints(course: Course, *, after: int = 0) -> int:
    """Return how many checkpoints there are at the end of a run that goes on `after` so many steps."""
    remaining = course.steps - after
    kept = min(course.keep, 1 + remaining // course.save_interval_steps)
    if course.keep_every_steps is not None:
        kept += remaining // max(course.keep_every_steps, course.save_interval_steps)
    return kept


def measured_here(forecast: TrainingForecast, images_per_second: float, source: str) -> TrainingForecast:
    """Return the forecast with a rate that was measured on all its devices in the place of the assumed one."""
    ranks = forecast.hardware.num_devices
    flops = images_per_second * forecast.model.flops_per_image / ranks
    looked_at = (forecast.evaluations_seconds or 0.0) * (forecast.images_per_second or images_per_second)
    return replace(
        forecast,
        hardware=replace(forecast.hardware, flops=flops, flops_source=source),
        images_per_second=images_per_second,
        seconds=forecast.samples_seen / images_per_second,
        evaluations_seconds=looked_at / images_per_second,
    )


def _speed(
    model: TrainedModel, course: Course, reading: Reading, hardware: Hardware, micro_batch_size: int
) -> tuple[float | None, float | None, float | None]:
    """Return the seconds of all steps, images per second on all devices, and loader cores per device.

    On a CPU the data workers take their time from the same cores; beside a GPU they have cores of their own.
    """
    if hardware.flops is None:
        return None, None, None
    computing = model.flops_per_image / hardware.flops
    computing += _SMALL_STEP_SECONDS[hardware.device] / micro_batch_size
    per_core = reading.seconds_per_image
    workers = max(1.0, min(reading.num_workers, hardware.cores_per_device))
    if hardware.device == "cpu":
        image = computing + per_core / hardware.cores_per_device
    else:
        image = max(computing, per_core / workers)
    images = course.steps * course.global_batch_size
    return image * images / hardware.num_devices, hardware.num_devices / image, per_core / computing


def _too_large(memory: Memory, size: int, room: float, smaller: list[int]) -> Problem:
    way_out = (
        f"leave train.micro_batch_size out or set it to {max(smaller)}, for the same step"
        if smaller
        else "take a smaller model or smaller images, speed.activation_checkpointing=true, or more memory"
    )
    return Problem(
        what=f"a training with micro-batches of {size} images needs about {in_gb(memory.total)} of memory per rank, "
        f"and there is {in_gb(room)}",
        way_out=way_out,
        is_fatal=True,
    )
