"""The in-loop probe: what the features of the model in training say about a few labelled images, block by block.

The measurements are `beit.common.vit.features`; here is which images they are made on, and how ranks share the work.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.common.errors import require
from beit.common.images.channels import fit_image
from beit.common.pages.numbers import percent
from beit.common.processes.distributed import World
from beit.common.reading.config import ReaderConfig
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.reading.reader import sequential_loader
from beit.common.rng import CounterRng, stable_hash64
from beit.common.sources.class_names import read_class_names
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import open_labelled
from beit.common.sources.overlap import warn_of_shared_images
from beit.common.storage.samples import Record
from beit.common.training.data import padded
from beit.common.views import AugmentConfig, draw_view, render_view
from beit.common.vit.config import Normalization
from beit.common.vit.features import Features, best_block, extract_features, probe_blocks
from beit.common.vit.vit import VisionTransformer
from beit.pretrain.config import ProbeConfig

logger = logging.getLogger(__name__)

BEST_BLOCK = "probe_best_block"
"""Name of the metric that says which block's features classify best, counted from 0."""
_WHOLE = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
"""The largest central square, nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTransform:
    """Turn a record into one image of the probe: its central square, resized."""

    img_size: int
    """Side of the model's input in pixels."""
    channels: int = 3
    """That the model sees."""

    def __call__(self, record: Record) -> dict[str, NDArray[np.generic]]:
        """Return images (C, img_size, img_size) uint8 and labels () int64.

        Raises:
            BadSample: the image does not decode.
        """
        image = fit_image(record.decode_image(), self.channels)
        view = draw_view(CounterRng(0), image.width, image.height, _WHOLE)
        pixels = render_view(image, view, img_size=self.img_size)
        return {"images": np.ascontiguousarray(pixels.transpose(2, 0, 1)), "labels": np.asarray(record.label, np.int64)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeData:
    """The labelled images of a probe."""

    train: LabelledIndex
    """To vote and to fit with."""
    test: LabelledIndex
    """To measure on, with the class ids of `train`."""
    num_classes: int
    """Classes."""


def open_probe_data(config: ProbeConfig) -> ProbeData | None:
    """Open the labelled images of a probe; None where the settings name none."""
    if config.data is None:
        return None
    numbers = None if config.class_names is None else read_class_names(config.class_names)
    index = open_labelled(config.data, class_names=numbers, label_column=config.label_column)
    index.require_one_class_each()
    if config.test is not None:
        train = index
        test = open_labelled(config.test, class_names=numbers, label_column=config.label_column)
        test.require_labels()
        warn_of_shared_images(train, test)
    else:
        chosen = np.array([stable_hash64("probe", key) % 2 == 0 for key in index.keys()], dtype=np.bool_)
        train, test = index.split(chosen, change="probe halves")
    names = index.class_names or []
    test = test.with_class_names(names, numbers=numbers)
    require(len(test) > 0, f"probe.data ({config.data}) is too small to halve; give probe.test")
    require(
        int(np.count_nonzero(train.class_counts())) >= 2,
        f"probe.data ({config.data}) must hold two classes or more, in sub-folders or with labels of their own",
    )
    train, test = (side.subset(num_labels=min(len(side), config.max_images)) for side in (train, test))
    return ProbeData(train=train, test=test, num_classes=len(names))


def probe_metrics(
    model: nn.Module,
    data: ProbeData,
    *,
    config: ProbeConfig,
    normalization: Normalization,
    reader: ReaderConfig,
    world: World,
) -> dict[str, float]:
    """Probe every block of a pre-training model in eval mode, whose own call runs all blocks, also under ZeRO 3.

    Each rank computes the features of its part, rank 0 classifies, all return the same numbers.

    Returns:
        probe_knn_acc and probe_linear_acc of the best block (the one with the best linear accuracy), `BEST_BLOCK`, and
        probe_knn/I and probe_linear/I for every block I, and probe_chance, of always answering the commonest class.
    """
    train, test = (
        _features(model, index, config=config, normalization=normalization, reader=reader, world=world)
        for index in (data.train, data.test)
    )
    scores = world.run_on_main(lambda: probe_blocks(train, test, num_classes=data.num_classes))
    best = scores[best_block(scores)]
    metrics = {"probe_linear_acc": best.linear_acc, "probe_knn_acc": best.knn_acc, BEST_BLOCK: float(best.block)}
    for score in scores:
        metrics |= {f"probe_linear/{score.block}": score.linear_acc, f"probe_knn/{score.block}": score.knn_acc}
    commonest = int(torch.bincount(train.labels).argmax())
    return metrics | {"probe_chance": (test.labels == commonest).double().mean().item()}


def describe(metrics: Mapping[str, float]) -> str:
    """Say in one line what a probe found."""
    return (
        f"probe: linear {percent(metrics['probe_linear_acc'])}, k-NN {percent(metrics['probe_knn_acc'])} "
        f"with block {metrics[BEST_BLOCK]:.0f} (counted from 0; chance {percent(metrics['probe_chance'])})"
    )


def _features(
    model: Any,
    index: LabelledIndex,
    *,
    config: ProbeConfig,
    normalization: Normalization,
    reader: ReaderConfig,
    world: World,
) -> Features:
    """Return the features of all images; every rank computes its part."""
    vit: VisionTransformer = model
    side, num_patches = vit.config.img_size, vit.config.num_patches
    loader = sequential_loader(
        LabelledDataset(index, cache_bytes=reader.parquet_cache_bytes),
        transform=ProbeTransform(img_size=side, channels=vit.config.in_chans),
        micro_batch_size=config.micro_batch_size,
        rank=world.rank,
        world_size=world.world_size,
        config=replace(reader, num_workers=0),  # starting workers takes longer than this many images
    )
    blank = {"images": torch.zeros(1, 3, side, side, dtype=torch.uint8), "labels": torch.full((1,), -1)}

    def forward(images: Tensor) -> None:
        model(images, torch.zeros(len(images), num_patches, dtype=torch.bool, device=images.device))

    batches: Iterable[dict[str, Any]] = padded(loader, len(loader), blank, world)
    features = extract_features(vit, batches, device=world.device, normalization=normalization, forward=forward)
    real = features.labels >= 0
    parts = world.gather(Features(features.blocks[:, real], features.labels[real]))
    whole = Features(torch.cat([part.blocks for part in parts], dim=1), torch.cat([part.labels for part in parts]))
    require(len(whole.labels) > 0, "no image of the probe can be read; check probe.data and probe.test")
    return whole
