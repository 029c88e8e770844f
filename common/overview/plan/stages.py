"""What the stages' forecasts say, in the words and numbers of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from beit.common.forecast.training import TrainingForecast
from beit.common.forecast.words import in_digits, in_gb, in_words
from beit.common.overview.plan.amounts import large
from beit.common.overview.plan.document import Facts, MemoryRow, Stage
from beit.common.pages.numbers import count

_TABLE_SIZES = (1, 8, 32, 128, 512)
"""Micro-batches of the table, besides what is planned, as far as the batch is that large."""


class StoreSettings(Protocol):
    """What of the settings of `beit tokenize` a plan says."""

    @property
    def tokenizer(self) -> str:
        """Name or path."""

    @property
    def views(self) -> int:
        """Per image."""

    @property
    def img_size(self) -> int:
        """Side of a view in pixels."""

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""

    @property
    def grid_size(self) -> int:
        """Patches, and words, per side."""

    @property
    def materialize(self) -> bool:
        """Whether crops are stored."""

    @property
    def short_side(self) -> int:
        """That images are shrunk to; 0 keeps them."""


class StoreSize(Protocol):
    """What a store will take, as the forecast of `beit tokenize` says."""

    @property
    def num_images(self) -> int:
        """To be tokenised."""

    @property
    def num_held_out(self) -> int:
        """Of them, those to measure on."""

    @property
    def num_shards(self) -> int:
        """Pairs of tars."""

    @property
    def image_bytes(self) -> int:
        """Of images that are packed."""

    @property
    def token_bytes(self) -> int:
        """Of tokens, views and tables."""

    @property
    def total_bytes(self) -> int:
        """On the disk."""

    @property
    def views_per_second(self) -> float | None:
        """On all devices."""

    @property
    def seconds(self) -> float | None:
        """In all."""

    @property
    def memory_bytes(self) -> float | None:
        """Of a rank's process."""


def store_stage(
    config: StoreSettings,
    forecast: StoreSize,
    *,
    words: int | None,
    source: str,
    total_bytes: float,
    start_seconds: float,
    num_ranks: int,
    num_machines: int,
    settings: Mapping[str, Any],
) -> Stage:
    """Return tokenising as a stage of a plan.

    Args:
        config: Settings of `beit tokenize`.
        forecast: Of the store.
        words: That the tokenizer has; None where only loading it would tell.
        source: Where its speed comes from.
        total_bytes: Of the images as they are.
        start_seconds: Of the command, before its work.
        num_ranks: Of a machine, whose memory they share.
        num_machines: At work on the one store.
        settings: All of them, for programs.
    """
    num_images, num_shards, side = forecast.num_images, forecast.num_shards, config.grid_size
    num_views = num_images * config.views
    per_shard = -(-num_images // num_shards)
    kept = f"{in_gb(forecast.image_bytes / num_shards)} of images and " if forecast.image_bytes else ""
    facts = [
        ("views", f"{config.views} of each image, {config.img_size} px in patches of {config.patch_size}"),
        (
            "words",
            f"{side} x {side} of each view, {large(num_views * side * side)} in all, of "
            f"{config.tokenizer}{'' if words is None else f' ({count(words)} to choose from)'}",
        ),
        (
            "shards",
            f"{count(num_shards, 'pair')} of tars: up to {count(per_shard, 'image')}, {kept}"
            f"{in_gb(forecast.token_bytes / num_shards)} of words each",
        ),
        ("images", _where_images_are(config, forecast, total_bytes)),
    ]
    if forecast.views_per_second is None:
        facts.append(("speed", f"nobody knows ({source}); --measure tells"))
    else:
        facts.append(("speed", f"{large(forecast.views_per_second)} views/s ({source})"))
    if num_machines > 1:
        facts.append(("ranks", f"start the command on each of the {num_machines} machines, on one store; one packs"))
    return Stage(
        name="tokenize",
        short=f"{large(num_views)} view{'s' * (num_views != 1)}",
        seconds=None if forecast.seconds is None else start_seconds + forecast.seconds,
        memory_bytes=None if forecast.memory_bytes is None else forecast.memory_bytes * num_ranks,
        disk_bytes=forecast.total_bytes,
        facts=tuple(facts),
        numbers={
            "num_images": num_images,
            "num_held_out": forecast.num_held_out,
            "num_shards": num_shards,
            "num_views": num_views,
            "num_words": num_views * side * side,
            "vocab_size": words,
            "image_bytes": forecast.image_bytes,
            "token_bytes": forecast.token_bytes,
            "views_per_second": forecast.views_per_second,
            "start_seconds": start_seconds,
            "settings": dict(settings),
        },
    )


def _where_images_are(config: StoreSettings, forecast: StoreSize, total_bytes: float) -> str:
    if not forecast.image_bytes:
        return f"stay where they are, {in_gb(total_bytes)} of tars"
    if config.materialize:
        return f"their crops are stored, {in_gb(forecast.image_bytes)}; training decodes nothing else"
    small = f", shrunk to {config.short_side} px" if config.short_side else ""
    return f"packed into tars{small}, {in_gb(forecast.image_bytes)}; those you have, {in_gb(total_bytes)}, stay"


def training_stage(
    name: str, forecast: TrainingForecast, *, start_seconds: float, first: Facts, numbers: Mapping[str, Any]
) -> Stage:
    """Return a training as a stage of a plan.

    Args:
        name: pretrain or finetune.
        forecast: Of its stage.
        start_seconds: Of the command, besides steps and evaluations.
        first: What is particular to it, above what all trainings have.
        numbers: The same for programs.
    """
    hardware = forecast.hardware
    ranks = 1 if hardware.device == "cuda" else hardware.devices_per_machine  # which share the machine's memory
    facts = [*first, ("batch", _batch(forecast)), ("speed", _speed(forecast))]
    facts += [("loader", words) for words in _loader(forecast)]
    facts += [("disk", f"checkpoints of {in_gb(forecast.checkpoint_bytes)}; {in_gb(forecast.disk_bytes)} at the end")]
    return Stage(
        name=name,
        short=f"{count(forecast.steps, 'step')} of {count(forecast.global_batch_size, 'image')}",
        seconds=None if forecast.total_seconds is None else start_seconds + forecast.total_seconds,
        memory_bytes=forecast.memory.total * ranks,
        disk_bytes=forecast.disk_bytes,
        facts=tuple(facts),
        numbers={**training_numbers(forecast), "start_seconds": start_seconds, **numbers},
    )


def training_numbers(forecast: TrainingForecast) -> dict[str, Any]:
    """Return a training's forecast for programs."""
    return {
        name: value
        for name, value in forecast.as_json().items()
        if name not in ("hardware", "problems", "seconds", "disk_bytes")
    } | {"steps_seconds": forecast.seconds}


def length_words(forecast: TrainingForecast, *, warmup_steps: int | None = None) -> str:
    """Write how long a training is: "2,000 steps of 32 images = 533 epochs; 64,000 images seen"."""
    warm = "" if not warmup_steps else f", {count(warmup_steps, 'step')} of them warm-up"
    epochs = in_digits(forecast.epochs)
    passes = f"{epochs} epoch{'s' * (epochs != '1')}"
    return f"{count(forecast.steps, 'step')} = {passes}{warm}; {large(forecast.samples_seen)} images seen in all"


def views_words(views: int, reuse: float) -> str:
    """Say how often a training sees each stored view: "each of 16 is seen 9.37 times"."""
    if reuse < 1:
        return f"{views} of each image, of which {in_digits(100 * reuse)} % are seen"
    which = "the only one" if views == 1 else f"each of {views}"
    return f"{which} is seen {in_digits(reuse)} time{'s' * (in_digits(reuse) != '1')}"


def memory_rows(
    forecast: TrainingForecast, stages: Sequence[int], at: Callable[[int, int], float]
) -> tuple[MemoryRow, ...]:
    """Return the table of memory by micro-batch and stage of ZeRO.

    Args:
        forecast: Of the training as planned, whose micro-batch is one of the columns.
        stages: Rows.
        at: Returns the bytes of a rank for images at a time and a stage.
    """
    share = max(1, forecast.global_batch_size // forecast.hardware.num_devices)
    sizes = sorted({size for size in _TABLE_SIZES if size <= share} | {forecast.micro_batch_size})
    return tuple(
        MemoryRow(zero_stage=stage, bytes_by_micro_batch={size: at(size, stage) for size in sizes}) for stage in stages
    )


def _batch(forecast: TrainingForecast) -> str:
    ranks, size = forecast.hardware.num_devices, forecast.micro_batch_size
    parts = max(1, forecast.global_batch_size // (size * ranks))
    of = "" if ranks == 1 else f" x {ranks} {'GPUs' if forecast.hardware.device == 'cuda' else 'ranks'}"
    times = "" if parts == 1 else f" x {parts} times"
    return f"{count(forecast.global_batch_size)} = {count(size, 'image')} at a time{times}{of}"


def _speed(forecast: TrainingForecast) -> str:
    if forecast.images_per_second is None:
        return f"nobody knows ({forecast.hardware.flops_source})"
    rate = forecast.images_per_second
    evaluations = ""
    if forecast.evaluations:
        spent = in_words(forecast.evaluations_seconds or 0.0)
        evaluations = f"; {count(forecast.evaluations, 'evaluation')}, {spent} of the time"
    return f"{in_digits(rate)} images/s ({forecast.hardware.flops_source}){evaluations}"


def _loader(forecast: TrainingForecast) -> list[str]:
    """Say how many cores must decode beside a GPU; on a processor they are in the speed."""
    needed, hardware = forecast.loader_cores_per_device, forecast.hardware
    if needed is None or hardware.device == "cpu":
        return []
    return [f"{count(math.ceil(needed), 'core')} per GPU to keep up; there are {hardware.cores_per_device:.3g}"]
