"""Images to network input: the resize, crop and normalisation of evaluation and prediction, as a function of one image.

    >>> encoder = beit.load_encoder("runs/pretrain/encoder")
    >>> encoder.transform("photo.jpg").shape
    torch.Size([3, 32, 32])

Here: everything between a picture and the tensor a model takes. Not here: decoding (`common/images/`), the views of
pre-training (`common/views.py`), augmentation (`finetune/augment/augment.py`).

B = batch, S = img_size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.errors import BadSample, InputError
from beit.common.images.channels import fit_image, pixels_of
from beit.common.images.decode import as_decoded, decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.storage.paths import normalise
from beit.common.storage.place import place_of
from beit.common.vit.channels import fit_channels
from beit.common.vit.config import Normalization

TINY_IMG_SIZE_PX = 64
"""Up to here images are evaluated whole: data sets of such sizes show objects that fill the frame."""
LARGE_IMG_SIZE_PX = 384
"""From here on images are evaluated whole."""
MAX_ASPECT = 4
"""Aspect ratio above which the middle is cut out before the resize."""

ImageLike: TypeAlias = Image.Image | str | PathLike[str]
"""A Pillow image of any mode, or the path or URL of a JPEG, PNG or WebP file."""


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Turn an image into what a model takes, exactly as `beit evaluate`, `predict` and the probes do.

    Of an encoder it is `encoder.transform`, of a fine-tuned model `model.transform`. It may be sent to other processes
    and works as the `transform` of a torchvision data set.

    Args:
        img_size: Side of the model's input, S, in pixels.
        crop_pct: Share of the resized image's short side that is kept, in (0, 1].
        normalization: Mean and std per channel, of pixels scaled to [0, 1].
        decoding: How image files become pixels, and Pillow images of more than 8 bits; one of 8 bits is taken as it is.

    Example:
        >>> encoder = beit.load_encoder("runs/pretrain/encoder")
        >>> images = encoder.transform.batch(["photo.jpg", Image.open("other.png")])
        >>> images.shape, images.dtype
        (torch.Size([2, 3, 32, 32]), torch.float32)
    """

    img_size: int
    crop_pct: float
    normalization: Normalization
    decoding: Decoding = USUAL

    def __call__(self, image: ImageLike) -> Tensor:
        """Transform one image.

        It is turned as its EXIF data say, made RGB, or grey for a grey model, resized so that its short side is
        img_size / crop_pct pixels (bicubic, antialiased), cut to the central square, scaled to [0, 1], and normalised
        per channel.

        Args:
            image: A Pillow image of any mode and size, or the path or URL of a JPEG, PNG or WebP file.
        Returns:
            (3, S, S) float32, RGB, or of a grey model (1, S, S), normalised, on the CPU.
        Raises:
            TypeError: it is something else.
        """
        return self.batch([image])[0]

    def batch(self, images: Iterable[ImageLike]) -> Tensor:
        """Transform several images, as `__call__` does one; returns (B, C, S, S) float32."""
        pixels = [self.pixels(image) for image in images]
        if not pixels:
            return torch.zeros(0, len(self.normalization.mean), self.img_size, self.img_size)
        return self.normalize(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())

    def pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return what the model will see of an image, before the normalisation: (S, S, 3) uint8 RGB, or (S, S, 1)."""
        opened = fit_image(open_image(image, self.decoding), len(self.normalization.mean))
        return resize_and_center_crop(opened, self.img_size, crop_pct=self.crop_pct)

    def normalize(self, images: Tensor) -> Tensor:
        """Map pixels (B, C, S, S) uint8, RGB or grey, on any device, to network input, float32, in its channels."""
        return normalize_images(images, *self.normalization)


def open_image(image: ImageLike, decoding: Decoding = USUAL) -> Image.Image:
    """Return an RGB or grey image of 8 bits, turned as its EXIF data say: of a Pillow image, a path or a URL."""
    if not isinstance(image, (Image.Image, str, PathLike)):
        raise TypeError(
            f"an image must be a Pillow image, a path or a URL, got {type(image).__name__}; PIL.Image.fromarray makes "
            "one of an array (H, W, 3) uint8"
        )
    try:
        if isinstance(image, Image.Image):
            return as_decoded(image, decoding)
        return decode_image(place_of(normalise(str(image))).read(), decoding)
    except BadSample as error:
        name = f"an image of mode {image.mode}" if isinstance(image, Image.Image) else image
        raise InputError(f"{name} cannot be read ({error}); give another image") from None


def normalize_images(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale to [0, 1], subtract `mean`, divide by `std`, per channel.

    Args:
        images: (B, C, H, W) uint8, RGB or grey. They get the channels of `mean` first, as `fit_channels` does it.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].

    Returns:
        (B, 3, H, W) float32, or (B, 1, H, W) where `mean` is of one channel.
    """
    images = fit_channels(images, len(mean))
    # One multiply-add: (x / 255 - mean) / std = x * scale + shift.
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(1, -1, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(1, -1, 1, 1)
    return torch.addcmul(shift, images.float(), scale)


def default_crop_pct(img_size: int) -> float:
    """Return the share of the resized short side that evaluation keeps: 0.875 from 65 to 383 px, else 1.

    Source: BEiT `beit/datasets.py`. Differs: up to 64 px everything is kept. Up to 32 px the released code does so,
        too, but takes images as they are, where others than of the input's size are resized here.
    """
    return 0.875 if TINY_IMG_SIZE_PX < img_size < LARGE_IMG_SIZE_PX else 1.0


def resize_and_center_crop(image: Image.Image, img_size: int, *, crop_pct: float) -> NDArray[np.uint8]:
    """Resize the short side to img_size / crop_pct pixels (bicubic, antialiased) and cut the central square.

    Takes an RGB or grey image and a crop_pct in (0, 1], returns (img_size, img_size, 3 or 1) uint8.

    Source: BEiT `beit/datasets.py`, with torchvision's rounding. Differs: images longer than 4:1 are first cut to their
        middle, whose pixels are all that the result can show, because resizing 1 x 60 000 px would need gigabytes.
    """
    short = min(image.size)
    if max(image.size) > MAX_ASPECT * short:
        image = _center_crop(image, min(image.width, MAX_ASPECT * short), min(image.height, MAX_ASPECT * short))
    target = int(img_size / crop_pct)
    width, height = (int(target * side / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return pixels_of(_center_crop(resized, img_size, img_size)).copy()


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
