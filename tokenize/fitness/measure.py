"""Measuring one tokenizer on a sample of views: everything a fitness report says, before it is judged or drawn.

Here are the whole, reconstructions and speed (warm-up, then the median of repeats). The other parts: `tokens.py` (ids
alone), `image_quality.py` (pixels), `agreement.py`, `classes.py`, `stability.py`. Verdicts are `verdicts.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from beit.common.progress import Progress
from beit.common.tokenizer import DType, Tokenizer, load_tokenizer
from beit.tokenize.fitness.agreement import Agreement, AgreementTally
from beit.tokenize.fitness.classes import ClassScore, ClassTally
from beit.tokenize.fitness.image_quality import block_means, image_psnr, image_ssim
from beit.tokenize.fitness.stability import Stability, StabilityTally, shift_margin
from beit.tokenize.fitness.tokens import TokenStatistics, TokenTally
from beit.tokenize.fitness.views import ViewSample

MICRO_BATCH_SIZE = 32
"""Views per forward pass, as in `beit tokenize`."""
CHANGED_VIEWS = 64
"""Views that are rendered and encoded anew for every change; some ten thousand tokens, a standard error near 1 %."""
_BUDGET_SECONDS = 10.0
"""Per timing; a slow tokenizer is repeated less often. Arbitrary."""
_MIN_REPEATS, _MAX_REPEATS = 3, 9


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFacts:
    """Which tokenizer it is."""

    name: str
    """As the user gave it."""
    fingerprint: str
    """sha256 over settings and weights."""
    vocab_size: int
    """Words."""
    downsampling: int
    """Pixels per token and side."""
    can_decode: bool
    """Whether it can paint words."""
    paints_averages: bool
    """Whether it paints a word as the average of the squares that had it; such words were not made to be painted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """Views encoded and decoded, beside the views with every token's square replaced by its mean colour."""

    psnr: float
    """dB, mean over views."""
    block_mean_psnr: float
    """Of the mean colours."""
    ssim: float
    """Structural similarity of luma, mean over views."""
    block_mean_ssim: float
    """Of the mean colours."""
    share_above_block_mean: float
    """Share of views whose PSNR is above that of their mean colours."""

    @property
    def psnr_gain(self) -> float:
        """How far it is above the mean colours, dB."""
        return self.psnr - self.block_mean_psnr


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitness:
    """One tokenizer, measured."""

    tokenizer: TokenizerFacts
    """Which one."""
    num_views: int
    """Views measured."""
    view_size: int
    """Side of a view in px."""
    grid_size: int
    """Tokens per side of a view."""
    tokens: TokenStatistics
    """The ids alone."""
    reconstruction: Reconstruction | None
    """None without a decoder."""
    agreement: Agreement
    """What changes do that leave the scene as it is."""
    num_labelled: int
    """Views of images with a class."""
    classes: ClassScore | None
    """What words say about it; None where too few images have one."""
    stability: Stability
    """What small changes do."""
    speed: Speed
    """The only part that differs between two runs."""

    @property
    def bits_per_pixel(self) -> float:
        """Entropy of a token over its pixels: what a picture is compressed to, at most."""
        return self.tokens.words.entropy_bits / self.tokenizer.downsampling**2


@dataclass(frozen=True, slots=True)
class Measurement:
    """The numbers, and what is needed to choose pictures."""

    fitness: Fitness
    positions: list[int]
    """Images measured, as `ViewSample` counts them."""
    psnr: list[float]
    """Of each; empty without a decoder."""


def measure_fitness(tokenizer: Tokenizer, sample: ViewSample, *, view_size: int, device: str) -> Measurement:
    """Measure a tokenizer on all views of a sample.

    Args:
        tokenizer: In float32, on `device`.
        sample: The views.
        view_size: Side of the views in px, divisible by the tokenizer's downsampling.
        device: "cpu" or "cuda:N".
    """
    dtypes: tuple[DType, ...] = ("bfloat16",) if device == "cpu" else ("bfloat16", "float16")  # as `beit tokenize` has
    by_dtype: dict[str, Tokenizer] = {
        dtype: load_tokenizer(tokenizer.name, device=device, dtype=dtype) for dtype in dtypes
    }
    grid_size = view_size // tokenizer.downsampling
    tally = TokenTally(tokenizer.vocab_size, num_views=len(sample), tokens_per_view=grid_size**2)
    stability, agreement = StabilityTally(tokenizer, by_dtype), AgreementTally(tokenizer)
    classes = ClassTally(tokenizer.vocab_size, tokenizer.downsampling)
    pixels = PixelTally(tokenizer)
    positions: list[int] = []
    first: NDArray[np.uint8] | None = None
    with Progress(len(sample), unit="views", description=f"measuring {tokenizer.name}") as progress:
        for batch in sample.batches(MICRO_BATCH_SIZE, view_size=view_size):
            token_ids = tokenizer.encode(batch.pixels).cpu().numpy()
            tally.add(token_ids)
            classes.add(batch.pixels, token_ids, batch.labels)
            if chosen := batch.positions[: max(0, CHANGED_VIEWS - len(positions))]:
                wide = sample.views_at(chosen, view_size=view_size + shift_margin(tokenizer.downsampling))
                still = tokenizer.encode(np.ascontiguousarray(wide[:, :view_size, :view_size])).cpu().numpy()
                stability.add(wide, still)
                agreement.add(wide, still)
            pixels.add(batch.pixels, token_ids)
            positions += batch.positions
            first = batch.pixels if first is None else first
            progress.update(len(batch.positions))
        progress.update(len(sample) - len(positions))  # those passed over
    assert first is not None  # `batches` insists on some views
    fitness = Fitness(
        tokenizer=TokenizerFacts(
            name=tokenizer.name,
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            downsampling=tokenizer.downsampling,
            can_decode=tokenizer.can_decode,
            paints_averages=tokenizer.paints_averages,
        ),
        num_views=len(positions),
        view_size=view_size,
        grid_size=grid_size,
        tokens=tally.statistics(),
        reconstruction=pixels.result(),
        agreement=agreement.result(tally.counts),
        num_labelled=classes.num_labelled,
        classes=classes.result(),
        stability=stability.result(),
        speed=measure_speed(tokenizer, by_dtype, first, device=device),
    )
    return Measurement(fitness, positions, pixels.psnr)


class PixelTally:
    """Adds up reconstructions batch by batch; does nothing for a tokenizer without a decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.psnr: list[float] = []
        self._above = 0
        self._sums = np.zeros(3)  # mean colours' PSNR, SSIM, mean colours' SSIM

    def add(self, views: NDArray[np.uint8], token_ids: NDArray[np.integer]) -> None:
        """Decode ids (B, g, g) and compare with the uint8 views (B, S, S, 3) they came from."""
        if not self._tokenizer.can_decode:
            return
        original, decoded = _channels_first(views), _channels_first(self._tokenizer.decode(token_ids))
        means = block_means(original, self._tokenizer.downsampling)
        psnr, means_psnr = image_psnr(decoded, original), image_psnr(means, original)
        self.psnr += psnr.tolist()
        self._above += int((psnr > means_psnr).sum())
        ssims = image_ssim(decoded, original), image_ssim(means, original)
        self._sums += [float(values.double().sum()) for values in (means_psnr, *ssims)]

    def result(self) -> Reconstruction | None:
        """Return the means over all views so far."""
        count = len(self.psnr)
        if not count:
            return None
        means_psnr, ssim, means_ssim = (float(value) / count for value in self._sums)
        return Reconstruction(
            psnr=float(np.mean(self.psnr)),
            block_mean_psnr=means_psnr,
            ssim=ssim,
            block_mean_ssim=means_ssim,
            share_above_block_mean=self._above / count,
        )


def _channels_first(views: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(views).permute(0, 3, 1, 2)


def measure_speed(
    tokenizer: Tokenizer, by_dtype: Mapping[str, Tokenizer], views: NDArray[np.uint8], *, device: str
) -> Speed:
    """Time one batch of views, uint8 (B, S, S, 3), on the tokenizers' device, in float32 and other number formats."""
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
