"""`beit evaluate`, and the evaluation inside a training: top-1, top-5 and loss over every image once.

Ranks take contiguous parts and exchange counts, so the result is exact for any number of ranks and batch sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.distributed import World, init_distributed
from beit.common.encoder_config import EncoderConfig
from beit.common.errors import InputError
from beit.common.files import check_output, write_json
from beit.common.labelled_dataset import LabelledDataset
from beit.common.labelled_index import LabelledIndex
from beit.common.launch import under_launcher
from beit.common.loader import Loader
from beit.common.progress import Progress
from beit.common.reader import sequential_loader
from beit.common.reader_config import ReaderConfig
from beit.finetune.artifact import load_classifier
from beit.finetune.augment import EvalTransform, default_crop_pct
from beit.finetune.config import EvaluationConfig
from beit.finetune.data import open_evaluation_data
from beit.finetune.step import class_logits

TOP_K = 5
MIN_IMAGES_PER_WORKER = 1000
"""Starting a data worker takes seconds, in which the main process decodes about this many small images."""
MAX_WORKERS = 8
"""More than feed a model; arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """How well a classifier does on labelled images; shares lie in [0, 1]."""

    top1: float
    """Share of images whose class has the largest logit."""
    top5: float
    """Share of images whose class is among the five largest logits."""
    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    num_images: int
    """Images measured."""

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)

    def as_table(self) -> str:
        """Return the numbers for reading."""
        return (
            f"{'top-1':>8} {'top-5':>8} {'loss':>8} {'images':>8}\n"
            f"{100 * self.top1:>7.2f}% {100 * self.top5:>7.2f}% {self.loss:>8.4f} {self.num_images:>8}"
        )


def evaluate_model(model: str | Path, data: str, *, out: Path | None = None) -> Metrics:
    """Measure the classifier in the folder `model` on the labelled images of `data`.

    Under a launcher every rank measures its part, and rank 0 writes.

    Args:
        model: Folder that `beit finetune classification` wrote, or its run directory.
        data: Labelled images; classes are matched to the model's by name.
        out: JSON file to write.
    Raises:
        InputError: bad input.
    """
    check_output(out)
    classifier, stored = load_classifier(model)
    assert stored.class_names is not None
    index = open_evaluation_data(data, stored.class_names)
    world = init_distributed() if under_launcher() else single_rank()
    loader = evaluation_loader(index, stored, world=world, settings=EvaluationConfig(), reader=default_reader(world))
    classifier.to(world.device)
    with torch.inference_mode():
        batches = with_progress(loader, index, world=world, description="evaluating")
        metrics = measure(classifier, batches, stored, num_batches=len(loader), world=world)
    if metrics is None:
        raise InputError(f"{data} has no image that can be read")
    if out is not None and world.is_main:
        write_json(out, metrics.as_dict())
    return metrics


def measure(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], stored: EncoderConfig, *, num_batches: int, world: World
) -> Metrics | None:
    """Compare a classifier's logits with the labels.

    Args:
        model: In eval mode, on the device of `world`.
        batches: This rank's part of the images, each once: images (B, 3, H, W) uint8 and labels (B,) int64.
        stored: Input size and normalisation of the model.
        num_batches: How many `batches` there are, at most.
        world: The ranks; they exchange sums, so all return the same numbers.
    Returns:
        The numbers, or None when no rank had an image.
    """
    mean, std = stored.normalization
    # Kept on the device until the end: one wait per evaluation instead of one per batch.
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    done = 0
    for batch in batches:
        images, labels = (batch[name].to(world.device, non_blocking=True) for name in ("images", "labels"))
        sums += _count(class_logits(model, images, mean=mean, std=std), labels)
        done += 1
    # Ranks differ by one batch at times, and partitioned weights (ZeRO 3) are gathered by all ranks or by none.
    side = stored.architecture.img_size
    filler = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=world.device)
    for _ in range(done, int(world.max_of([num_batches])[0]) if world.world_size > 1 else 0):
        class_logits(model, filler, mean=mean, std=std)
    top1, top5, loss, images_seen = world.sum_of(sums.tolist())
    if not images_seen:
        return None
    return Metrics(
        top1=top1 / images_seen, top5=top5 / images_seen, loss=loss / images_seen, num_images=int(images_seen)
    )


def _count(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over a batch: top-1 hits, top-5 hits, cross-entropy, images; (4,) float64."""
    hits = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5), best first
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    num_images = torch.tensor(len(labels), device=logits.device)
    return torch.stack([value.double() for value in (hits[:, 0].sum(), hits.sum(), loss, num_images)])


def evaluation_loader(
    index: LabelledIndex,
    stored: EncoderConfig,
    *,
    world: World,
    settings: EvaluationConfig,
    reader: ReaderConfig,
) -> Loader:
    """Build the loader of this rank's part of `index`, every image once, resized and cropped as the model wants.

    Args:
        index: Labelled or not.
        stored: Input size of the model.
        world: The ranks.
        settings: Batch and crop.
        reader: Workers and budget; few images are read by fewer workers, or by none.
    """
    num_workers = min(reader.num_workers, len(index) // world.world_size // MIN_IMAGES_PER_WORKER)
    img_size = stored.architecture.img_size
    crop_pct = default_crop_pct(img_size) if settings.crop_pct is None else settings.crop_pct
    return sequential_loader(
        LabelledDataset(index, cache_bytes=reader.parquet_cache_bytes),
        transform=EvalTransform(img_size=img_size, crop_pct=crop_pct),
        micro_batch_size=settings.micro_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        config=replace(reader, num_workers=num_workers),
        pin_memory=world.device.type == "cuda",
    )


def default_reader(world: World, *, bad_sample_budget: float = 0.001) -> ReaderConfig:
    """Return the reader of commands without settings: one worker per core of this rank, within reason."""
    cores = (os.cpu_count() or 1) // world.world_size
    return ReaderConfig(num_workers=min(MAX_WORKERS, cores), bad_sample_budget=bad_sample_budget)


def single_rank() -> World:
    """Return a world of this process alone, on a GPU if there is one."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return World(rank=0, local_rank=0, world_size=1, device=device)


def with_progress(
    batches: Iterable[Mapping[str, Any]], index: LabelledIndex, *, world: World, description: str
) -> Iterable[Mapping[str, Any]]:
    """Yield the batches and show how many images of all ranks are done."""
    with Progress(len(index), unit="images", description=description, enabled=world.is_main) as progress:
        for batch in batches:
            yield batch
            progress.update(len(batch["keys"]) * world.world_size)
