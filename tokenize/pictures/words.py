"""What the visual words of a store look like: how common the commonest ones are, and patches that carry them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.common.errors import require
from beit.common.images import decode_image
from beit.common.shards.token_store import TokenStore
from beit.common.storage.samples import spread
from beit.common.views import render_view
from beit.tokenize.pictures.views import token_colours

_CELL_PX, _GAP_PX, _MARGIN_PX, _LEFT_PX, _HEAD_PX, _FOOT_PX = 72, 6, 24, 190, 84, 48
_PAPER, _INK, _FAINT, _MARK = (255, 255, 255), (33, 37, 41), (110, 117, 125), (255, 255, 255)


class Patch(NamedTuple):
    """Where a word stands."""

    sample: int
    row: int
    column: int


class DrawnViews(NamedTuple):
    """One view of each of some samples."""

    pixels: list[NDArray[np.uint8]]
    """(img_size, img_size, 3) each."""
    token_ids: NDArray[np.int64]
    """(samples, g, g)."""


def words_sheet(store: TokenStore, *, num_words: int, num_examples: int, num_samples: int) -> Image.Image:
    """Draw the commonest visual words among samples spread evenly over a store, one row each.

    Args:
        store: With tokens.
        num_words: Rows.
        num_examples: Patches of each word, each from another sample.
        num_samples: Samples to look at, one view of each.
    Returns:
        RGB image.
    Raises:
        InputError: the store has no tokens.
        BadSample: an image or its tokens are damaged.
    """
    require(
        store.info.tokenizer is not None, f"{store.location} holds no tokens (views = 0), so there are none to draw"
    )
    views = _load(store, num_samples)
    words, counts = np.unique(views.token_ids, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:num_words]
    width = 2 * _MARGIN_PX + _LEFT_PX + num_examples * (_CELL_PX + _GAP_PX)
    sheet = Image.new("RGB", (width, _HEAD_PX + len(order) * (_CELL_PX + _GAP_PX) + _FOOT_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_texts(draw, sheet, store, views, len(words))
    for place, rank in enumerate(order.tolist()):
        top = _HEAD_PX + place * (_CELL_PX + _GAP_PX)
        _draw_word(draw, int(words[rank]), counts[rank] / views.token_ids.size, top)
        for number, patch in enumerate(_examples(views, int(words[rank]), num_examples)):
            cell = _cut(views.pixels[patch.sample], patch, store.info.patch_size)
            left = _MARGIN_PX + _LEFT_PX + number * (_CELL_PX + _GAP_PX)
            sheet.paste(cell, (left, top))
    return sheet


def _load(store: TokenStore, count: int) -> DrawnViews:
    pixels, token_ids, info = [], [], store.info
    for number, position in enumerate(spread(len(store), count).tolist()):
        record = store.read_record(*store.locate(position), number % info.views)
        assert record.view is not None and record.token_ids is not None
        image = decode_image(record.image_bytes)
        scope = info.augment.jitter_scope
        pixels.append(render_view(image, record.view, img_size=info.img_size, jitter_scope=scope, check_crop=True))
        token_ids.append(record.token_ids.astype(np.int64))
    return DrawnViews(pixels, np.stack(token_ids))


def _examples(views: DrawnViews, word: int, count: int) -> list[Patch]:
    """Return places of a word, the first of each sample."""
    found: dict[int, Patch] = {}
    for sample, row, column in np.argwhere(views.token_ids == word).tolist():
        found.setdefault(sample, Patch(sample, row, column))
    return list(found.values())[:count]


def _cut(pixels: NDArray[np.uint8], patch: Patch, patch_size: int) -> Image.Image:
    """Cut a patch with half a patch of its surroundings, and frame it."""
    margin = patch_size // 2
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    top, left, side = patch.row * patch_size, patch.column * patch_size, patch_size + 2 * margin
    cell = Image.fromarray(padded[top : top + side, left : left + side])
    cell = cell.resize((_CELL_PX, _CELL_PX), Image.Resampling.NEAREST)
    inner = round(_CELL_PX * margin / side)
    ImageDraw.Draw(cell).rectangle((inner, inner, _CELL_PX - inner - 1, _CELL_PX - inner - 1), outline=_MARK)
    return cell


def _draw_texts(
    draw: ImageDraw.ImageDraw, sheet: Image.Image, store: TokenStore, views: DrawnViews, num_used: int
) -> None:
    info = store.info
    assert info.tokenizer is not None
    name = store.location.rstrip("/").rpartition("/")[2]
    draw.text((_MARGIN_PX, 18), f"Commonest visual words of {name}", fill=_INK, font=_font(24))
    facts = (
        f"{num_used} of the {info.tokenizer.vocab_size} words of {info.tokenizer.name} stand in "
        f"{len(views.pixels)} views of {info.grid_size} x {info.grid_size} tokens"
    )
    draw.text((_MARGIN_PX, 50), facts, fill=_FAINT, font=_font(15))
    text = "Share of all tokens; framed patches that carry the word, each from another image, with what is around them."
    draw.text((_MARGIN_PX, sheet.height - _FOOT_PX + 10), text, fill=_FAINT, font=_font(14))


def _draw_word(draw: ImageDraw.ImageDraw, word: int, share: float, top: int) -> None:
    colour = tuple(token_colours(np.array([word]))[0].tolist())
    draw.rectangle((_MARGIN_PX, top, _MARGIN_PX + _CELL_PX - 1, top + _CELL_PX - 1), fill=colour)
    draw.text((_MARGIN_PX + _CELL_PX + 12, top + 16), f"word {word}", fill=_INK, font=_font(15))
    draw.text((_MARGIN_PX + _CELL_PX + 12, top + 38), f"{share:.2%}", fill=_FAINT, font=_font(14))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
