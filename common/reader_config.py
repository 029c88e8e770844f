"""Settings of the data reader, shared by every training. The reader itself is `beit.common.reader`."""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.errors import require


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """How samples are read; nothing here but `window_shards` changes which samples come in which order."""

    num_workers: int = 2
    """Processes per rank that decode images; 0 decodes in the training process."""
    prefetch_batches: int = 2
    """Micro-batches that each worker prepares ahead."""
    timeout_seconds: float = 300.0
    """Longest wait for one micro-batch before the worker that owes it counts as hung."""
    window_shards: int = 32
    """Shards that are mixed with each other; part of the data order, so fixed for a run."""
    bad_sample_budget: float = 0.001
    """Share of the samples that may be unreadable before the run stops; 0 stops at the first."""
    parquet_cache_bytes: int = 512 * 2**20
    """Memory per worker for the Parquet row groups in use."""

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
        require(
            0.0 <= self.bad_sample_budget < 1.0,
            f"reader.bad_sample_budget ({self.bad_sample_budget}) must be in [0, 1); 0.001 allows one in a thousand",
        )
        require(
            self.parquet_cache_bytes >= 0,
            f"reader.parquet_cache_bytes ({self.parquet_cache_bytes}) must not be negative",
        )
