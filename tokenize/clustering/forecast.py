"""What it will take to cluster patches: the one place that says so. Nothing is trained, so no training's forecast fits.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.model import FLOAT, vit_model, vit_parameters
from beit.common.forecast.words import in_gb, in_words
from beit.common.tokenizers.kmeans_config import KMeansConfig
from beit.common.vit.flops import forward_flops
from beit.tokenize.clustering.config import ClusteringConfig

_PROCESS_BYTES = 340e6
"""Of a process that clusters on a CPU, without DeepSpeed; measured."""
_WORKERS_BYTES, _WORKER_BYTES = 177e6, 25e6
"""As of trainings, `common/forecast/memory.py`."""
_VECTOR_SECONDS = 15e-6
"""Of a core, for each vector besides products: its direction, the best of its scores, and whole numbers that are added
up. Measured with 128 and 193 numbers, 64 and 1024 words."""
_COPIES = 3
"""Of the vectors of a batch: as described, as directions, and joined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusteringForecast:
    """What a clustering will take."""

    hardware: Hardware
    """Where it was asked for."""
    num_batches: int
    """In all."""
    seconds: float | None
    """Of all of them; None where nobody knows how fast the device is."""
    memory_bytes: float | None
    """Of a rank with its data workers, on a CPU; None on a GPU."""
    disk_bytes: int
    """Of checkpoints that are kept, and the tokenizer."""

    def line(self, *, after: int = 0, free_disk: int | None = None) -> str:
        """Say it in a line, for a run that goes on after so many batches."""
        left = self.num_batches - after
        time = "a time that nobody knows"
        if self.seconds is not None:
            time = f"about {in_words(self.seconds * left / self.num_batches)}"
        each = " per rank" if self.hardware.num_devices > 1 else ""
        memory = "" if self.memory_bytes is None else f" and {in_gb(self.memory_bytes)} of memory{each}"
        room = "" if free_disk is None else f", {in_gb(free_disk)} are free there"
        return (
            f"expected: {time} ({self.hardware.flops_source}){memory} for {left} batches; {in_gb(self.disk_bytes)} of "
            f"disk{room}"
        )


def forecast_clustering(
    config: ClusteringConfig,
    words: KMeansConfig,
    *,
    view_size: int,
    num_chosen: int,
    hardware: Hardware | None = None,
    stored_megapixels: float = PHOTO_MEGAPIXELS,
) -> ClusteringForecast:
    """Return what a clustering takes.

    Args:
        config: Its settings.
        words: Of the tokenizer.
        view_size: Side of a view in pixels.
        num_chosen: Patches of a view that are looked at.
        hardware: Where it happens; left out, here.
        stored_megapixels: Of an image.
    """
    hardware, settings = hardware or this_machine(), config.clustering
    length = words.dim + (words.anchor > 0)
    computing = 2.0 * num_chosen * length * words.vocab_size
    parameters = 0
    if words.vit is not None:
        computing, parameters = computing + forward_flops(words.vit), vit_parameters(words.vit)
    seconds = None
    if hardware.flops is not None:
        view = computing / hardware.flops
        cores = hardware.cores_per_device * hardware.spare
        reading = sample_seconds(view_size, stored_megapixels=stored_megapixels) / cores
        view = view + reading if hardware.device == "cpu" else max(view, reading)
        view += num_chosen * _VECTOR_SECONDS / hardware.spare  # on one core: they are added up one after the other
        seconds = settings.total_steps * settings.global_batch_size * view / hardware.num_devices
    centres = words.vocab_size * (2 * FLOAT * length + 8 + 8 * 3 * words.patch_size**2)
    return ClusteringForecast(
        hardware=hardware,
        num_batches=settings.total_steps,
        seconds=seconds,
        memory_bytes=_memory_bytes(config, words, view_size, num_chosen, hardware, parameters),
        disk_bytes=config.checkpoint.keep * centres + centres + FLOAT * parameters,
    )


def _memory_bytes(
    config: ClusteringConfig,
    words: KMeansConfig,
    view_size: int,
    num_chosen: int,
    hardware: Hardware,
    parameters: int,
) -> float | None:
    if hardware.device != "cpu":
        return None
    settings, reader, length = config.clustering, config.reader, words.dim + (words.anchor > 0)
    share = settings.global_batch_size / hardware.num_devices
    vectors = _COPIES * FLOAT * share * num_chosen * length
    scores = 2.0 * FLOAT * settings.micro_batch_size * num_chosen * words.vocab_size
    forward = FLOAT * settings.micro_batch_size * 3.0 * view_size**2
    if words.vit is not None:
        forward += settings.micro_batch_size * vit_model(words.vit, head_rows=0, head_outputs=0).forward_bytes
    rows = reader.prefetch_batches * settings.micro_batch_size * 3.0 * view_size**2
    workers = _WORKERS_BYTES * (reader.num_workers > 0) + reader.num_workers * (_WORKER_BYTES + rows)
    return _PROCESS_BYTES + FLOAT * parameters + vectors + max(scores, forward) + workers
