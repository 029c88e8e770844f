"""A token store as a picture: images with their crop boxes, the views as training will see them, and their tokens.

Views are drawn by `render_view`, after its checksum has proved that they are the tokenised ones.
"""

from __future__ import annotations

import colorsys
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.errors import InputError
from beit.common.images.channels import in_colour
from beit.common.jitter import FACTOR_ONE
from beit.common.pages.fonts import fitted, font
from beit.common.pages.numbers import count
from beit.common.pages.pictures import (
    FAINT,
    INK,
    PALETTE,
    PAPER,
    beside,
    enlarged,
    ink_on,
    picture_table,
    sheet,
)
from beit.common.shards.token_store import TokenStore
from beit.common.storage.samples import spread_evenly
from beit.common.tokenizer import Tokenizer, load_store_tokenizer
from beit.common.views import render_view
from beit.tokenize.shards.crops import CropTar

logger = logging.getLogger(__name__)

_CELL_PX, _IMAGE_PX, _FRAME_PX, _TAG_PX, _TEXT_LINE_PX = 176, 432, 5, 22, 20
_NAME_TEXT_PX, _ABOUT_TEXT_PX = 14, 12
_UNKNOWN = (222, 226, 230)
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
        """Return the colour of its box and frame; later views start again."""
        return PALETTE[self.number % len(PALETTE)]


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

    One that the user names must be the right one.
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
    """Draw samples spread evenly over a store, RGB, each with its first views, `num_views` at most.

    Without a decoder, the row of decoded tokens is left out.

    Raises:
        InputError: the store has no tokens.
        BadSample: an image or its tokens are damaged.
    """
    info, name = store.info, store.location.rstrip("/").rpartition("/")[2]
    if info.tokenizer is None:
        raise InputError(f"{store.location} holds no tokens (views = 0), so there are no views to draw")
    shown = [
        _load(store, decoder, position, min(num_views, info.views))
        for position in spread_evenly(len(store), num_images).tolist()
    ]
    kind = "materialised crops" if info.is_materialized else "crops of the images"
    return sheet(
        [_block(image) for image in shown],
        heading=f"Views and visual tokens of {name}",
        facts=f"{len(store)} images, {count(info.views, 'view')} each ({kind}), {info.img_size} px; {info.grid_size} x "
        f"{info.grid_size} tokens out of {info.tokenizer.vocab_size} by {info.tokenizer.name}",
        legend="Frames and boxes of one colour and number belong together. First row: what the network sees, rendered "
        "as in training; b, c, s are factors of brightness, contrast and saturation. Second row: visual tokens, one "
        "colour per word of the vocabulary."
        + (" Third row: what the tokenizer paints from these tokens." if decoder else ""),
    )


def token_colours(token_ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Give every visual word a colour of its own, far from those of its neighbours in the vocabulary.

    Returns:
        uint8 RGB, one more axis than `token_ids`, which may have any shape.
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
    scope = info.augment.jitter_scope
    return in_colour(render_view(image, record, img_size=info.img_size, jitter_scope=scope, check_crop=True))


def _block(shown: ShownImage) -> Image.Image:
    """Draw an image with its boxes and, beside it, its views: pixels, tokens and, where there is a decoder, these."""
    rows = [
        [_framed(view.pixels, view, is_tagged=True) for view in shown.views],
        [_framed(token_colours(view.token_ids), view) for view in shown.views],
        [_framed(view.decoded, view) for view in shown.views if view.decoded is not None],
    ]
    rows = [row for row in rows if row]
    captions = [[""] * len(shown.views)] * (len(rows) - 1) + [[_settings(view.record) for view in shown.views]]
    table = picture_table(rows, captions=captions, cell_px=_CELL_PX)
    return beside([_with_boxes(shown, table.height), table])


def _framed(pixels: NDArray[np.uint8], view: ShownView, *, is_tagged: bool = False) -> NDArray[np.uint8]:
    """Bring a picture to the size of a cell, with a frame in the view's colour and, if it is tagged, its number."""
    cell = Image.new("RGB", (_CELL_PX, _CELL_PX), view.colour)
    cell.paste(enlarged(pixels, _CELL_PX - 2 * _FRAME_PX), (_FRAME_PX, _FRAME_PX))
    if is_tagged:
        _draw_number(ImageDraw.Draw(cell), view, 0, 0)
    return np.asarray(cell)


def _with_boxes(shown: ShownImage, height: int) -> Image.Image:
    """Draw the image with its boxes, and its name below."""
    paper = Image.new("RGB", (_IMAGE_PX, height), PAPER)
    draw = ImageDraw.Draw(paper)
    scale = min(_IMAGE_PX / shown.image.width, (height - 2 * _TEXT_LINE_PX) / shown.image.height)
    size = (max(1, round(shown.image.width * scale)), max(1, round(shown.image.height * scale)))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    paper.paste(shown.image.resize(size, resample), (0, 0))
    boxes = [_box(view, scale) for view in shown.views]
    for view, box in zip(shown.views, boxes, strict=True):
        draw.rectangle(box, outline=PAPER, width=_FRAME_PX)  # a light rim keeps the colour apart from the picture
        inner = (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1)
        draw.rectangle(inner, outline=view.colour, width=_FRAME_PX - 2)
    _draw_tags(draw, shown.views, boxes)
    name = fitted(shown.name, _IMAGE_PX, _NAME_TEXT_PX)
    draw.text((0, size[1] + 6), name, fill=INK, font=font(_NAME_TEXT_PX, name))
    about = f"{shown.image.width} x {shown.image.height} px"
    about += ", put together from the crops that are stored" if shown.is_collage else ""
    about += f", label {shown.label}" if shown.label else ""
    about = fitted(about, _IMAGE_PX, _ABOUT_TEXT_PX)
    draw.text((0, size[1] + 4 + _TEXT_LINE_PX), about, fill=FAINT, font=font(_ABOUT_TEXT_PX, about))
    return paper


def _box(view: ShownView, scale: float) -> tuple[int, int, int, int]:
    left, top, width, height = (int(view.record[name]) for name in ("left", "top", "w", "h"))
    scaled = [round(corner * scale) for corner in (left, top, left + width, top + height)]
    return scaled[0], scaled[1], max(scaled[0] + 1, scaled[2] - 1), max(scaled[1] + 1, scaled[3] - 1)


def _draw_tags(draw: ImageDraw.ImageDraw, views: list[ShownView], boxes: list[tuple[int, int, int, int]]) -> None:
    """Write each view's number onto the upper edge of its box, where no other number stands."""
    taken: list[tuple[int, int]] = []
    for view, (left, top, right, _) in zip(views, boxes, strict=True):
        places = [(x, top) for x in range(left, max(left + 1, right - _TAG_PX), 3)]
        free = ((x, y) for x, y in places if all(abs(x - a) > _TAG_PX or abs(y - b) > _TAG_PX for a, b in taken))
        x, y = next(free, places[0])
        taken.append((x, y))
        _draw_number(draw, view, x, y)


def _draw_number(draw: ImageDraw.ImageDraw, view: ShownView, left: int, top: int) -> None:
    draw.rectangle((left, top, left + _TAG_PX, top + _TAG_PX), fill=view.colour)
    centre = (left + _TAG_PX // 2, top + _TAG_PX // 2)
    ink = ink_on(view.colour)
    draw.text(centre, str(view.number), fill=ink, font=font(_NAME_TEXT_PX), anchor="mm")


def _settings(record: np.void) -> str:
    box = f"{record['w']} x {record['h']} px" + (", mirrored" if record["flip"] else "")
    factors = [int(record[name]) for name in ("bright", "contrast", "sat")]
    shown = "  ".join(f"{name} {factor / FACTOR_ONE:.2f}" for name, factor in zip("bcs", factors, strict=True))
    return f"{box}\n{shown}"
