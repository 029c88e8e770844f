"""The pixels of a labelled image: random views in training, resize and centre crop otherwise.

All randomness of a training view is keyed by (seed, epoch, sample, repeat): the same sample gets the same view however
the run is spread over ranks and workers, and after any restart. Drawing and rendering are `beit.common.views`, the code
that pre-training replays; RandAugment is `rand_augment.py`, resize and crop are `common/vit/transform.py`.
Normalisation, the noise of random erasing and mixing happen on the device (`finetune/classification/step.py`). The
order of samples is `beit.common.reading.order`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.channels import fit_image, image_of, pixels_of
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.common.views import draw_view, render_view
from beit.common.vit.config import Normalization, for_channels
from beit.common.vit.transform import resize_and_center_crop
from beit.finetune.augment.rand_augment import Canvas, parse_policy, rand_augment
from beit.finetune.augment.settings import TrainAugmentConfig

_ERASE_ATTEMPTS, _ERASE_AREA = 10, (0.02, 1 / 3)
_ERASE_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTransform:
    """Turn a record into one augmented training sample. Instances are sent to the reader's workers.

    Args:
        img_size: Side of the model's input in pixels.
        augment: What views are drawn from.
        seed: Of the run.
        channels: That the model sees; colours become grey before anything else where that is 1.
        fill: RGB or grey, in [0, 1], of what rotations bring into view; the mean of the normalisation.
    """

    img_size: int
    augment: TrainAugmentConfig
    seed: int
    channels: int = 3
    fill: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, record: Record) -> dict[str, NDArray[np.generic]]:
        """Draw and render the view that this sample shows in its epoch.

        Returns:
            images: (C, img_size, img_size) uint8, C 3, or 1 of grey images. labels: () int64, the class id, -1 where
            there is none. erase_boxes (6,) int64, see `draw_erase_box`, unless augment.erase_prob is 0.
        Raises:
            BadSample: the image does not decode.
        Source: BEiT `get_started_for_image_classification.md` and timm's order of transforms. Differs: random numbers;
            up to 32 px the released code pads by 4 px and cuts a square of the input's size, where a crop of random
            size is resized here as for larger inputs.
        """
        image = fit_image(record.decode_image(), self.channels)
        rng = self._rng("augment", record)
        view = draw_view(rng, image.width, image.height, self.augment.views())
        pixels = render_view(image, view, img_size=self.img_size, resample=self.augment.interpolation)
        sample = _sample(self._rand_augment(pixels, record), record)
        if self.augment.erase_prob:
            # Streams of their own, so that switching one change off leaves the others as they were.
            sample["erase_boxes"] = draw_erase_box(self._rng("erase", record), self.img_size, self.augment.erase_prob)
        return sample

    def _rand_augment(self, pixels: NDArray[np.uint8], record: Record) -> NDArray[np.uint8]:
        policy = parse_policy(self.augment.rand_augment)
        if policy is None:
            return pixels
        fill = fill_pixel(self.fill, pixels.shape[2])
        is_bilinear = self.augment.interpolation == "bilinear"  # affine changes know no lanczos
        canvas = Canvas(fill, Image.Resampling.BILINEAR if is_bilinear else Image.Resampling.BICUBIC)
        rng = self._rng("rand augment", record)
        return pixels_of(rand_augment(image_of(pixels), policy, rng, canvas))

    def _rng(self, purpose: str, record: Record) -> CounterRng:
        # The first view draws as views did before samples could repeat.
        more = (record.repeat,) if record.repeat else ()
        return CounterRng(self.seed, purpose, record.epoch, record.sample_id, *more)


def fill_pixel(fill: tuple[float, ...], channels: int) -> tuple[int, ...]:
    """Return the pixel of a colour, RGB or grey in [0, 1], in an image of so many channels."""
    return tuple(min(255, round(255 * value)) for value in for_channels(Normalization(fill, fill), channels).mean)


def draw_erase_box(rng: CounterRng, img_size: int, probability: float) -> NDArray[np.int64]:
    """Draw what is erased of one image.

    Returns:
        (6,) int64: top, left, height and width in pixels, and two 32-bit keys of the noise; zeros erase nothing.
    Source: Random Erasing (Zhong et al. 2017) as in `timm/data/random_erasing.py`, count 1. Differs: random
        numbers, and the noise is drawn on the device.
    """
    if rng.uniform() >= probability:
        return np.zeros(6, np.int64)
    for _ in range(_ERASE_ATTEMPTS):
        area = rng.uniform(*_ERASE_AREA) * img_size**2
        aspect = math.exp(rng.uniform(*_ERASE_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < height < img_size and 0 < width < img_size:
            top, left = rng.integers(0, img_size - height), rng.integers(0, img_size - width)
            keys = (rng.integers(0, 0xFFFFFFFF), rng.integers(0, 0xFFFFFFFF))
            return np.array([top, left, height, width, *keys], np.int64)
    return np.zeros(6, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTransform:
    """Turn a record into one sample of evaluation or prediction, without randomness.

    Args:
        img_size: Side of the model's input in pixels.
        crop_pct: Share of the resized image's short side that is kept.
        channels: That the model sees, as of `TrainTransform`.
    """

    img_size: int
    crop_pct: float
    channels: int = 3

    def __call__(self, record: Record) -> dict[str, NDArray[np.generic]]:
        """Resize and crop.

        Returns:
            images: (C, img_size, img_size) uint8, C 3, or 1 of grey images. labels: () int64, the class id, -1 where
            there is none.
        Raises:
            BadSample: the image does not decode.
        """
        image = fit_image(record.decode_image(), self.channels)
        pixels = resize_and_center_crop(image, self.img_size, crop_pct=self.crop_pct)
        return _sample(pixels, record)


def _sample(pixels: NDArray[np.uint8], record: Record) -> dict[str, NDArray[np.generic]]:
    label = -1 if record.label is None else record.label
    return {"images": np.ascontiguousarray(pixels.transpose(2, 0, 1)), "labels": np.asarray(label, np.int64)}
