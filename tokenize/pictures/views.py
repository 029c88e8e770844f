"""A token store as a picture: images with their crop boxes, the views as training will see them, and their tokens.

Views are drawn by `render_view`, after its checksum has proved that they are the tokenised ones.
"""

from __future__ import annotations

import colorsys
import logging
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.common.errors import InputError, require
from beit.common.jitter import FACTOR_ONE
from beit.common.shards.token_store import TokenStore
from beit.common.storage.samples import spread
from beit.common.tokenizer import Tokenizer, load_store_tokenizer
from beit.common.views import render_view
from beit.tokenize.shards.crops import CropTar

logger = logging.getLogger(__name__)

VIEW_COLOURS = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (86, 180, 233),
    (165, 150, 20),
    (120, 94, 240),
)
"""Of boxes and frames: Okabe and Ito's palette, which colour-blind readers can tell apart; later views start again."""

_CELL_PX, _IMAGE_PX, _GAP_PX, _FRAME_PX, _MARGIN_PX = 176, 432, 14, 5, 24
_TAG_PX = 22
_HEAD_PX, _CAPTION_PX, _LINE_PX = 76, 40, 20
_PAPER, _INK, _FAINT, _UNKNOWN = (255, 255, 255), (33, 37, 41), (110, 117, 125), (222, 226, 230)
_GOLDEN_ANGLE = 0.381966


@dataclass(frozen=True, slots=True)
class ShownView:
    """One view and what belongs to it."""

    number: int
    """k."""
    record: np.void
    """`VIEW_DTYPE`, in pixels of the image; `pixels` show this, also where the stored record is that of a crop."""
    pixels: NDArray[np.uint8]
    """(img_size, img_size, 3)."""
    token_ids: NDArray[np.uint16]
    """(g, g)."""
    decoded: NDArray[np.uint8] | None
    """Pixels that the tokens stand for."""

    @property
    def colour(self) -> tuple[int, int, int]:
        """Return the colour of its box and frame."""
        return VIEW_COLOURS[self.number % len(VIEW_COLOURS)]


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One image with its views."""

    name: str
    label: str
    image: Image.Image
    """In a materialised store, put together from the crops."""
    is_collage: bool
    """True there."""
    views: list[ShownView]


def load_decoder(store: TokenStore, name: str | None) -> Tokenizer | None:
    """Load the tokenizer of a store, or return None, and say why, if it cannot be had or cannot decode.

    Args:
        store: Opened.
        name: What the user names instead; then it must be the right one.
    """
    info = store.info.tokenizer
    if info is None:
        raise InputError(f"{store.location} holds no tokens (views = 0), so there are no views to draw")
    try:
        tokenizer = load_store_tokenizer(info, given=name)
    except InputError as error:
        if name is not None:
            raise
        logger.warning("tokens are drawn, but not decoded: %s", error)
        return None
    return tokenizer if tokenizer.can_decode else None


def views_sheet(store: TokenStore, decoder: Tokenizer | None, *, num_images: int, num_views: int) -> Image.Image:
    """Draw samples spread evenly over a store, each with its first views.

    Args:
        store: With tokens.
        decoder: Its tokenizer; None leaves the row of decoded tokens out.
        num_images: Samples to draw.
        num_views: Views of each, at most.
    Returns:
        RGB image.
    Raises:
        InputError: the store has no tokens.
        BadSample: an image or its tokens are damaged.
    """
    require(store.info.views > 0, f"{store.location} holds no tokens (views = 0), so there are no views to draw")
    num_views = min(num_views, store.info.views)
    shown = [_load(store, decoder, position, num_views) for position in spread(len(store), num_images).tolist()]
    num_rows = 3 if decoder else 2
    block = num_rows * (_CELL_PX + _GAP_PX) + _CAPTION_PX
    width = 2 * _MARGIN_PX + _IMAGE_PX + len(shown[0].views) * (_CELL_PX + _GAP_PX)
    foot = _foot_lines(width, decoder is not None)
    foot_top = _HEAD_PX + len(shown) * (block + _GAP_PX) + 6
    sheet = Image.new("RGB", (width, foot_top + len(foot) * _LINE_PX + _MARGIN_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_head(draw, store)
    for row, image in enumerate(shown):
        top = _HEAD_PX + row * (block + _GAP_PX)
        _draw_image(sheet, image, top, block - _CAPTION_PX - _GAP_PX)
        for column, view in enumerate(image.views):
            left = _MARGIN_PX + _IMAGE_PX + _GAP_PX + column * (_CELL_PX + _GAP_PX)
            _draw_view(sheet, view, left, top)
    for line, text in enumerate(foot):
        draw.text((_MARGIN_PX, foot_top + line * _LINE_PX), text, fill=_FAINT, font=_font(14))
    return sheet


def token_colours(token_ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Give every visual word a colour of its own, far from those of its neighbours in the vocabulary.

    Args:
        token_ids: Any shape.
    Returns:
        uint8 RGB, one more axis.
    """
    words, places = np.unique(token_ids, return_inverse=True)
    colours = [
        colorsys.hls_to_rgb(word * _GOLDEN_ANGLE % 1.0, 0.35 + 0.1 * (word % 5), 0.45 + 0.15 * (word % 3))
        for word in words.tolist()
    ]
    table = np.round(255 * np.array(colours)).astype(np.uint8)
    return table[places].reshape(*token_ids.shape, 3)


def _load(store: TokenStore, decoder: Tokenizer | None, index: int, num_views: int) -> ShownImage:
    sample, info = store[index], store.info
    if info.is_materialized:
        images = sample["crops"]
        size, drawn = CropTar(store.image_location(store.locate(index)[0]), info.views).origin(sample["key"])
        image = _collage(size, images, drawn)
    else:
        image, drawn = sample["image"], sample["views"]
        images = [image] * num_views
    token_ids = sample["token_ids"][:num_views]
    decoded = decoder.decode(token_ids.astype(np.int64)) if decoder else [None] * num_views
    views = [
        ShownView(k, drawn[k], _render(store, images[k], sample["views"][k]), token_ids[k], decoded[k])
        for k in range(num_views)
    ]
    label = sample["label"]
    if label is not None and info.class_names is not None:
        label = info.class_names[label]
    return ShownImage(sample["key"], "" if label is None else str(label), image, info.is_materialized, views)


def _collage(size: tuple[int, int], crops: list[Image.Image], views: np.ndarray[Any, np.dtype[np.void]]) -> Image.Image:
    """Put crops back where they were cut from, the largest at the bottom; what no crop shows stays grey."""
    collage = Image.new("RGB", size, _UNKNOWN)
    areas = views["w"].astype(np.int64) * views["h"]
    for k in np.argsort(-areas, kind="stable"):
        crop = crops[k].transpose(Image.Transpose.FLIP_LEFT_RIGHT) if views["flip"][k] else crops[k]
        width, height = int(views["w"][k]), int(views["h"][k])
        collage.paste(crop.resize((width, height)), (int(views["left"][k]), int(views["top"][k])))
    return collage


def _render(store: TokenStore, image: Image.Image, record: np.void) -> NDArray[np.uint8]:
    info = store.info
    return render_view(image, record, img_size=info.img_size, jitter_scope=info.augment.jitter_scope, check_crop=True)


def _draw_head(draw: ImageDraw.ImageDraw, store: TokenStore) -> None:
    info = store.info
    assert info.tokenizer is not None
    name = store.location.rstrip("/").rpartition("/")[2]
    draw.text((_MARGIN_PX, 18), f"Views and visual tokens of {name}", fill=_INK, font=_font(24))
    kind = "materialised crops" if info.is_materialized else "crops of the images"
    facts = (
        f"{len(store)} images, {info.views} views each ({kind}), {info.img_size} px; {info.grid_size} x "
        f"{info.grid_size} tokens out of {info.tokenizer.vocab_size} by {info.tokenizer.name}"
    )
    draw.text((_MARGIN_PX, 48), facts, fill=_FAINT, font=_font(15))


def _draw_image(sheet: Image.Image, shown: ShownImage, top: int, height: int) -> None:
    """Draw the image with its boxes, and its name below."""
    draw, origin = ImageDraw.Draw(sheet), (_MARGIN_PX, top)
    scale = min(_IMAGE_PX / shown.image.width, height / shown.image.height)
    size = (max(1, round(shown.image.width * scale)), max(1, round(shown.image.height * scale)))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    sheet.paste(shown.image.resize(size, resample), origin)
    for view in shown.views:
        _draw_box(draw, view, origin, scale)
    _draw_tags(draw, shown.views, origin, scale)
    caption_top = top + size[1] + 8
    draw.text((_MARGIN_PX, caption_top), _shorten(shown.name, 46), fill=_INK, font=_font(15))
    draw.text((_MARGIN_PX, caption_top + 20), _describe(shown), fill=_FAINT, font=_font(13))


def _describe(shown: ShownImage) -> str:
    size = f"{shown.image.width} x {shown.image.height} px"
    size += ", put together from the crops that are stored" if shown.is_collage else ""
    return size + (f", label {shown.label}" if shown.label else "")


def _box(view: ShownView, origin: tuple[int, int], scale: float) -> tuple[float, float, float, float]:
    left, top, width, height = (int(view.record[name]) for name in ("left", "top", "w", "h"))
    corners = (left, top, left + width, top + height)
    scaled = [round(value * scale) + origin[axis % 2] for axis, value in enumerate(corners)]
    return scaled[0], scaled[1], max(scaled[0] + 1, scaled[2] - 1), max(scaled[1] + 1, scaled[3] - 1)


def _draw_box(draw: ImageDraw.ImageDraw, view: ShownView, origin: tuple[int, int], scale: float) -> None:
    box = _box(view, origin, scale)
    draw.rectangle(box, outline=_PAPER, width=_FRAME_PX)  # a light rim keeps the colour apart from the picture
    draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=view.colour, width=_FRAME_PX - 2)


def _draw_tags(draw: ImageDraw.ImageDraw, views: list[ShownView], origin: tuple[int, int], scale: float) -> None:
    """Write each view's number onto the upper edge of its box, where no other number stands."""
    taken: list[tuple[float, float]] = []
    for view in views:
        left, top, right, _ = _box(view, origin, scale)
        places = [(x, top) for x in range(round(left), max(round(left) + 1, round(right) - _TAG_PX), 3)]
        free = ((x, y) for x, y in places if all(abs(x - a) > _TAG_PX or abs(y - b) > _TAG_PX for a, b in taken))
        x, y = next(free, places[0])
        taken.append((x, y))
        _draw_number(draw, view, x, y)


def _draw_number(draw: ImageDraw.ImageDraw, view: ShownView, left: float, top: float) -> None:
    draw.rectangle((left, top, left + _TAG_PX, top + _TAG_PX), fill=view.colour)
    centre = (left + _TAG_PX // 2, top + _TAG_PX // 2)
    draw.text(centre, str(view.number), fill=_PAPER, font=_font(15), anchor="mm")


def _draw_view(sheet: Image.Image, view: ShownView, left: int, top: int) -> None:
    """Draw one column: pixels, tokens and decoded tokens, framed in the view's colour."""
    draw = ImageDraw.Draw(sheet)
    for row, pixels in enumerate(_pictures(view)):
        y = top + row * (_CELL_PX + _GAP_PX)
        inner = _CELL_PX - 2 * _FRAME_PX
        draw.rectangle((left, y, left + _CELL_PX - 1, y + _CELL_PX - 1), fill=view.colour)
        resample = Image.Resampling.LANCZOS if pixels.shape[0] > inner else Image.Resampling.NEAREST
        sheet.paste(Image.fromarray(pixels).resize((inner, inner), resample), (left + _FRAME_PX, y + _FRAME_PX))
        if row == 0:
            _draw_number(draw, view, left, y)
    below = top + len(list(_pictures(view))) * (_CELL_PX + _GAP_PX) - _GAP_PX + 6
    for line, text in enumerate(_settings(view.record)):
        draw.text((left, below + 16 * line), text, fill=_FAINT, font=_font(12))


def _pictures(view: ShownView) -> Iterator[NDArray[np.uint8]]:
    yield view.pixels
    yield token_colours(view.token_ids)
    if view.decoded is not None:
        yield view.decoded


def _settings(record: np.void) -> tuple[str, str]:
    box = f"{record['w']} x {record['h']} px" + (", mirrored" if record["flip"] else "")
    factors = [int(record[name]) for name in ("bright", "contrast", "sat")]
    return box, "  ".join(f"{name} {factor / FACTOR_ONE:.2f}" for name, factor in zip("bcs", factors, strict=True))


def _foot_lines(width: int, has_decoded: bool) -> list[str]:
    """Return the legend, wrapped to a sheet of `width` px."""
    legend = (
        "Frames and boxes of one colour and number belong together. First row: what the network sees, rendered as in "
        "training; b, c, s are factors of brightness, contrast and saturation. Second row: visual tokens, one colour "
        "per word of the vocabulary."
        + (" Third row: what the tokenizer paints from these tokens." if has_decoded else "")
    )
    per_letter = _font(14).getlength(legend) / len(legend)
    return textwrap.wrap(legend, int(0.95 * (width - 2 * _MARGIN_PX) / per_letter))  # 0.95: lines of wide letters


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
