"""Settings of the data reader, shared by every training. The reader itself is `beit.common.reading.reader`."""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """How samples are read; nothing here but `window_shards` and `lanes` changes which samples come in which order."""

    num_workers: int = 2
    """Processes per rank that decode images; 0 decodes in the training process."""
    prefetch_batches: int = 2
    """Micro-batches that each worker prepares ahead."""
    timeout_seconds: float = 300.0
    """Longest wait for one micro-batch before the worker that owes it counts as hung."""
    window_shards: int = 32
    """Shards that are mixed with each other; part of the data order, so fixed for a run."""
    lanes: int | None = None
    """Parts of the shards that feed their own rows of a batch, so that each of as many machines reads its own shards
    only; part of the data order. Left out: 1 for local data, 8 for remote stores, as far as batch and shards allow."""
    bad_sample_budget: float = 0.001
    """Share of the samples that may be unreadable before the run stops; 0 stops at the first."""
    parquet_cache_bytes: int = 512 * 2**20
    """Memory per worker for the Parquet row groups in use."""
    cache_dir: str | None = None
    """Folder on a local disk for shards of remote stores, shared by all ranks and runs of a machine; left out,
    $BEIT_CACHE/shards or ~/.cache/beit/shards."""
    cache_bytes: int = 32 * 2**30
    """Most that folder may hold; twice a window of shards is enough. 0 keeps nothing: every sample comes by itself."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(
            self.num_workers >= 0,
            f"reader.num_workers ({self.num_workers}) must not be negative; 0 reads without workers",
        )
        require(self.prefetch_batches >= 1, f"reader.prefetch_batches ({self.prefetch_batches}) must be at least 1")
        require(
            self.timeout_seconds > 0,
            f"reader.timeout_seconds ({self.timeout_seconds}) must be above 0, else a hung worker would go unseen",
        )
        require(self.window_shards >= 1, f"reader.window_shards ({self.window_shards}) must be at least 1")
        require(self.lanes is None or self.lanes >= 1, f"reader.lanes ({self.lanes}) must be at least 1")
        require(
            0.0 <= self.bad_sample_budget < 1.0,
            f"reader.bad_sample_budget ({self.bad_sample_budget}) must be in [0, 1); 0.001 allows one in a thousand",
        )
        require(
            self.parquet_cache_bytes >= 0,
            f"reader.parquet_cache_bytes ({self.parquet_cache_bytes}) must not be negative",
        )
        require(self.cache_bytes >= 0, f"reader.cache_bytes ({self.cache_bytes}) must not be negative; 0 is no cache")
