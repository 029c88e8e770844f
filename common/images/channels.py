"""Which bands of an image become its channels, and arrays of one channel or three beside Pillow's images of them.

A decoded image has mode "RGB" or "L". As an array it always has three axes, (H, W, 3) or (H, W, 1), so that whoever
renders, mixes or feeds it need not ask. What a model makes of pixels of other channels is `common/vit/channels.py`.

H x W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample

if TYPE_CHECKING:
    from beit.common.images.samples import Samples

_LISTED = 20
"""Names of bands that a message shows at most."""


def pick_channels(samples: Samples, channels: str | tuple[int, ...]) -> Samples:
    """Choose the bands of an image that become its channels; nothing is scaled or mixed.

    Colours stay colours under "grey": their luma is that of the 8-bit picture, as Pillow has it, and taken last.

    Args:
        samples: As the file has them.
        channels: "rgb", "grey", or numbers of bands, counted from 1; one makes a grey image, three a coloured one.
    Returns:
        Samples of kind "grey" or "rgb".
    Raises:
        BadSample: a band is not there, or an image of several bands does not say which of them are its colours (reason
            "channels").
    """
    if isinstance(channels, tuple):
        return _picked(samples, channels)
    if samples.kind != "bands":
        return samples
    if samples.array.shape[2] == 1:
        return replace(samples, kind="grey")
    example = "[4, 3, 2]" if channels == "rgb" else "[1]"
    what = "which three of them are red, green and blue" if channels == "rgb" else "which one of them is to be grey"
    option = example.strip("[]").replace(" ", "")
    raise BadSample(
        "channels",
        f"it has {_bands(samples)}; say {what}, counted from 1: --set source.channels={example} (evaluate, predict: "
        f"--channels {option})",
    )


def _picked(samples: Samples, bands: tuple[int, ...]) -> Samples:
    count = samples.array.shape[2]
    missing = [band for band in bands if not 1 <= band <= count]
    if missing:
        raise BadSample(
            "channels",
            f"source.channels {list(bands)} names band {missing[0]}, and it has {_bands(samples)}, counted from 1"
            + ("" if samples.alpha is None else "; transparency is none of them"),
        )
    array = samples.array[..., [band - 1 for band in bands]]
    names = tuple(samples.band_names[band - 1] for band in bands) if samples.band_names else ()
    return replace(samples, array=array, kind="grey" if len(bands) == 1 else "rgb", band_names=names)


def _bands(samples: Samples) -> str:
    count = samples.array.shape[2]
    names = samples.band_names[:_LISTED]
    listed = f" ({', '.join(names)}{', ...' if count > _LISTED else ''})" if names else ""
    return f"{count} band{'s' if count > 1 else ''}{listed}"


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image of mode "RGB" or "L", (H, W, 3) or (H, W, 1) uint8; they may be its own memory."""
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def image_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return the image of pixels (H, W, 3) or (H, W, 1) uint8, of mode "RGB" or "L"."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def fit_image(image: Image.Image, channels: int) -> Image.Image:
    """Return an image, "RGB" or "L", for a model that sees so many channels: of colours their luma for one.

    Grey for three stays grey; it is repeated where it costs least, see `beit.common.vit.channels.fit_channels`.
    """
    return image.convert("L") if channels == 1 and image.mode != "L" else image


def in_colour(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels (..., 3) of those of RGB or grey images, (..., 3) or (..., 1): for pictures, which are RGB."""
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Map RGB (H, W, 3) uint8 to grey (H, W, 1) uint8 exactly as Pillow's mode "L" does (ITU-R 601)."""
    return pixels_of(Image.fromarray(pixels).convert("L"))
