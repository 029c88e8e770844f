"""What a model sees of an image, as the image processor of Hugging Face transformers is told it; and where they differ.

Both resize by Pillow's antialiased bicubic filter to the same size, on a machine without torchvision. Where the margin
that the crop leaves is odd, ours rounds to even, as torchvision does, and transformers down: for some sizes its crop
lies one pixel further left or up.

S = img_size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.images.channels import pixels_of
from beit.common.images.decoding import GREY
from beit.common.vit.description import EncoderConfig
from beit.common.vit.transform import default_crop_pct, normalize_images, resize_and_center_crop
from beit.finetune.weights.export.source import ExportSource

FILE = "preprocessor_config.json"
PHOTO_SIZES = ((640, 480), (480, 640), (500, 333), (375, 500), (1024, 683))
"""Width and height of the photos that are compared; usual ones."""


def processor_settings(source: ExportSource) -> dict[str, Any]:
    """Return what the processor's file holds."""
    side = source.config.architecture.img_size
    mean, std = source.config.normalization
    settings: dict[str, Any] = {
        "do_convert_rgb": not is_grey(source),  # whose users hand it images that are grey
        "do_resize": True,
        "resample": int(Image.Resampling.BICUBIC),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if source.what == "segmenter":  # all of the image, as in the released folders; only this class makes maps of logits
        return settings | {
            "image_processor_type": "BeitImageProcessor",
            "size": {"height": side, "width": side},
            "do_center_crop": False,
            "do_reduce_labels": False,
        }
    # Not BeitImageProcessor, which cannot resize to a short side in version 4.
    return settings | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": resized_side(source.config)},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def is_grey(source: ExportSource) -> bool:
    """Whether the model sees one channel."""
    return source.config.architecture.in_chans == GREY


def resized_side(config: EncoderConfig) -> int:
    """Return the short side, in pixels, that images have before the crop."""
    return int(config.architecture.img_size / _crop_pct(config))


def _crop_pct(config: EncoderConfig) -> float:
    return default_crop_pct(config.architecture.img_size) if config.crop_pct is None else config.crop_pct


def photos(*, grey: bool = False) -> list[Image.Image]:
    """Paint photos of `PHOTO_SIZES`: smooth, with edges and noise, the same ones every time; of mode "L" if `grey`."""
    generator = np.random.default_rng(0)
    painted = []
    for width, height in PHOTO_SIZES:
        coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int64)
        smooth[height // 3 : height // 2, width // 4 : width // 2] = 255 - smooth[height // 4, width // 4]
        noisy = smooth + generator.integers(-20, 21, smooth.shape)
        painted.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return [photo.convert("L") for photo in painted] if grey else painted


def expected_pixels(source: ExportSource) -> Tensor:
    """Return what the processor is to make of `photos`, by our own resize: (5, C, S, S) float32."""
    pixels = np.stack([_pixels(source, photo) for photo in photos(grey=is_grey(source))])
    return normalize_images(torch.from_numpy(pixels).permute(0, 3, 1, 2), *source.config.normalization)


def _pixels(source: ExportSource, photo: Image.Image) -> NDArray[np.uint8]:
    side, short = source.config.architecture.img_size, resized_side(source.config)
    if source.what == "segmenter":
        return pixels_of(photo.resize((side, side), Image.Resampling.BICUBIC))
    if not is_shifted(photo.size, short, side):
        return resize_and_center_crop(photo, side, crop_pct=_crop_pct(source.config))
    width, height = (int(short * length / min(photo.size)) for length in photo.size)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    return pixels_of(photo.resize((width, height), Image.Resampling.BICUBIC).crop(box))


def is_shifted(size: tuple[int, int], short: int, side: int) -> bool:
    """Tell whether the crop of transformers lies one pixel further left or up than ours, for a photo of a size."""
    margins = (int(short * length / min(size)) - side for length in size)
    return any(round(margin / 2) != margin // 2 for margin in margins)


def num_shifted(source: ExportSource) -> int:
    """Count the photos whose crop lies elsewhere; a segmenter's images are not cropped."""
    if source.what == "segmenter":
        return 0
    short, side = resized_side(source.config), source.config.architecture.img_size
    return sum(is_shifted(size, short, side) for size in PHOTO_SIZES)
