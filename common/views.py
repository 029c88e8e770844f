"""Views: which crop of an image is seen, how it is flipped and coloured, and the one function that renders it.

Tokenisation draws a view once, stores it as integers and renders it small for the tokenizer; training renders the same
record large. Both call `render_view`: a second implementation would pair pixels with tokens of slightly different
pixels. The byte layout of a stored view is documented in docs/store-format.md. Decoding is in `images/`.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from beit.common.config import above, at_least, checked, within
from beit.common.errors import BadSample, require
from beit.common.images.channels import image_of, in_colour, luma, pixels_of
from beit.common.images.decode import decode_image
from beit.common.images.decoding import GREY, MAX_SIDE_PX, RGB, USUAL, Decoding
from beit.common.images.jpeg import decode_jpeg_unchecked
from beit.common.jitter import FACTOR_ONE, JITTER_ORDERS, MAX_FACTOR, jitter_image
from beit.common.rng import CounterRng

VIEW_DTYPE = np.dtype(
    [
        ("left", "<u2"),
        ("top", "<u2"),
        ("w", "<u2"),
        ("h", "<u2"),
        ("flip", "u1"),
        ("jitter_order", "u1"),
        ("bright", "<u2"),
        ("contrast", "<u2"),
        ("sat", "<u2"),
        ("crc_crop", "<u4"),
        ("luma", "u1", (16,)),
    ]
)
"""One stored view, 36 bytes: box in source pixels, flip, jitter in units of 1/2**14, and two checks of the pixels."""

JitterScope = Literal["crop", "image"]
Resample = Literal["bicubic", "lanczos", "bilinear", "bicubic-torch"]
"""Antialiased filters. Pillow's, but for "bicubic-torch": faster from 96 px on, as near to exact arithmetic, and other
processors than x86 may round it differently."""

TOKEN_RESAMPLE: Resample = "lanczos"
"""Filter of the tokenizer's view; BEiT's second_interpolation."""

_CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop, which BEiT follows
_LUMA_CELLS = 4
_CANARY_PATH = Path(__file__).with_name("canary.jpg")


@checked("augment")
class AugmentConfig:
    """Distribution that views are drawn from. The defaults are those of BEiT's pre-training."""

    scale: Annotated[tuple[float, float], within("(0, 1]")] = (0.08, 1.0)
    """Smallest and largest crop area, as a fraction of the image area."""
    ratio: Annotated[tuple[float, float], above(0)] = (3 / 4, 4 / 3)
    """Smallest and largest crop aspect ratio, width / height."""
    min_crop_px: Annotated[int, at_least(1)] = 1
    """Smallest crop side drawn, in source pixels; smaller draws are tried again."""
    flip: Annotated[float, within("[0, 1]")] = 0.5
    """Probability of a horizontal flip."""
    brightness: Annotated[float, within("[0, 1]")] = 0.4
    """Brightness factors are drawn from 1 +- this; 0 leaves brightness alone."""
    contrast: Annotated[float, within("[0, 1]")] = 0.4
    """Contrast factors are drawn from 1 +- this; 0 leaves contrast alone."""
    saturation: Annotated[float, within("[0, 1]")] = 0.4
    """Saturation factors are drawn from 1 +- this; 0 leaves saturation alone."""
    jitter_scope: JitterScope = "crop"
    """Whose mean grey the contrast uses: the crop's (fast) or the whole image's (the paper's order, slower)."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            require(low <= high, f"augment.{name} ({low}, {high}) must satisfy low <= high")


def draw_view(rng: CounterRng, width: int, height: int, augment: AugmentConfig) -> np.void:
    """Draw one view of an image (in px, after EXIF orientation): crop box, flip and colour jitter, all as integers.

    Returns:
        One `VIEW_DTYPE` record; `crc_crop` and `luma`, which need pixels, are 0.
    Raises:
        ValueError: a side is outside [1, 65535].
    Source: BEiT `beit/datasets.py` and `beit/transforms.py`. Differs: random numbers; jitter factors are rounded to
        1/2**14.
    """
    if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
        raise ValueError(f"image size ({width} x {height}) must lie in [1, {MAX_SIDE_PX}] px per side")
    left, top, crop_width, crop_height = _draw_box(rng, width, height, augment)
    flip = rng.uniform() < augment.flip
    order = rng.integers(0, len(JITTER_ORDERS) - 1)
    strengths = (augment.brightness, augment.contrast, augment.saturation)
    # Drawn even when unused, so that switching one jitter off leaves the others as they were.
    bright, contrast, sat = (int(rng.uniform(1.0 - s, 1.0 + s) * FACTOR_ONE + 0.5) for s in strengths)
    record = (left, top, crop_width, crop_height, flip, order, bright, contrast, sat, 0, np.zeros(16, np.uint8))
    view: np.void = np.array([record], dtype=VIEW_DTYPE)[0]
    return view


def draw_stored_view(
    store_seed: int, key: str, view_k: int, *, width: int, height: int, augment: AugmentConfig
) -> np.void:
    """Draw view k of a sample as a store of this seed holds it; see `draw_view`.

    Views do not depend on how many there are.
    """
    return draw_view(CounterRng(store_seed, "view", key, view_k), width, height, augment)


def _draw_box(rng: CounterRng, width: int, height: int, augment: AugmentConfig) -> tuple[int, int, int, int]:
    log_ratio = (math.log(augment.ratio[0]), math.log(augment.ratio[1]))
    for _ in range(_CROP_ATTEMPTS):
        area = rng.uniform(*augment.scale) * (width * height)
        aspect = math.exp(rng.uniform(*log_ratio))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if augment.min_crop_px <= crop_width <= width and augment.min_crop_px <= crop_height <= height:
            left = rng.integers(0, width - crop_width)
            top = rng.integers(0, height - crop_height)
            return left, top, crop_width, crop_height
    return _central_box(width, height, augment.ratio)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        crop_width = min(width, max(1, round(height * ratio[1])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def render_view(
    image: Image.Image,
    view: np.void,
    *,
    img_size: int = 224,
    resample: Resample = "bicubic",
    jitter_scope: JitterScope = "crop",
    check_crop: bool = False,
) -> NDArray[np.uint8]:
    """Render a view: crop, resize, colour jitter, flip. With Pillow's filters the result is exact for one build of it.

    The token view is the same call with the tokenizer's input size and `resample="lanczos"`: both sizes are resized
    from the same crop, neither from the other.

    Args:
        image: Decoded RGB or grey image, of any size in px, see `decode_image`.
        view: One `VIEW_DTYPE` record, its box in pixels of the image: `store[i]["views"][k]`.
        img_size: Side of the result in px.
        resample: Filter, antialiased.
        jitter_scope: Whose mean grey the contrast uses, see `AugmentConfig`. With "image" the jitter comes before the
            resize.
        check_crop: First compare the cropped pixels with the record's `crc_crop`, so that a view is never shown with
            the tokens of other pixels.
    Returns:
        Pixels (img_size, img_size, 3) uint8 in [0, 255], RGB, or of a grey image (img_size, img_size, 1); writable.
        A grey image gives what the same grey in three channels would give in each; only its checksum is another.
    Raises:
        BadSample: the record does not fit the image (reason "view-mismatch"), or the check fails ("crc-mismatch").
        ValueError: the image is neither RGB nor grey.
    Source: BEiT `beit/datasets.py`. Differs: jitter follows the crop and the resize unless `jitter_scope` is "image",
        since it is cheaper there (what that changes: docs/results.md); the flip comes last, which mirrors the box and
        nothing else; "bicubic-torch" is another filter than Pillow's.

    Example:
        >>> sample = beit.open_store("store/")[0]
        >>> pixels = beit.render_view(sample["image"], sample["views"][2], img_size=64, check_crop=True)
        >>> pixels.shape, pixels.dtype
        ((64, 64, 3), dtype('uint8'))
    """
    crop = _crop(image, view)
    if check_crop:
        pixels = pixels_of(crop).copy()
        if zlib.crc32(pixels.data) != view["crc_crop"]:
            raise BadSample("crc-mismatch", "the cropped pixels are not those that were tokenised")
        if _is_shown_as_it_is(pixels, view, img_size):
            return pixels
    return _finish(crop, view, img_size, resample, mean_from=image if jitter_scope == "image" else None)


def replay_view(
    data: bytes,
    view: np.void,
    *,
    img_size: int = 224,
    resample: Resample = "bicubic",
    jitter_scope: JitterScope = "crop",
    decoding: Decoding = USUAL,
) -> NDArray[np.uint8]:
    """Render a stored view of an encoded image: of exactly the pixels that were tokenised, or an error.

    What `render_view(decode_image(data, decoding), view, check_crop=True)` returns and raises, sooner. The checksum
    proves the pixels of the crop whoever decoded them, so the quicker decoder goes first where it can be right, and
    Pillow where that does not do.
    """
    needs_whole_image = jitter_scope == "image" and not _is_jitter_neutral(view)
    pixels = (
        None
        if needs_whole_image or not decoding.leaves_jpeg
        else _proved_crop(data, view, is_grey=decoding.num_channels == GREY)
    )
    if pixels is None:
        whole = decode_image(data, decoding)
        return render_view(
            whole, view, img_size=img_size, resample=resample, jitter_scope=jitter_scope, check_crop=True
        )
    if _is_shown_as_it_is(pixels, view, img_size):
        return pixels
    if resample == "bicubic-torch" and pixels.shape[:2] != (img_size, img_size):
        pixels = _resize_with_torch(pixels, img_size)
    return _finish(image_of(pixels), view, img_size, resample)


def _proved_crop(data: bytes, view: np.void, *, is_grey: bool) -> NDArray[np.uint8] | None:
    left, top, width, height = (int(view[name]) for name in ("left", "top", "w", "h"))
    if not width or not height:
        return None
    pixels = decode_jpeg_unchecked(data, width=left + width, height=top + height, keeps_grey=is_grey)
    if pixels is None:
        return None
    pixels = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    if is_grey and pixels.shape[2] == RGB:
        pixels = luma(pixels).copy()  # not what a decoder calls grey, which rounds otherwise
    return pixels if zlib.crc32(pixels.data) == view["crc_crop"] else None


def _is_shown_as_it_is(crop: NDArray[np.uint8], view: np.void, img_size: int) -> bool:
    """Whether nothing is left to do, as with a materialised crop."""
    return crop.shape[:2] == (img_size, img_size) and not view["flip"] and _is_jitter_neutral(view)


def _is_jitter_neutral(view: np.void) -> bool:
    return all(view[name] == FACTOR_ONE for name in ("bright", "contrast", "sat"))


def _finish(
    crop: Image.Image, view: np.void, img_size: int, resample: Resample, *, mean_from: Image.Image | None = None
) -> NDArray[np.uint8]:
    """Resize, jitter and mirror a crop; with `mean_from`, the whole image, jitter first."""
    size = (img_size, img_size)
    factors = {name: int(view[name]) for name in ("bright", "contrast", "sat")}
    order = int(view["jitter_order"])
    if order >= len(JITTER_ORDERS) or max(factors.values()) > MAX_FACTOR:
        raise BadSample("view-mismatch", f"jitter order {order}, factors {factors}: not a view this version can render")
    if mean_from is not None:
        rendered = _resize(jitter_image(crop, factors, order, mean_from=mean_from), size, resample)
    else:
        rendered = jitter_image(_resize(crop, size, resample), factors, order)
    if view["flip"]:
        # In Pillow, not in NumPy, where copying a mirrored (H, W, 3) view is eight times slower.
        rendered = rendered.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pixels_of(rendered).copy()


def _resize(image: Image.Image, size: tuple[int, int], resample: Resample) -> Image.Image:
    if image.size == size:
        return image
    if resample == "bicubic-torch":
        return image_of(_resize_with_torch(pixels_of(image).copy(), size[0]))
    return image.resize(size, Image.Resampling[resample.upper()])


def _resize_with_torch(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    import torch  # here, because those who only draw and tokenise views need not wait for it

    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.empty((1, pixels.shape[2], side, side), dtype=torch.uint8, memory_format=torch.channels_last)
    # What `interpolate(batch, (side, side), mode="bicubic", antialias=True)` calls, which cannot be told the layout.
    torch.ops.aten._upsample_bicubic2d_aa.out(batch, [side, side], False, None, None, out=resized)
    return resized[0].permute(1, 2, 0).numpy()


def _crop(image: Image.Image, view: np.void) -> Image.Image:
    if image.mode not in ("RGB", "L"):
        raise ValueError(
            f"image mode ({image.mode}) must be RGB or L; decode with beit.common.images.decode.decode_image"
        )
    left, top, width, height = (int(view[name]) for name in ("left", "top", "w", "h"))
    # Pillow would fill what lies outside the image with black instead of refusing.
    if width < 1 or height < 1 or left + width > image.width or top + height > image.height:
        raise BadSample(
            "view-mismatch", f"box {width}x{height}+{left}+{top} in an image of {image.width}x{image.height}"
        )
    box = (left, top, left + width, top + height)
    return image if (width, height) == image.size else image.crop(box)  # nobody writes into it


def crop_crc(image: Image.Image, view: np.void) -> int:
    """Return the crc32 of the cropped source pixels (RGB or grey, row by row), taken before any resize.

    Raises:
        BadSample: the box does not fit the image (reason "view-mismatch").
        ValueError: the image is neither RGB nor grey.
    """
    return zlib.crc32(_crop(image, view).tobytes())


def mean_luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean luma of a 4 x 4 raster over a rendered view: the coarse check that survives another Pillow build.

    Takes (height, width, 3 or 1) uint8, both sides at least 4 px, returns (16,) uint8, row by row.
    """
    height, width = pixels.shape[:2]
    rows = np.arange(_LUMA_CELLS + 1) * height // _LUMA_CELLS
    columns = np.arange(_LUMA_CELLS + 1) * width // _LUMA_CELLS
    sums = np.add.reduceat(pixels, rows[:-1], axis=0, dtype=np.int64)
    sums = in_colour(np.add.reduceat(sums, columns[:-1], axis=1))  # (4, 4, 3)
    num_pixels = np.outer(np.diff(rows), np.diff(columns)) << 16
    weighted = sums @ np.array([19595, 38470, 7471])  # ITU-R 601 luma in units of 1/2**16, as Pillow's mode "L"
    mean: NDArray[np.uint8] = ((weighted + num_pixels // 2) // num_pixels).astype(np.uint8)
    return mean.reshape(-1)


def compute_canary() -> str:
    """Hash a bundled JPEG pushed through decoding and every branch of `render_view`.

    Two machines with equal canaries render equal views, bit for bit. The image is odd-sized, rotated by EXIF and has
    subsampled chroma, so that a different decoder or resampler cannot go unnoticed.
    """
    image = decode_image(_CANARY_PATH.read_bytes())
    hasher = hashlib.sha256()
    for order in range(len(JITTER_ORDERS)):
        left, top = 3 * order, 5 * order
        box = (left, top, image.width - 2 * left - 1, image.height - 3 * left)
        jitter = (order, 9_830 + 2_500 * order, 22_900 - 1_900 * order, 12_000 + 1_700 * order)
        view = np.array([(*box, order % 2, *jitter, 0, np.zeros(16, np.uint8))], dtype=VIEW_DTYPE)[0]
        token_view = render_view(image, view, img_size=112, resample="lanczos")
        hasher.update(crop_crc(image, view).to_bytes(4, "little"))
        hasher.update(token_view.tobytes())
        hasher.update(mean_luma(token_view).tobytes())
        hasher.update(render_view(image, view).tobytes())
        hasher.update(render_view(image, view, img_size=96, jitter_scope="image").tobytes())
    return hasher.hexdigest()


def replay_versions() -> dict[str, str]:
    """Return the versions of the libraries whose pixels a stored view depends on."""
    return {
        "pillow": str(features.version_module("pil")),
        "libjpeg_turbo": str(features.version_feature("libjpeg_turbo")),
        "webp": str(features.version_module("webp")),
        "numpy": np.__version__,
    }
