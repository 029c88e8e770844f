"""What it will take to measure frozen features: the one place that says so, for linear probe and k-NN. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.model import FLOAT, vit_model, vit_parameters
from beit.common.forecast.words import in_gb, in_words
from beit.common.vit.config import ViTConfig
from beit.common.vit.flops import forward_flops
from beit.finetune.config import FinetuneConfig

_PROCESS_BYTES = 420e6
"""Of a process that computes features on a CPU, without DeepSpeed; measured."""
_LISTED_BYTES = 650
"""Of an image in the lists of what is to be read, `tokenize/forecast.py`."""
_WORKERS_BYTES, _WORKER_BYTES = 177e6, 25e6
"""As of trainings, `common/forecast/memory.py`."""
_GAPS = 1.5
"""Times what a batch needs at once; as of their evaluations."""
_FITTING_PASSES = 120
"""Over the features of a block, for its linear classifier: at most 100 steps of L-BFGS, some with a second look."""
_QUERIES = 1024
"""Compared with all training images at a time, `common/vit/features.py`."""
_STANDARDISED = 3
"""Times the features of one block, while its classifier is fitted: less their mean, scaled, and in a product."""
_PER_CLASS = 4
"""Numbers of each image and class, meanwhile: scores, shares, and the gradients of both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeForecast:
    """What measuring features will take."""

    hardware: Hardware
    """Where it was asked for."""
    seconds: float | None
    """Of features and classifiers; None where nobody knows how fast the device is."""
    memory_bytes: float | None
    """Of the process with its data workers, on a CPU; None on a GPU."""
    feature_bytes: int
    """Of the features, which are kept on the disk."""

    def line(self) -> str:
        """Say it in a line."""
        time = "a time that nobody knows" if self.seconds is None else f"about {in_words(self.seconds)}"
        memory = "" if self.memory_bytes is None else f" and {in_gb(self.memory_bytes)} of memory"
        return f"expected: {time} ({self.hardware.flops_source}){memory}; {in_gb(self.feature_bytes)} of disk"


def forecast_probe(
    config: FinetuneConfig,
    shape: ViTConfig,
    *,
    num_train: int,
    num_val: int,
    num_classes: int,
    is_linear: bool,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
) -> ProbeForecast:
    """Return what linear probe or k-NN take, features included.

    Args:
        config: Its settings.
        shape: Of the encoder.
        num_train: Images to fit with, or to vote.
        num_val: Images to measure on.
        num_classes: C.
        is_linear: Whether classifiers are fitted; else neighbours vote.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image.
    """
    hardware, images, width = hardware or this_machine(num_devices=1), num_train + num_val, 2 * shape.embed_dim
    features = FLOAT * images * shape.depth * width
    held = num_train * (_STANDARDISED * width + _PER_CLASS * num_classes if is_linear else width + _QUERIES)
    seconds = None
    if hardware.flops is not None:
        computing = forward_flops(shape) / hardware.flops
        reading = sample_seconds(shape.img_size, stored_megapixels=stored_megapixels)
        reading /= hardware.cores * hardware.spare
        image = computing + reading if hardware.device == "cpu" else max(computing, reading)
        # Of a classifier forward and backward pass, of a neighbour one product.
        judging = 6.0 * num_classes * num_train * _FITTING_PASSES if is_linear else 2.0 * num_val * num_train
        seconds = images * image + shape.depth * width * judging / hardware.flops
    return ProbeForecast(
        hardware=hardware,
        seconds=seconds,
        memory_bytes=_memory_bytes(config, shape, features, images, judging=held) if hardware.device == "cpu" else None,
        feature_bytes=features,
    )


def _memory_bytes(config: FinetuneConfig, shape: ViTConfig, features: int, images: int, *, judging: int) -> float:
    """Return what the process needs at the worst moment, data workers included: of computing, or judging one block."""
    model = vit_model(shape, head_rows=0, head_outputs=0)
    at_once = min(images, config.evaluation.micro_batch_size)
    reader = config.reader
    rows = reader.prefetch_batches * at_once * model.row_bytes
    workers = _WORKERS_BYTES * (reader.num_workers > 0) + reader.num_workers * (_WORKER_BYTES + rows)
    computing = _GAPS * at_once * model.forward_bytes + workers
    kept = _LISTED_BYTES * images + FLOAT * vit_parameters(shape) + features
    return _PROCESS_BYTES + kept + max(computing, FLOAT * judging)
