"""What a segmentation trains on: random crops of images and their masks, the same for the same seed, epoch and sample.

Drawing is keyed as in `finetune/augment/augment.py`, with a stream for every kind of change, so that switching one off
leaves the others as they were. Normalisation happens on the device (`step.py`); masks are read by
`finetune/masks/decode.py`.

H, W = sides of an image in pixels, S = side of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.channels import fit_image, pixels_of
from beit.common.rng import CounterRng
from beit.common.storage.samples import Record
from beit.finetune.augment.augment import fill_pixel
from beit.finetune.masks.classes import IGNORED
from beit.finetune.masks.decode import MaskDecoder
from beit.finetune.segmentation.config import SceneAugmentConfig

Box = tuple[int, int, int, int]
"""Left, top, right and bottom."""

_CROP_ATTEMPTS = 10
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18.0
_HUE_STEPS, _PUBLISHED_HUE_STEPS = 256, 180
"""Into which Pillow cuts the circle of hues, and OpenCV, in whose steps the published range is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneTransform:
    """Turn a record with a mask into one augmented training sample. Instances are sent to the reader's workers.

    Args:
        img_size: S, the side of the model's input in pixels.
        augment: What crops are drawn from.
        decoder: Turns encoded masks into class ids.
        seed: Of the run.
        channels: That the model sees; colours become grey before anything else where that is 1.
        fill: RGB or grey, in [0, 1], of what lies outside the image; the mean of the normalisation.
    """

    img_size: int
    augment: SceneAugmentConfig
    decoder: MaskDecoder
    seed: int
    channels: int = 3
    fill: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __call__(self, record: Record) -> dict[str, NDArray[np.generic]]:
        """Draw and render the crop that this sample shows in its epoch.

        Returns:
            images: (C, S, S) uint8, C 3, or 1 of grey images. masks: (S, S) uint8, class ids or `IGNORED`.
        Raises:
            BadSample: image or mask does not decode, or they do not fit each other.
        Source: mmsegmentation 0.11 (`Resize`, `RandomCrop`, `RandomFlip`, `PhotoMetricDistortion`, `Pad`), as BEiT
            trains with it. Differs: random numbers; images are shrunk with antialiasing; the long side of an image has
            no limit of its own.
        """
        assert record.mask_bytes is not None
        image = fit_image(record.decode_image(), self.channels)
        mask = self.decoder.decode(record.mask_bytes, size=image.size)
        size = self._draw_size(image.size, self._rng("scale", record))
        columns, rows = (nearest_positions(*sides) for sides in zip(image.size, size, strict=True))
        box, ids = self._draw_box(mask, rows, columns, self._rng("crop", record))
        shown = resize_part(image, size, box)
        if self.augment.photometric:
            shown = distort(shown, self._rng("photometric", record))
        pixels = pixels_of(shown)
        if self._rng("flip", record).uniform() < self.augment.flip:
            pixels, ids = pixels[:, ::-1], ids[:, ::-1]
        return self._padded(pixels, ids)

    def _draw_size(self, size: tuple[int, int], rng: CounterRng) -> tuple[int, int]:
        """Draw the width and height that an image of this width and height is resized to before it is cut."""
        factor = rng.uniform(*self.augment.scale)
        if self.augment.short_side is not None:
            factor *= self.augment.short_side / min(size)
        width, height = (max(1, int(side * factor + 0.5)) for side in size)
        return width, height

    def _draw_box(
        self, mask: NDArray[np.uint8], rows: NDArray[np.int32], columns: NDArray[np.int32], rng: CounterRng
    ) -> tuple[Box, NDArray[np.uint8]]:
        """Draw where a mask is cut that is resized by `rows` and `columns`, and return what is there, at most S x S.

        A crop is drawn again, up to ten times, where one class has too large a share of its labelled pixels.
        """
        height, width = (min(self.img_size, len(positions)) for positions in (rows, columns))
        for attempt in range(1 + _CROP_ATTEMPTS):
            top, left = (rng.integers(0, len(all_) - cut) for all_, cut in ((rows, height), (columns, width)))
            ids = mask.take(rows[top : top + height], 0).take(columns[left : left + width], 1)
            if attempt == _CROP_ATTEMPTS or self._is_varied(ids):
                break
        return (left, top, left + width, top + height), ids

    def _is_varied(self, ids: NDArray[np.uint8]) -> bool:
        """Whether a crop shows more than one class, and none of them nearly everywhere."""
        limit = self.augment.max_class_share
        if limit >= 1:
            return True
        counts = np.bincount(ids.ravel(), minlength=256)[:IGNORED]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < limit * counts.sum())

    def _padded(self, pixels: NDArray[np.uint8], ids: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
        """Lay a crop into the upper left corner of S x S pixels: of the mean colour, and of no class."""
        height, width = ids.shape
        channels = pixels.shape[2]
        images = np.empty((channels, self.img_size, self.img_size), np.uint8)
        masks = np.full((self.img_size, self.img_size), IGNORED, np.uint8)
        if ids.shape != masks.shape:
            images[:] = np.array(fill_pixel(self.fill, channels), np.uint8)[:, None, None]
        images[:, :height, :width] = pixels.transpose(2, 0, 1)
        masks[:height, :width] = ids
        return {"images": images, "masks": masks}

    def _rng(self, purpose: str, record: Record) -> CounterRng:
        return CounterRng(self.seed, f"scene {purpose}", record.epoch, record.sample_id)


def nearest_positions(old: int, new: int) -> NDArray[np.int32]:
    """Return which of `old` pixels each of `new` shows, int32 (new,), as Pillow's nearest neighbour has it.

    Pillow itself is asked, so that a mask that is cut first is, to the pixel, the one that is resized first.
    """
    line = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    positions: NDArray[np.int32] = np.asarray(line.resize((new, 1), Image.Resampling.NEAREST))[0]
    return positions


def resize_part(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Return what `box` shows of an image resized to `size`, antialiased, without resizing the rest.

    Some pixels differ by rounding, 1 or 2 of 255, from those cut out of the whole: Pillow keeps the corners of a box in
    single precision, and chooses itself whether rows or columns come first.
    """
    across, down = image.width / size[0], image.height / size[1]
    left, top, right, bottom = box
    source = (left * across, top * down, min(image.width, right * across), min(image.height, bottom * down))
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)


def distort(image: Image.Image, rng: CounterRng) -> Image.Image:
    """Change brightness, contrast, saturation and hue of an image at random, each of them half the time.

    Grey images have no saturation and no hue; both are drawn all the same.

    Source: mmsegmentation 0.11, `PhotoMetricDistortion`: the order, the ranges and the rounding. Differs: random
        numbers; hues have Pillow's 256 steps, not OpenCV's 180; saturation and hue change in one pass.
    """
    # All is drawn, used or not, so that the numbers of one change do not depend on the others.
    is_on = [rng.uniform() < 0.5 for _ in range(4)]
    is_contrast_first = rng.uniform() < 0.5
    shift = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS) if is_on[0] else 0.0
    contrast = rng.uniform(*_CONTRAST) if is_on[1] else 1.0
    saturation = rng.uniform(*_SATURATION) if is_on[2] else 1.0
    hue = round(rng.uniform(-_HUE, _HUE) * _HUE_STEPS / _PUBLISHED_HUE_STEPS) if is_on[3] else 0
    image = _scaled(image, offset=shift)
    if is_contrast_first:
        image = _scaled(image, factor=contrast)
    if image.mode != "L" and (saturation != 1 or hue):
        hues = [(value + hue) % _HUE_STEPS for value in range(_HUE_STEPS)]
        tables = [*hues, *_table(saturation, 0.0), *range(256)]
        image = image.convert("HSV").point(tables).convert("RGB")
    return image if is_contrast_first else _scaled(image, factor=contrast)


def _scaled(image: Image.Image, *, factor: float = 1.0, offset: float = 0.0) -> Image.Image:
    return image if (factor, offset) == (1, 0) else image.point(len(image.getbands()) * _table(factor, offset))


def _table(factor: float, offset: float) -> list[int]:
    """Return what becomes of each of the 256 values of a byte; cut, not rounded, as published."""
    return [int(min(255.0, max(0.0, value * factor + offset))) for value in range(256)]
