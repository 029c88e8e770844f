"""Settings of the data reader, shared by every training. The reader itself is `beit.common.reading.reader`."""

from __future__ import annotations

from typing import Annotated

from beit.common.config import above, at_least, checked, within


@checked("reader")
class ReaderConfig:
    """How samples are read; nothing here but `window_shards` and `lanes` changes which samples come in which order."""

    num_workers: Annotated[int, at_least(0, "0 reads without workers")] = 2
    """Processes per rank that decode images; 0 decodes in the training process."""
    prefetch_batches: Annotated[int, at_least(1)] = 2
    """Micro-batches that each worker prepares ahead."""
    timeout_seconds: Annotated[float, above(0, "else a hung worker would go unseen")] = 300.0
    """Longest wait for one micro-batch before the worker that owes it counts as hung."""
    window_shards: Annotated[int, at_least(1)] = 32
    """Shards that are mixed with each other; part of the data order, so fixed for a run."""
    lanes: Annotated[int | None, at_least(1)] = None
    """Parts of the shards that feed their own rows of a batch, so that each of as many machines reads its own shards
    only; part of the data order. Left out: 1 for local data, 8 for remote stores, as far as batch and shards allow."""
    bad_sample_budget: Annotated[float, within("[0, 1)", "0.001 allows one in a thousand")] = 0.001
    """Share of the samples that may be unreadable before the run stops; 0 stops at the first."""
    parquet_cache_bytes: Annotated[int, at_least(0)] = 512 * 2**20
    """Memory per worker for the Parquet row groups in use."""
    cache_dir: str | None = None
    """Folder on a local disk for shards of remote stores, shared by all ranks and runs of a machine; left out,
    $BEIT_CACHE/shards or ~/.cache/beit/shards."""
    cache_bytes: Annotated[int, at_least(0, "0 is no cache")] = 32 * 2**30
    """Most that folder may hold; twice a window of shards is enough. 0 keeps nothing: every sample comes by itself."""
