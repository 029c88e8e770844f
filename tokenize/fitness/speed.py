"""How fast a tokenizer encodes and decodes on this machine: warm-up, then the median of repeats."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from beit.common.tokenizer import Tokenizer

_BUDGET_SECONDS = 10.0
"""Per measurement; a slow tokenizer is repeated less often. Arbitrary."""
_MIN_REPEATS, _MAX_REPEATS = 3, 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Views per second, pixels in memory to ids on the device and back; decoding files and cropping not included."""

    device: str
    """Where it ran."""
    threads: int
    """CPU threads of torch."""
    micro_batch_size: int
    """Views per forward pass."""
    encode_views_per_second: dict[str, float]
    """By number format."""
    decode_views_per_second: float | None
    """In float32; None without a decoder."""


def measure_speed(
    tokenizer: Tokenizer, by_dtype: Mapping[str, Tokenizer], views: NDArray[np.uint8], *, device: str
) -> Speed:
    """Time one batch.

    Args:
        tokenizer: In float32.
        by_dtype: The same in other number formats.
        views: uint8 (B, S, S, 3).
        device: Where the tokenizers are: "cpu" or "cuda:N".
    """
    on_gpu = device != "cpu"
    wait = torch.cuda.synchronize if on_gpu else lambda: None  # on a CPU, work is finished when it returns
    encode = {
        dtype: len(views) / _median_seconds(lambda one=one: one.encode(views), wait)  # type: ignore[misc]
        for dtype, one in {"float32": tokenizer, **by_dtype}.items()
    }
    decode = None
    if tokenizer.can_decode:
        token_ids = tokenizer.encode(views)
        decode = len(views) / _median_seconds(lambda: tokenizer.decode(token_ids), wait)
    return Speed(
        device=torch.cuda.get_device_name(device) if on_gpu else f"CPU ({torch.backends.cpu.get_cpu_capability()})",
        threads=torch.get_num_threads(),
        micro_batch_size=len(views),
        encode_views_per_second=encode,
        decode_views_per_second=decode,
    )


def _median_seconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    seconds = _seconds(work, wait)  # warm-up: kernels are chosen and memory is taken once
    repeats = max(_MIN_REPEATS, min(_MAX_REPEATS, int(_BUDGET_SECONDS / seconds)))
    return statistics.median(_seconds(work, wait) for _ in range(repeats))


def _seconds(work: Callable[[], object], wait: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started
