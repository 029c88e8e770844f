"""How large a store will be, said before it is begun, and refused where the disk cannot hold it."""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
from pathlib import Path

from beit.common.errors import InputError
from beit.common.shards.schema import IMAGES_DIR, TOKENS_DIR
from beit.common.sources.tars import TarShard
from beit.common.storage.paths import is_remote
from beit.common.views import VIEW_DTYPE
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.plan import CROP_BYTES_PER_PIXEL, StorePlan

logger = logging.getLogger(__name__)

_ROW_BYTES = 200
"""Of an image in the sample table, with its key; measured at 16 views, where checksums of the words are most of it."""
_USUAL_TAR_IMAGES = 1000
"""Assumed of a tar that cannot be looked into cheaply."""
_NPY_HEADER_BYTES, _JPEG_HEADER_BYTES = 128, 600
_SHRUNK_BYTES_PER_PIXEL = 0.5
"""Of a shrunk image, whose longer side is taken to be 4/3 of the shorter one: 42 kB at 256 px (`config.py`)."""


def store_bytes(plan: StorePlan, config: TokenizeConfig) -> tuple[int, int]:
    """Estimate what a store will take: bytes of images, which may stay where they are, and of tokens."""
    num_images = _count_images(plan)
    if plan.catalogue is None:
        images = 0
    elif config.materialize:
        crop = _member_bytes(_JPEG_HEADER_BYTES + config.img_size**2 * CROP_BYTES_PER_PIXEL)
        images = num_images * config.views * crop
    else:
        shrunk = _SHRUNK_BYTES_PER_PIXEL * config.short_side**2 * 4 / 3 if config.short_side else float("inf")
        lengths = (min(ref.length, shrunk) for ref in plan.catalogue.refs)
        images = sum(map(_member_bytes, lengths))
    tokens = 2 * config.grid_size**2 * config.views
    views = VIEW_DTYPE.itemsize * config.views
    per_image = _ROW_BYTES
    if config.views:
        per_image += _member_bytes(_NPY_HEADER_BYTES + tokens) + _member_bytes(_NPY_HEADER_BYTES + views)
    return images, num_images * per_image


def foretell_size(plan: StorePlan, config: TokenizeConfig, store: str, *, speaks: bool) -> None:
    """Say how large the store will be, unless most of it is there; refuse one that its disk has no room for.

    Of a store behind a URL the size is said, and nothing is known of the room.
    """
    images, tokens = store_bytes(plan, config)
    total = images + tokens
    left, room = total, ""
    if not is_remote(store):
        there = sum(_size_of(Path(store) / name) for name in (IMAGES_DIR, TOKENS_DIR))
        left = max(0, total - there)
        free = shutil.disk_usage(_nearest(Path(store))).free
        room = f"; {_bytes(free)} are free there"
        if left > free:
            more = "" if not there else f"{_bytes(left)} more of "
            raise InputError(
                f"store {store} needs about {more}{_bytes(total)} ({_bytes(images)} for images, {_bytes(tokens)} for "
                f"tokens), and its disk has {_bytes(free)} free; name a folder on another disk, "
                + ("lower --views" if config.materialize or not images else "shrink images with --short-side 256")
            )
    if speaks and left > total // 20:
        parts = (
            f"images {_bytes(images)}, tokens {_bytes(tokens)}" if images else "tokens; the images stay where they are"
        )
        logger.info("store %s: about %s (%s)%s", store, _bytes(total), parts, room)


def _count_images(plan: StorePlan) -> int:
    if plan.catalogue is not None:
        return len(plan.catalogue.refs)
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
