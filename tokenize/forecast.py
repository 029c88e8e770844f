"""What a store will take: the one place that says so, for `beit tokenize` and for `beit plan`.

Said before it is begun, and refused where the disk cannot hold it. Torch-free.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.loading import PHOTO_MEGAPIXELS, sample_seconds
from beit.common.forecast.rules import Problem
from beit.common.forecast.words import in_gb, in_words
from beit.common.images.large.windows import Measured
from beit.common.processes.memory import free_machine_bytes
from beit.common.shards.held_out import held_out_count
from beit.common.shards.schema import IMAGES_DIR, TOKENS_DIR
from beit.common.sources.tars import TarShard
from beit.common.storage.paths import is_remote
from beit.common.views import VIEW_DTYPE
from beit.tokenize.config import TokenizeConfig as TokenizeConfig  # for who asks here, too
from beit.tokenize.encoders import encoding_bytes, encoding_flops, vocabulary
from beit.tokenize.plan import StorePlan, cut_bytes, planned_held_out

logger = logging.getLogger(__name__)

STORE_RECIPES = Path(__file__).parent / "recipes" / "store"
"""Of `beit tokenize`, for which none is shipped."""
_SURE = 0.7
"""Of the memory expected, what is surely needed."""
USUAL_IMAGE_BYTES = 110_000
"""Of an image of which nothing else is known, as ImageNet's are."""
_MAKING, _CONVOLVING = 3.2, 0.55
"""Times the work of a view in training that a new one is; and of the speed of a training, what a tokenizer reaches."""
_DECODING, _SHRINKING = 9.5e-3, 0.03
"""Core seconds per megapixel: of a JPEG, and of an image that is shrunk and encoded again."""
_ROW_BYTES, _ROW_BYTES_PER_VIEW = 60, 9
"""Of an image in the sample table, with its key, and of the checksum of each view's words; measured."""
_PROCESS_BYTES = 312e6
"""Of a process that is about to tokenise on a CPU: Python, torch, pyarrow; measured."""
_LISTED_BYTES = 650
"""Of an image in the list of those to be packed, its name above all; measured with 50,000."""
_DECODED_BYTES, _ARENA_BYTES, _ARENA_IMAGES = 12.0, 15e6, 80.0
"""Of each thread that reads images: bytes per pixel of the one it is at, decoded, turned and converted; and what the C
library's arena of the thread loses to gaps, at most, and per pixel while that is less. Measured."""
_CUT_BYTES = 8.0
"""Of each thread that cuts an image into tiles: bytes per pixel of the part that is decoded at a time, and of what is
made of it. Measured with images of 20 megapixels: 8.4."""
_GAPS = 1.6
"""Times what a batch of views needs, for the gaps that its blocks leave to each other; measured."""
_PACKING, _PACKED_BYTES = 1e-3, 500e6
"""Seconds per image and bytes per second of packing, in one process whatever the ranks and machines; assumed."""
_USUAL_TAR_IMAGES = 1000
"""Assumed of a tar that cannot be looked into cheaply."""
_NPY_HEADER_BYTES = 128
_SHRUNK, _CROPPED = (1820, 1.456), (1150, 0.92)
"""Of a JPEG, bytes at least, and per pixel to the power of 0.9: of shrunk photos at quality 95, of crops at 90.
Fitted to 600 photos at short sides of 96 and 256 px, and to crops of 32, 64 and 224 px."""
_POWER, _ASPECT = 0.9, 4 / 3
"""Of that, and of the sides of a photo."""


_METADATA_BYTES = 60
"""Of the member that says where an image comes from; part of what crops and shrunk images were measured to take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreForecast:
    """What a store will take."""

    num_images: int
    """To be tokenised."""
    num_shards: int
    """Pairs of tars."""
    num_held_out: int
    """Images that pre-training leaves out, to measure on."""
    image_bytes: int
    """Of images that are packed; 0 where they stay where they are."""
    token_bytes: int
    """Of tokens, views and tables."""
    vocab_size: int | None
    """Words of the tokenizer; None where only loading it would tell."""
    views_per_second: float | None
    """On all devices; None where nobody knows how fast the tokenizer is there."""
    seconds: float | None
    """Of packing and tokenising."""
    memory_bytes: float | None
    """Of a rank's process, on a CPU; None on a GPU, and where nobody knows what the tokenizer needs."""
    hardware: Hardware
    """Where it was asked for."""
    problems: tuple[Problem, ...]
    """Rules that are broken."""

    @property
    def total_bytes(self) -> int:
        """On the disk of the store."""
        return self.image_bytes + self.token_bytes


def load(recipe: str | None = None, overrides: Sequence[str] = ()) -> TokenizeConfig:
    """Return the settings that `beit tokenize --set OVERRIDE ...` would have."""
    return load_config(TokenizeConfig, recipe=recipe, overrides=list(overrides), recipe_dir=STORE_RECIPES)


def forecast(
    config: TokenizeConfig,
    *,
    num_images: int,
    hardware: Hardware | None = None,
    mean_bytes: float = USUAL_IMAGE_BYTES,
    megapixels: float = PHOTO_MEGAPIXELS,
    is_packed: bool = True,
    num_shards: int | None = None,
    image_bytes: int | None = None,
    pixels_at_once: int = 0,
) -> StoreForecast:
    """Return what a store takes.

    Args:
        config: Its settings.
        num_images: Of the source.
        hardware: Where the tokenizer runs; left out, here.
        mean_bytes: Of an image file of the source.
        megapixels: Of an image of the source.
        is_packed: Whether the source is anything but tars, which stay where they are unless images are encoded again.
        num_shards: Tars of the source, where they stay.
        image_bytes: All that is packed, where each image is known; left out, by `mean_bytes`.
        pixels_at_once: Of the largest part of an image that is decoded to be cut into tiles.
    """
    hardware = hardware or this_machine()
    if hardware.device == "cuda" and config.dtype in ("auto", "float16"):  # whatever trainings take there
        hardware = hardware if hardware.precision == "bf16" else hardware.in_precision("fp16")
    is_packed = is_packed or config.is_encoded_again
    stored = _stored_bytes(config, mean_bytes) if is_packed else 0.0
    images = round(num_images * stored) if image_bytes is None else image_bytes
    if is_packed or num_shards is None:
        per_shard = min(config.shard_size, max(1, int(config.shard_bytes // max(1.0, stored))))
        num_shards = -(-num_images // (per_shard if is_packed else _USUAL_TAR_IMAGES))
    rate = _views_per_second(config, hardware, megapixels)
    views = num_images * config.views
    seconds = None if rate is None else views / rate
    if seconds is not None and config.is_encoded_again and not config.materialize:
        seconds += num_images * _SHRINKING * megapixels / hardware.cores
    if seconds is not None and is_packed:
        seconds += num_images * _PACKING + images / _PACKED_BYTES
    return StoreForecast(
        num_images=num_images,
        num_shards=num_shards,
        num_held_out=held_out_count(num_images, config.held_out),
        image_bytes=images,
        token_bytes=num_images * _token_bytes(config),
        vocab_size=vocabulary(config.tokenizer),
        views_per_second=rate,
        seconds=seconds,
        memory_bytes=_memory_bytes(
            config,
            hardware,
            num_listed=num_images if is_packed else 0,
            source_pixels=1e6 * megapixels,
            pixels_at_once=pixels_at_once,
        ),
        hardware=hardware,
        problems=(),
    )


def store_bytes(plan: StorePlan, config: TokenizeConfig) -> tuple[int, int]:
    """Estimate what a store will take: bytes of images, which may stay where they are, and of tokens."""
    catalogue = plan.catalogue
    if catalogue is not None and catalogue.cuts is not None:
        images = sum(cut_bytes(cut, config) + cut.count * _member_bytes(_METADATA_BYTES) for cut in catalogue.cuts)
    else:
        refs = catalogue.refs if catalogue is not None else ()
        images = sum(round(_stored_bytes(config, ref.length)) for ref in refs)
    return images, _count_images(plan) * _token_bytes(config)


def _memory_bytes(
    config: TokenizeConfig, hardware: Hardware, *, num_listed: int, source_pixels: float, pixels_at_once: int
) -> float | None:
    """Return what a rank needs at the worst moment: of packing, or of tokenising, after which nothing of it is left."""
    if hardware.device != "cpu":
        return None
    view = encoding_bytes(config.tokenizer, config.grid_size) if config.views else 0.0
    if view is None:
        return None
    threads = 1 + (config.workers or math.ceil(hardware.cores_per_device))
    stored = source_pixels
    if config.materialize:
        stored = float(config.img_size**2)
    elif config.short_side:
        stored = min(source_pixels, _ASPECT * config.short_side**2)
    packing = _reading_bytes(threads, source_pixels) if config.stored_quality is not None else 0.0
    packing = max(packing, _reading_bytes(threads, 0.0) + (threads - 1) * _CUT_BYTES * pixels_at_once)
    tokenising = _reading_bytes(threads, stored) + _GAPS * config.micro_batch_size * view
    return _PROCESS_BYTES + _LISTED_BYTES * num_listed + max(packing, tokenising)


def _reading_bytes(threads: int, pixels: float) -> float:
    return threads * (_DECODED_BYTES * pixels + min(_ARENA_BYTES, _ARENA_IMAGES * pixels))


def _stored_bytes(config: TokenizeConfig, length: float) -> float:
    """Return what an image of so many bytes takes in a packed tar, with what the tar says of it."""
    if config.materialize:
        return config.views * _member_bytes(_jpeg_bytes(config.img_size**2, *_CROPPED))
    if config.tile:
        return _member_bytes(_METADATA_BYTES) + _member_bytes(config.tile_bytes)
    shrunk = _member_bytes(_jpeg_bytes(_ASPECT * config.short_side**2, *_SHRUNK)) if config.short_side else math.inf
    return min(shrunk, _member_bytes(_METADATA_BYTES) + _member_bytes(length))


def _jpeg_bytes(pixels: float, least: float, slope: float) -> float:
    return float(least + slope * pixels**_POWER)


def _token_bytes(config: TokenizeConfig) -> int:
    """Return what tokens, views and table of an image take."""
    row = _ROW_BYTES + _ROW_BYTES_PER_VIEW * config.views
    if not config.views:
        return row
    tokens, views = 2 * config.grid_size**2 * config.views, VIEW_DTYPE.itemsize * config.views
    return row + _member_bytes(_NPY_HEADER_BYTES + tokens) + _member_bytes(_NPY_HEADER_BYTES + views)


def _views_per_second(config: TokenizeConfig, hardware: Hardware, megapixels: float) -> float | None:
    """Return the views that are drawn, rendered and tokenised in a second on all devices and their machines' cores."""
    if not config.views:
        return None
    flops = encoding_flops(config.tokenizer, config.grid_size)
    stored = megapixels
    if config.short_side:
        stored = min(megapixels, _ASPECT * config.short_side**2 / 1e6)
    # An image is decoded once for all its views, each of which is drawn, and rendered for its check and the tokenizer.
    making = _DECODING * stored / config.views + _MAKING * sample_seconds(config.img_size, stored_megapixels=0.0)
    if flops is None or hardware.flops is None:
        return None
    computing, cores = flops / (_CONVOLVING * hardware.flops), hardware.cores_per_device
    view = computing + making / cores if hardware.device == "cpu" else max(computing, making / cores)
    return hardware.num_devices / view


def forecast_of(
    plan: StorePlan,
    config: TokenizeConfig,
    *,
    ranks: int,
    num_images: int | None = None,
    megapixels: float = PHOTO_MEGAPIXELS,
) -> StoreForecast:
    """Return what a planned store takes on this machine.

    Args:
        plan: Of the store.
        config: Its settings.
        ranks: At work on this machine.
        num_images: Where they were counted, and none is cut; left out, they are as far as that is cheap.
        megapixels: Of an image, on average.
    """
    images, _ = store_bytes(plan, config)
    held_out = planned_held_out(plan, config)
    if num_images is None or held_out is not None:  # which are tiles or pages, more than there are images
        num_images = _count_images(plan)
    found = forecast(
        config,
        num_images=num_images,
        num_shards=len(plan.shards),
        image_bytes=images,
        is_packed=plan.catalogue is not None,
        megapixels=megapixels,
        hardware=this_machine(num_devices=ranks, may_use_gpu=config.device != "cpu"),
        pixels_at_once=_pixels_at_once(plan),
    )
    return found if held_out is None else replace(found, num_held_out=held_out.num_samples)


def _pixels_at_once(plan: StorePlan) -> int:
    cuts = None if plan.catalogue is None else plan.catalogue.cuts
    measured = (Measured(cut.size, cut.has_windows) for cut in cuts or () if cut.size is not None)
    return max((found.pixels_at_once for found in measured), default=0)


def foretell(plan: StorePlan, config: TokenizeConfig, store: str, *, ranks: int, speaks: bool) -> list[str]:
    """Return lines about what the store will take, none if most of it is there; refuse what memory or disk cannot hold.

    Of a store behind a URL the size is said, and nothing is known of the room.

    Args:
        plan: Of the store.
        config: Its settings; `allow_shortage` goes on regardless.
        store: Folder or URL.
        ranks: At work on this machine, as far as it is known.
        speaks: Whether this rank warns.

    Returns:
        The lines, to be said when nothing else is left that would be refused.
    """
    found = forecast_of(plan, config, ranks=ranks, megapixels=config.tile**2 / 1e6 if config.tile else PHOTO_MEGAPIXELS)
    images, tokens, total = found.image_bytes, found.token_bytes, found.total_bytes
    left, room = total, ""
    if not is_remote(store):
        there = sum(_size_of(Path(store) / name) for name in (IMAGES_DIR, TOKENS_DIR))
        left = max(0, total - there)
        free = shutil.disk_usage(_nearest(Path(store))).free
        room = f"; {_bytes(free)} are free there"
        if left > free:
            more = "" if not there else f"{_bytes(left)} more of "
            smaller = "lower --views" if config.materialize or not images else "shrink images with --short-side 256"
            _refuse_or_warn(
                f"store {store} needs about {more}{_bytes(total)} ({_bytes(images)} for images, {_bytes(tokens)} for "
                f"tokens), and its disk has {_bytes(free)} free; name a folder on another disk, {smaller}",
                config,
                speaks=speaks,
            )
    if left > total // 20:
        _heed_memory(found, config, ranks=ranks, speaks=speaks)
    if left <= total // 20:
        return []
    rest = None if found.seconds is None else found.seconds * left / total
    time = "a time that nobody knows" if rest is None else f"about {in_words(rest)}"
    memory = "" if found.memory_bytes is None else f" and {in_gb(found.memory_bytes)} of memory"
    per_rank = "" if ranks == 1 or not memory else " per rank"
    views = f"{found.num_images * config.views} views in {len(plan.shards)} shards"
    parts = f"images {_bytes(images)}, tokens {_bytes(tokens)}" if images else "tokens; the images stay where they are"
    return [
        f"expected: {time} ({found.hardware.flops_source}){memory}{per_rank}; {views}",
        f"store {store}: about {_bytes(total)} ({parts}){room}",
    ]


def _heed_memory(found: StoreForecast, config: TokenizeConfig, *, ranks: int, speaks: bool) -> None:
    free = free_machine_bytes()
    if found.memory_bytes is None or free is None or ranks * found.memory_bytes <= free:
        return
    size = config.micro_batch_size
    smaller = "" if size == 1 else f"; --set micro_batch_size={max(1, size // 4)} needs less"
    _refuse_or_warn(
        f"tokenising needs about {in_gb(ranks * found.memory_bytes)} of memory, and {in_gb(free)} are free{smaller}",
        config,
        speaks=speaks,
        is_sure=_SURE * ranks * found.memory_bytes > free,
    )


def _refuse_or_warn(words: str, config: TokenizeConfig, *, speaks: bool, is_sure: bool = True) -> None:
    if is_sure and not config.allow_shortage:
        raise InputError(f"{words}; to go on regardless, --set allow_shortage=true")
    if speaks:
        logger.warning("%s", words)


def _count_images(plan: StorePlan) -> int:
    if plan.catalogue is not None:
        return plan.catalogue.num_samples
    first = plan.source.shards[0]
    if not isinstance(first, TarShard) or is_remote(first.location) or not first.size:
        return len(plan.shards) * _USUAL_TAR_IMAGES
    sizes = [shard.size for shard in plan.source.shards if isinstance(shard, TarShard)]
    return round(len(first.refs()) * sum(sizes) / first.size)


def _member_bytes(length: float) -> int:
    """Return what a payload takes in a tar."""
    return tarfile.BLOCKSIZE * (1 + -(-int(length) // tarfile.BLOCKSIZE))


def _size_of(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def _nearest(path: Path) -> Path:
    """Return the folder itself or the closest one above that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
