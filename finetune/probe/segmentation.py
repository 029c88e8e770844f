"""`beit finetune linear-probe` on images with masks: how well each block's patches tell classes apart, in one pass.

A linear classifier per block is fitted on some patches of the training images, whose labels are the shares of the
classes in them, and measured at every pixel of the validation images, its logits enlarged to their size. The encoder
sees windows of its own size, side by side. Nothing is random, nothing is kept: a run takes about as long as looking at
every image once.

B = windows, L = blocks, N = patches of a window, D = embed_dim, C = classes, n = patches fitted on; H, W = size of an
image, h, w = that of its grid of patches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.errors import InputError, ResumableStop, require
from beit.common.images.channels import image_of, pixels_of
from beit.common.overview.report.automatic import write_report
from beit.common.pages.numbers import percent
from beit.common.pages.tables import aligned
from beit.common.progress import Progress
from beit.common.reading.contents import contents_sha256
from beit.common.rng import CounterRng
from beit.common.runs.kinds import PROBE, require_command
from beit.common.runs.layout import MASK_PROBE
from beit.common.runs.run_dir import begin_run, check_directory, open_run
from beit.common.storage.documents import write_json
from beit.common.vit.channels import describe_fit
from beit.common.vit.features import Features, LinearProbe, fit_linear
from beit.common.vit.transform import normalize_images
from beit.finetune.artifact import starting_point
from beit.finetune.evaluation.confusion import MaskLog
from beit.finetune.evaluation.evaluate import single_rank
from beit.finetune.evaluation.segmentation import mask_loader
from beit.finetune.evaluation.segmentation_scores import SegmentationMetrics, segmentation_metrics
from beit.finetune.in_force import in_force, unnamed_shape
from beit.finetune.masks.index import MaskedData, MaskedIndex, open_training_masks
from beit.finetune.probe.features import FrozenEncoder
from beit.finetune.segmentation.config import SegmentationConfig
from beit.finetune.segmentation.inference import likeliest, resized_rows

logger = logging.getLogger(__name__)

_UNUSED = ("train.", "optimizer.", "augment.", "head.", "layer_decay")
"""Settings of a training, of which there is none here; another start may change them."""
MAX_ASPECT = 8
"""Longest side in short sides; longer images are squeezed, else a line of one pixel would be enlarged without end."""
_LABELLED_SHARE = 0.5
"""Of a patch's pixels that must be of some class for it to be fitted on; arbitrary."""
_STRIP_PIXELS = 2**20
"""Pixels whose logits are there at a time; arbitrary."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How an image is looked at: resized so that the encoder's windows lie on one grid of patches."""

    rows: int
    """h."""
    columns: int
    """w."""
    side: int
    """Of a window, in patches."""

    @property
    def origins(self) -> list[tuple[int, int]]:
        """Return the first row and column of each window; the last ones end with the grid, over their neighbours."""
        starts = [
            [min(place, length - self.side) for place in range(0, length, self.side)]
            for length in (self.rows, self.columns)
        ]
        return [(row, column) for row in starts[0] for column in starts[1]]


def grid_of(size: tuple[int, int], *, img_size: int, patch_size: int, short_side: int | None) -> Grid:
    """Lay an image of some width and height out: at its own size or with a short side as set, a window at least."""
    short = max(img_size, short_side or min(size))
    sides = [min(side * short / min(size), MAX_ASPECT * short) for side in size]
    columns, rows = (max(img_size // patch_size, round(side / patch_size)) for side in sides)
    return Grid(rows, columns, img_size // patch_size)


def class_shares(mask: NDArray[np.uint8], grid: Grid, num_classes: int) -> NDArray[np.float32]:
    """Return the share of each class in the pixels of every patch, (h w, C); less than 1 in all where some are ignored.

    Each pixel of the mask (H, W) counts in one patch, at the mask's own size, so that none is resized.
    """
    height, width = mask.shape
    rows, columns = np.arange(height) * grid.rows // height, np.arange(width) * grid.columns // width
    count = grid.rows * grid.columns
    found = np.zeros(count * (num_classes + 1), np.int64)
    for row in np.unique(rows):  # one row of patches at a time: the numbers below take 8 bytes a pixel
        ids = np.minimum(mask[rows == row], num_classes).astype(np.int64)  # what is ignored, behind the classes
        places = (row * grid.columns + columns) * (num_classes + 1)
        found += np.bincount((places + ids).ravel(), minlength=len(found))
    counts = found.reshape(count, num_classes + 1)
    shares: NDArray[np.float32] = (counts[:, :num_classes] / np.maximum(1, counts.sum(1, keepdims=True))).astype(
        np.float32
    )
    return shares


class PatchReader:
    """Runs an encoder over images, window by window.

    Args:
        encoder: Frozen, on `device`.
        device: Where it computes.
        short_side: Of images, in pixels; None takes their own.
        micro_batch_size: Windows at a time.
    """

    def __init__(
        self, encoder: FrozenEncoder, device: torch.device, *, short_side: int | None, micro_batch_size: int
    ) -> None:
        self._encoder, self._device, self._short_side = encoder, device, short_side
        self._count = micro_batch_size

    @property
    def channels(self) -> int:
        """That the encoder sees."""
        return self._encoder.model.config.in_chans

    def grid(self, image: NDArray[np.uint8]) -> Grid:
        """Return how an image is looked at."""
        shape = self._encoder.model.config
        return grid_of(
            (image.shape[1], image.shape[0]),
            img_size=shape.img_size,
            patch_size=shape.patch_size,
            short_side=self._short_side,
        )

    def features(
        self, image: NDArray[np.uint8], grid: Grid
    ) -> Iterator[tuple[Sequence[tuple[int, int]], list[Tensor]]]:
        """Yield the origins of some windows, and for each block the features of their patches, (B, N, D)."""
        model, normalization = self._encoder.model, self._encoder.normalization
        patch = model.config.patch_size
        size = grid.columns * patch, grid.rows * patch
        resized = image_of(image).resize(size, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(pixels_of(resized).copy()).permute(2, 0, 1)  # (C, h patch, w patch)
        side = grid.side * patch
        for begin in range(0, len(grid.origins), self._count):
            origins = grid.origins[begin : begin + self._count]
            cut = [pixels[:, row * patch :, column * patch :][:, :side, :side] for row, column in origins]
            images = normalize_images(torch.stack(cut).to(self._device), *normalization)
            hidden = model.forward_intermediates(images, range(model.config.depth))
            yield origins, [block[:, 1:].float() for block in hidden]


def run_segmentation_probe(config: SegmentationConfig, *, data: str, run_dir: Path, resume: str = "auto") -> str:
    """Measure how well an encoder's frozen patches tell classes apart; write RUN/segmentation-probe.json.

    Returns:
        The table: mean IoU of every block.
    """
    require_command(run_dir, PROBE)
    check_directory(run_dir, resume=resume)  # before images are listed and weights loaded
    require(
        config.normalization == "encoder",
        f"normalization ({config.normalization}) must be encoder: frozen features are of pixels as it knows them",
    )
    start = starting_point(config)
    if warning := unnamed_shape(config, start.architecture):
        logger.warning("%s", warning)
    config = replace(in_force(config, start.architecture, start.normalization), source=start.reading(config))
    masks = open_training_masks(data, config.data, reading=config.source)
    require(masks.val is not None, "--val is missing; linear-probe measures on images of its own")
    encoder = FrozenEncoder(config, start)
    world = single_rank()
    world.announce()
    if fit := describe_fit(masks.train.images.decoding.num_channels, start.architecture.in_chans):
        logger.info("%s", fit)
    run = open_run(run_dir, config, world=world, resume=resume, free_keys=_UNUSED)
    begin_run(run, config, world=world)
    encoder.model.to(world.device)
    reader = PatchReader(
        encoder,
        world.device,
        short_side=config.evaluation.short_side,
        micro_batch_size=config.evaluation.micro_batch_size,
    )
    try:
        with torch.no_grad():
            result = _probe(encoder, reader, masks, config)
    except KeyboardInterrupt:  # a training would go on; here nothing is kept that could
        raise ResumableStop("interrupted; the same command begins again") from None
    write_json(run.path / f"{MASK_PROBE}.json", {"task": MASK_PROBE, "encoder": config.encoder, **result})
    if config.run.report:
        write_report(run.path)
    return probe_table(result)


def _probe(
    encoder: FrozenEncoder, reader: PatchReader, masks: MaskedData, config: SegmentationConfig
) -> dict[str, Any]:
    assert masks.val is not None
    patches = sample_patches(encoder, reader, masks.train, config)
    probes = []
    with Progress(len(patches.blocks), unit="blocks", description="fitting") as progress:
        for features in patches.blocks:
            probes.append(fit_linear(features, patches.labels, num_classes=len(masks.classes), l2=config.probe.l2))
            progress.update(1)
    measured = measure_probes(reader, probes, masks.val, num_classes=len(masks.classes), config=config)
    rows = [
        {
            "block": block,
            "miou": metrics.miou,
            "mean_accuracy": metrics.mean_accuracy,
            "pixel_accuracy": metrics.pixel_accuracy,
        }
        for block, metrics in enumerate(measured)
    ]
    best = max(rows, key=lambda row: (row["miou"], row["block"]))
    return {
        "best_block": best["block"],
        "miou": best["miou"],
        "mean_accuracy": best["mean_accuracy"],
        "pixel_accuracy": best["pixel_accuracy"],
        "blocks": rows,
        "data": masks.train.location,
        "validation_data": masks.val.location,
        "source_sha256": contents_sha256(masks.source.images),
        "validation_sha256": contents_sha256(masks.val.images),
        "class_names": list(masks.classes.names),
        "num_classes": len(masks.classes),
        "num_train_images": len(masks.train),
        "num_images": measured[0].num_images,
        "num_patches": len(patches.labels),
    }


def sample_patches(
    encoder: FrozenEncoder, reader: PatchReader, index: MaskedIndex, config: SegmentationConfig
) -> Features:
    """Return the features of some patches of all images, equally many of each, and what they show.

    Returns:
        blocks (L, n, D) float32; labels (n, C) float32, the share of each class.
    """
    shape, settings = encoder.model.config, config.probe
    gib = settings.max_patches * shape.depth * shape.embed_dim * 4 / 2**30
    require(
        gib <= settings.max_feature_gib,
        f"probe.max_patches ({settings.max_patches}) patches of {shape.depth} blocks take {gib:.1f} GiB, above "
        f"probe.max_feature_gib ({settings.max_feature_gib:g}); use fewer patches, or raise it",
    )
    quota = -(-settings.max_patches // len(index))
    kept: list[Tensor] = []  # (L, some, D)
    labels: list[Tensor] = []
    for position, image, mask in read_scenes(index, config, channels=reader.channels, description="patches"):
        grid = reader.grid(image)
        shares = class_shares(mask, grid, len(index.classes))
        wanted = np.flatnonzero(shares.sum(1) >= _LABELLED_SHARE)
        # Drawn, because evenly spread ones may all lie in a few columns.
        order = CounterRng(MASK_PROBE, position).permutation(len(wanted))
        wanted = np.sort(wanted[order[:quota]])
        if not len(wanted):
            continue
        found = torch.empty(shape.depth, len(wanted), shape.embed_dim)
        rows, columns = np.divmod(wanted, grid.columns)
        for origins, blocks in reader.features(image, grid):
            for window, (top, left) in enumerate(origins):
                inside = (rows >= top) & (rows < top + grid.side) & (columns >= left) & (columns < left + grid.side)
                places = torch.from_numpy((rows - top)[inside] * grid.side + (columns - left)[inside])
                for block, hidden in enumerate(blocks):
                    found[block, torch.from_numpy(inside)] = hidden[window, places.to(hidden.device)].cpu()
        kept.append(found)
        labels.append(torch.from_numpy(shares[wanted]))
    if not kept:
        raise InputError(f"{index.name} has no image that can be read and shows a class")
    return Features(torch.cat(kept, dim=1), torch.cat(labels))


def measure_probes(
    reader: PatchReader,
    probes: Sequence[LinearProbe],
    index: MaskedIndex,
    *,
    num_classes: int,
    config: SegmentationConfig,
) -> list[SegmentationMetrics]:
    """Measure one classifier per block on every labelled pixel of `index`."""
    logs = [MaskLog(num_classes) for _ in probes]
    for position, image, mask in read_scenes(index, config, channels=reader.channels, description="measuring"):
        grid = reader.grid(image)
        logits = torch.empty(len(probes), num_classes, grid.rows, grid.columns)
        for origins, blocks in reader.features(image, grid):
            for block, (probe, hidden) in enumerate(zip(probes, blocks, strict=True)):
                said = probe.logits(hidden.cpu())  # (B, N, C)
                maps = said.transpose(1, 2).reshape(len(origins), num_classes, grid.side, grid.side)
                for (top, left), window in zip(origins, maps, strict=True):
                    logits[block, :, top : top + grid.side, left : left + grid.side] = window
        for log, own in zip(logs, logits, strict=True):
            log.add(position, mask, enlarged_ids(own, mask.shape))
    world = single_rank()
    metrics = []
    for log in logs:
        outcomes = log.collect(world)
        found = None if outcomes is None else segmentation_metrics(outcomes)
        if found is None:
            raise InputError(f"{index.name} has no labelled pixel that can be read")
        metrics.append(found)
    return metrics


def enlarged_ids(logits: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Enlarge logits (C, h, w) bilinearly to (H, W), and return the class of every pixel, uint8."""
    height, width = size
    rows = max(1, _STRIP_PIXELS // width)
    strips = (
        resized_rows(logits, (logits.shape[1], height), width, (top, min(top + rows, height)), 0)
        for top in range(0, height, rows)
    )
    found: NDArray[np.uint8] = torch.cat([likeliest(strip) for strip in strips]).numpy()
    return found


def read_scenes(
    index: MaskedIndex, config: SegmentationConfig, *, channels: int, description: str
) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Yield position, image (H, W, C) and mask (H, W) of all that can be read; others are reported, and few allowed."""
    loader = mask_loader(index, channels=channels, world=single_rank(), reader=config.reader)
    with Progress(len(index), unit="images", description=f"{description} of {index.name}") as progress:
        for batch in loader:
            if "images" in batch:
                yield batch["positions"][0], batch["images"][0].permute(1, 2, 0).numpy(), batch["masks"][0].numpy()
            progress.update(1)


def probe_table(result: Mapping[str, Any]) -> str:
    """Return the result for reading: one row per block, and how the best one is used."""
    rows = [
        [
            str(row["block"]),
            *(percent(row[name]) for name in ("miou", "mean_accuracy", "pixel_accuracy")),
            "best" if row["block"] == result["best_block"] else "",
        ]
        for row in result["blocks"]
    ]
    table = aligned([["block", "mIoU", "mean accuracy", "pixel accuracy"], *rows], align=">>>><")
    return f"{table}\na linear head on the best one: --set head.blocks=[{result['best_block']}]"
