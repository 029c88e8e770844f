"""The source `synthetic:N`, which needs no pictures, and any other one, opened to train or measure a tokenizer."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from PIL import Image

from beit.common.errors import InputError, require
from beit.common.images.missed import RangeOption
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.rng import CounterRng
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.depth import warn_of_range
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.index_build import build_index
from beit.common.storage.files import default_cache_dir, remove_stale, temporary_name
from beit.tokenize.synthetic import SCENE_VERSION, paint_all, render_scene

SYNTHETIC_PREFIX = "synthetic:"


def open_images(
    source: str,
    *,
    img_size: int,
    cache_bytes: int,
    settings: SourceConfig | None = None,
    option: RangeOption = "--set",
) -> LabelledDataset:
    """Open any image source, or generate one; warn of deep images that use little of their range.

    Of colours that transparency hides, too.

    Args:
        source: What `beit.common.sources.opening.open_source` takes, or "synthetic:N" for N generated images.
        img_size: Side of generated images in px.
        cache_bytes: Memory for Parquet row groups.
        settings: Which images are read.
        option: How the command sets a range.
    """
    spec = generate_scenes(source, img_size=img_size) if source.startswith(SYNTHETIC_PREFIX) else source
    index = build_index(spec, settings=settings)
    # What looks like a bad tokenizer may be images of which 8 bits keep nothing.
    warn_of_range(index, index.decoding, option=option)
    warn_of_hidden_colours(index, index.decoding)
    return LabelledDataset(index, cache_bytes=cache_bytes)


def generate_scenes(source: str, *, img_size: int) -> str:
    """Write the images of "synthetic:N" to the cache folder, unless they are there, and return their folder.

    The folder is named after everything the images depend on, and appears only when complete.
    """
    count = source.removeprefix(SYNTHETIC_PREFIX)
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        raise InputError(f"source {source!r} must be synthetic:N with N a number of images above 0, as synthetic:8000")
    require(img_size >= 16, f"data.view_size ({img_size}) must be at least 16 px for generated images")
    folder = default_cache_dir() / f"scenes-v{SCENE_VERSION}-{img_size}px-{int(count)}"
    if folder.is_dir():
        return str(folder)
    remove_stale(folder.parent, folder.name)
    temporary = folder.with_name(temporary_name(folder.name))
    temporary.mkdir(parents=True)
    try:
        paint_all(partial(_write_scene, temporary, img_size), int(count))
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process finished the same images first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return str(folder)


def _write_scene(folder: Path, img_size: int, number: int) -> None:
    Image.fromarray(render_scene(CounterRng(0, "scene", number), img_size)).save(folder / f"{number:07d}.png")
