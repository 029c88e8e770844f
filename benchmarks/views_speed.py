"""How many training views per second does one core supply: the reference pipeline, a token store, a materialised one?

    python benchmarks/views_speed.py --source photos/

A training view is what a loader worker does for one sample: read it, decode it, cut and colour the view, draw a mask.
The reference pipeline is BEiT's, written with Pillow: colour jitter on the full image, then the crop, then both sizes,
as normalised floats; it has no tokens yet when it is done. The contestants take turns in one thread;
processor time is counted, and of every image the quickest round, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageEnhance

from beit.benchmarks.stores import NoTokenizer, make_store, write_scenes
from beit.common.rng import CounterRng
from beit.common.shards.token_store import TokenStore
from beit.common.views import Resample
from beit.pretrain.config import DataConfig
from beit.pretrain.data import ViewTransform
from beit.pretrain.masking import MaskConfig, draw_mask
from beit.pretrain.store_dataset import StoreDataset

REFERENCE = "reference pipeline"
PATCH_SIZE = 16
_TURN = 20
"""Images in a row; with fewer, a contestant would profit from what the one before it left in the processor's cache."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@click.command()
@click.option("--source", help="Images, in any form that beit tokenize takes; generated ones if left out.")
@click.option("--images", "num_images", default=100, show_default=True, help="How many to generate.")
@click.option("--views", default=2, show_default=True, help="Views per image in the stores.")
@click.option("--img-size", default=224, show_default=True, metavar="PX", help="Side of a view.")
@click.option("--short-side", default=256, show_default=True, metavar="PX", help="Of the images of one store.")
@click.option("--quality", "qualities", default="90,95", show_default=True, help="JPEG qualities of the crops.")
@click.option("--rounds", default=7, show_default=True, help="Passes over the images.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    source: str | None,
    num_images: int,
    views: int,
    img_size: int,
    short_side: int,
    qualities: str,
    rounds: int,
    as_json: bool,
) -> None:
    """Build the stores in a temporary folder, time everything in turns and print views per second and core."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = source or write_scenes(Path(folder) / "scenes", num_images)
        shape = {"views": views, "img_size": img_size, "patch_size": PATCH_SIZE}
        plain = make_store(images, Path(folder) / "plain", **shape)
        small = make_store(images, Path(folder) / "small", **shape, short_side=short_side)
        contestants = {
            REFERENCE: ReferencePipeline(plain, img_size),
            "token store": StoreReader(plain),
            "resized by Pillow": StoreReader(plain, "bicubic"),
            f"short side {short_side}": StoreReader(small),
        }
        for quality in map(int, qualities.split(",")):
            settings = {"materialize": True, "jpeg_quality": quality}
            store = make_store(images, Path(folder) / f"crops-{quality}", **shape, **settings)
            contestants[f"materialised, quality {quality}"] = StoreReader(store)
        rates = measure(contestants, rounds)
    ratios = {name: round(rate / rates[REFERENCE], 2) for name, rate in rates.items()}
    sizes = {name: round(contestant.bytes_per_image / 1e3, 1) for name, contestant in contestants.items()}
    if as_json:
        result = {"img_size": img_size, "views_per_second_per_core": rates, "ratio": ratios, "kilobytes_read": sizes}
        click.echo(json.dumps(result))
        return
    click.echo(f"{'views per second and core':<28}{'rate':>8}{'ratio':>8}{'kB read':>10}")
    for name, rate in rates.items():
        click.echo(f"{name:<28}{rate:>8.0f}{ratios[name]:>8.2f}{sizes[name]:>10.1f}")


class StoreReader:
    """What a worker of the training reader does, for every training sample of a store."""

    def __init__(self, store: TokenStore, resample: Resample | None = None) -> None:
        info = store.info
        self._dataset = StoreDataset(store, seed=0)
        self._transform = ViewTransform(
            img_size=info.img_size,
            grid_size=info.grid_size,
            mask=MaskConfig(),
            seed=0,
            augment=info.augment,
            strict=True,
            resample=resample or DataConfig().resample(info.img_size),
        )
        self._places = [(shard, rank) for shard, size in enumerate(self._dataset.shard_sizes) for rank in range(size)]
        self.bytes_per_image = statistics.mean(
            len(self._dataset.fetch(*place, 0).image_bytes) for place in self._places
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._places)

    def __call__(self, index: int) -> None:
        """Make one training view."""
        self._transform(self._dataset.fetch(*self._places[index], 0))


class ReferencePipeline:
    """BEiT's `DataAugmentationForBEiT` with Pillow, from the same image tars."""

    def __init__(self, store: TokenStore, img_size: int) -> None:
        self._dataset = StoreDataset(store, seed=0)
        self._places = [(shard, rank) for shard, size in enumerate(self._dataset.shard_sizes) for rank in range(size)]
        self._img_size, self._token_size = img_size, img_size // PATCH_SIZE * NoTokenizer.downsampling
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        self.bytes_per_image = statistics.mean(
            len(self._dataset.fetch(*place, 0).image_bytes) for place in self._places
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._places)

    def __call__(self, index: int) -> None:
        """Make one training view: both sizes as floats, and a mask. The same one every time."""
        self._generator = np.random.default_rng(index)
        record = self._dataset.fetch(*self._places[index], 0)
        with Image.open(io.BytesIO(record.image_bytes)) as opened:
            image = self._flip(self._jitter(opened.convert("RGB")))
        box = self._box(*image.size)
        crop = image.crop(box)
        patches = crop.resize((self._img_size,) * 2, Image.Resampling.BICUBIC)
        token_view = crop.resize((self._token_size,) * 2, Image.Resampling.LANCZOS)
        (to_float(patches) - self._mean) / self._std
        0.8 * to_float(token_view) + 0.1  # DALL-E's map_pixels
        draw_mask(CounterRng(0, "mask", index), (self._img_size // PATCH_SIZE,) * 2, MaskConfig())

    def _jitter(self, image: Image.Image) -> Image.Image:
        enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        for position in self._generator.permutation(3):
            image = enhancers[position](image).enhance(self._generator.uniform(0.6, 1.4))
        return image

    def _flip(self, image: Image.Image) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self._generator.random() < 0.5 else image

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            area = self._generator.uniform(0.08, 1.0) * width * height
            aspect = math.exp(self._generator.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                left = int(self._generator.integers(0, width - w + 1))
                top = int(self._generator.integers(0, height - h + 1))
                return left, top, left + w, top + h
        return 0, 0, width, height


def to_float(image: Image.Image) -> torch.Tensor:
    """Do what torchvision's ToTensor does: (3, side, side) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def measure(contestants: dict[str, Callable[[int], None]], rounds: int) -> dict[str, float]:
    """Return views per second: every image counts with its quickest round, which is the least disturbed one."""
    count = min(len(contestant) for contestant in contestants.values())
    seconds = {name: [math.inf] * count for name in contestants}
    for _ in range(rounds):
        for start, name in itertools.product(range(0, count, _TURN), contestants):
            contestant = contestants[name]
            for index in range(start, min(count, start + _TURN)):
                started = time.process_time()
                contestant(index)
                seconds[name][index] = min(seconds[name][index], time.process_time() - started)
    return {name: round(count / sum(values), 1) for name, values in seconds.items()}


if __name__ == "__main__":
    main()
