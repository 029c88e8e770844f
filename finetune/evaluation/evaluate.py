"""`beit evaluate`, and the evaluation inside a training: what a classifier says about every image, once.

Ranks take contiguous parts and exchange what they saw, so the result is exact for any number of ranks and batch sizes.
The numbers are `scores.py`, table and JSON `report.py`, the page `page.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit.common.errors import InputError
from beit.common.processes.cores import cores_per_rank
from beit.common.processes.distributed import World, init_distributed, prepare_cpu
from beit.common.processes.launcher_env import under_launcher
from beit.common.progress import Progress
from beit.common.reading.config import ReaderConfig
from beit.common.reading.contents import contents_sha256
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.reading.loader import Loader
from beit.common.reading.reader import sequential_loader
from beit.common.runs.outputs import JSON, check_outputs
from beit.common.sources.class_names import read_class_names
from beit.common.sources.config import SourceConfig
from beit.common.sources.index import LabelledIndex
from beit.common.storage.documents import json_bytes
from beit.common.storage.files import sha256_file, write_output
from beit.common.training.data import padded
from beit.common.vit.channels import describe_fit
from beit.common.vit.description import WEIGHTS_FILE, EncoderConfig, find_encoder
from beit.common.vit.transform import default_crop_pct
from beit.finetune.artifact import load_classifier
from beit.finetune.augment.augment import EvalTransform
from beit.finetune.classification.step import class_logits
from beit.finetune.config import EvaluationConfig
from beit.finetune.data import label_table, open_evaluation_data
from beit.finetune.evaluation.mistakes import mistake_pictures
from beit.finetune.evaluation.outcomes import OutcomeLog, Outcomes
from beit.finetune.evaluation.report import EvaluationReport, build_report
from beit.finetune.origin import evaluation_origin

MIN_IMAGES_PER_WORKER = 1000
"""Starting a data worker takes seconds, in which the main process decodes about this many small images."""
MAX_WORKERS = 8
"""More than feed a model; arbitrary."""


logger = logging.getLogger(__name__)


def evaluate_model(
    model: str | Path,
    data: str,
    *,
    out: Path | None = None,
    html: Path | None = None,
    class_names: str | None = None,
    label_column: str | None = None,
    source: SourceConfig | None = None,
) -> EvaluationReport:
    """Measure a classifier on the labelled images of `data`; write a JSON file and a page where asked.

    Under a launcher every rank measures its part, and rank 0 writes.

    Args:
        model: The folder that `beit finetune` wrote, or its run directory.
        data: Whose classes are matched to the model's by name.
        out: For the JSON file.
        html: For the page.
        class_names: File that says what class numbers mean, as `data.class_names` of a training.
        label_column: Column of the classes in tables.
        source: Which images are read.
    """
    inputs = [model, data, *([] if class_names is None else [class_names])]
    check_outputs({"--out": out, "--html": html}, inputs=inputs, endings=JSON)
    classifier, stored = load_classifier(model)
    assert stored.class_names is not None
    numbers = None if class_names is None else read_class_names(class_names)
    index = open_evaluation_data(
        data,
        stored.class_names,
        multi_label=stored.multi_label,
        numbers=numbers,
        label_column=label_column,
        reading=(source or SourceConfig()).after(stored.decoding, str(model), is_final=True),
        option="--range",
    )
    world = init_distributed() if under_launcher() else single_rank()
    world.announce()
    say_fit(index, stored, world)
    loader = evaluation_loader(index, stored, world=world, settings=EvaluationConfig(), reader=default_reader(world))
    classifier.to(world.device)
    table = label_table(index, stored.class_names, numbers=numbers) if stored.multi_label else None
    with torch.inference_mode():
        batches = with_progress(loader, index, world=world, description="evaluating")
        outcomes = observe(
            classifier, batches, stored, num_batches=len(loader), world=world, log=OutcomeLog(label_table=table)
        )
    if outcomes is None:
        raise InputError(f"{data} has no image that can be read")
    report = build_report(outcomes, index, class_names=stored.class_names, model=str(model), data=data)
    if world.is_main:
        identity = {"validation_sha256": contents_sha256(index)} if out is not None or html is not None else {}
        if out is not None:
            identity |= {"model_sha256": sha256_file(find_encoder(model) / WEIGHTS_FILE)}
            write_output(out, json_bytes(report.as_json() | identity))
        if html is not None:
            from beit.finetune.evaluation.page import evaluation_page  # draws, which a training never does

            img_size = stored.architecture.img_size
            crop_pct = crop_pct_of(EvaluationConfig(), stored)
            pictures = mistake_pictures(report.mistakes, index, img_size=img_size, crop_pct=crop_pct)
            origin = evaluation_origin(
                model, stored, data=data, num_images=len(index), data_sha256=identity["validation_sha256"]
            )
            write_output(html, evaluation_page(report, pictures, origin=origin).encode())
    return report


def observe(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    stored: EncoderConfig,
    *,
    num_batches: int,
    world: World,
    log: OutcomeLog,
) -> Outcomes | None:
    """Record what a classifier says about every image.

    Args:
        model: In eval mode, on the device of `world`.
        batches: This rank's part of the images, each once: images (B, 3, H, W) uint8, labels (B,) int64, positions.
        stored: Input size and normalisation of the model.
        num_batches: How many `batches` there are, at most.
        world: The ranks; all return the same record.
        log: Empty.
    Returns:
        The record, or None when no rank had an image.
    """
    mean, std = stored.normalization
    side = stored.architecture.img_size
    blank = {"images": torch.zeros(1, 3, side, side, dtype=torch.uint8), "labels": torch.zeros(1, dtype=torch.int64)}
    for batch in padded(batches, num_batches, blank, world):
        images, labels = (batch[name].to(world.device, non_blocking=True) for name in ("images", "labels"))
        logits = class_logits(model, images, mean=mean, std=std)
        if batch["is_real"]:
            log.add(batch["positions"], logits, labels)
    return log.collect(world)


def say_fit(index: LabelledIndex, stored: EncoderConfig, world: World) -> None:
    """Say in a line where images have other channels than a model."""
    fit = describe_fit(index.decoding.num_channels, stored.architecture.in_chans)
    if fit and world.is_main:
        logger.info("%s", fit)


def evaluation_loader(
    index: LabelledIndex, stored: EncoderConfig, *, world: World, settings: EvaluationConfig, reader: ReaderConfig
) -> Loader:
    """Build the loader of this rank's part of `index`, every image once, resized and cropped as the model wants.

    The images need no labels. Few are read by fewer workers than `reader` says, or by none.
    """
    num_workers = min(reader.num_workers, len(index) // world.world_size // MIN_IMAGES_PER_WORKER)
    img_size = stored.architecture.img_size
    return sequential_loader(
        LabelledDataset(index, cache_bytes=reader.parquet_cache_bytes),
        transform=EvalTransform(
            img_size=img_size, crop_pct=crop_pct_of(settings, stored), channels=stored.architecture.in_chans
        ),
        micro_batch_size=settings.micro_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        config=replace(reader, num_workers=num_workers),
        pin_memory=world.device.type == "cuda",
    )


def crop_pct_of(settings: EvaluationConfig, stored: EncoderConfig) -> float:
    """Return the share of an image that is seen: as set, as the model says, or what suits its input size."""
    if settings.crop_pct is not None:
        return settings.crop_pct
    return stored.crop_pct or default_crop_pct(stored.architecture.img_size)


def default_reader(world: World, *, bad_sample_budget: float = 0.001) -> ReaderConfig:
    """Return the reader of commands without settings: one worker per core of this rank, within reason."""
    num_workers = min(MAX_WORKERS, cores_per_rank(world.world_size))
    return ReaderConfig(num_workers=num_workers, bad_sample_budget=bad_sample_budget)


def single_rank() -> World:
    """Return a world of this process alone, on a GPU if there is one."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        prepare_cpu()
    return World(rank=0, local_rank=0, world_size=1, device=device)


def with_progress(
    batches: Iterable[Mapping[str, Any]], index: LabelledIndex, *, world: World, description: str
) -> Iterable[Mapping[str, Any]]:
    """Yield the batches and show how many images of all ranks are done."""
    with Progress(len(index), unit="images", description=description, enabled=world.is_main) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch["keys"]) * world.world_size)
