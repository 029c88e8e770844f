"""How many views this machine tokenises in a second: a few images, tokenised as `beit tokenize` would."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from beit.common.rng import CounterRng
from beit.common.shards.schema import IMAGES_DIR, HeldOut
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize
from beit.tokenize.synthetic import generator_of

_PAINTED, _PAINTED_SIZE, _PAINTED_QUALITY = 12, (500, 375), 90
"""Images that stand for photographs where there are none: as large as those of ImageNet, and about as many bytes."""
_FIRST_VIEWS = 2
"""Of each image, to find out how many may be tried, and to pay for what is done once."""
_MOST_COPIES = 200
"""Of each image, where few views of few images would be done before the clock tells of anything but the beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeRate:
    """What was measured."""

    views_per_second: float
    """Of one rank, with what decodes and crops beside it, and packing."""
    image_bytes: float
    """That an image takes of the store, over all its views; 0 where none were packed."""


def measure_tokenizing(
    config: TokenizeConfig, images: Sequence[bytes], folder: Path, *, seconds: float
) -> TokenizeRate:
    """Tokenise some images into `folder`, twice: a little, then as many views, and copies, as take so many seconds.

    Args:
        config: Settings; of the views at most as many as the time allows are made.
        images: Some of those that are meant, encoded; without any, generated ones stand in.
        folder: Gets the images and the stores; `folder`/store stays, with at least one view.
        seconds: To spend.
    """
    images = images or [_paint(number) for number in range(_PAINTED)]
    few = replace(config, views=min(config.views, _FIRST_VIEWS), bad_sample_budget=0.9, held_out=HeldOut(minimum=1))
    first = run_tokenize(few, _written(images, folder / "few"), folder / "first")
    affordable = math.floor(seconds * first.images_per_second * few.views / max(1, first.num_samples))  # of each image
    views = min(config.views, max(few.views, affordable))
    copies = min(_MOST_COPIES, max(1, affordable // max(1, views)))
    source = _written(images, folder / "images", copies)
    began = time.monotonic()
    summary = run_tokenize(replace(few, views=views), source, folder / "store")
    took = time.monotonic() - began
    stored = sum(file.stat().st_size for file in (folder / "store" / IMAGES_DIR).glob("*.tar"))
    per_image = stored / max(1, summary.num_samples)
    return TokenizeRate(
        views_per_second=summary.num_samples * views / took,
        image_bytes=per_image * config.views / views if config.materialize else per_image,
    )


def _written(images: Sequence[bytes], folder: Path, copies: int = 1) -> str:
    """Write images into a new folder, each so many times, and return its name."""
    folder.mkdir()
    for copy in range(copies):
        for number, data in enumerate(images):
            (folder / f"{copy:04d}-{number:04d}.jpg").write_bytes(data)  # what an image is, its bytes say
    return str(folder)


def _paint(number: int) -> bytes:
    """Return a JPEG with as much to decode as a photograph has: soft shapes under fine noise."""
    generator = generator_of(CounterRng(0, "stand-in", number))
    soft = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(_PAINTED_SIZE)
    noise = generator.integers(-12, 13, (*_PAINTED_SIZE[::-1], 1))
    file = io.BytesIO()
    pixels = np.clip(np.asarray(soft) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=_PAINTED_QUALITY)
    return file.getvalue()
