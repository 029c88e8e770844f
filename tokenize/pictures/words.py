"""What the visual words of a store look like: how common the commonest ones are, and patches that carry them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.errors import InputError
from beit.common.pages.numbers import percent
from beit.common.pages.pictures import picture_table, sheet
from beit.common.shards.token_store import TokenStore
from beit.common.storage.samples import spread_evenly
from beit.common.views import render_view

_CELL_PX, _MARK, _RIM = 72, (255, 255, 255), (33, 37, 41)


def words_sheet(store: TokenStore, *, num_words: int, num_examples: int, num_samples: int) -> Image.Image:
    """Draw the commonest visual words among samples spread evenly over a store, one row each, RGB.

    Of each sample one view is looked at; the examples of a word come from different samples.

    Raises:
        InputError: the store has no tokens.
        BadSample: an image or its tokens are damaged.
    """
    info, name = store.info, store.location.rstrip("/").rpartition("/")[2]
    if info.tokenizer is None:
        raise InputError(f"{store.location} holds no tokens (views = 0), so there are none to draw")
    pixels, token_ids = _load(store, num_samples)
    words, counts = np.unique(token_ids, return_counts=True)
    rows: list[list[NDArray[np.uint8] | None]] = []
    labels = []
    for rank in np.argsort(-counts, kind="stable")[:num_words].tolist():
        places = np.argwhere(token_ids == words[rank])
        firsts = places[np.unique(places[:, 0], return_index=True)[1]][:num_examples].tolist()  # one of each sample
        cells = [_cut(pixels[sample], row, column, info.patch_size) for sample, row, column in firsts]
        rows.append([_mean_colour(pixels, places, info.patch_size), *cells, *[None] * (num_examples - len(cells))])
        labels.append(f"word {words[rank]}\n{percent(counts[rank] / token_ids.size)}")
    return sheet(
        [picture_table(rows, labels=labels, titles=["colour"], cell_px=_CELL_PX)],
        heading=f"Commonest visual words of {name}",
        facts=f"{len(words)} of the {info.tokenizer.vocab_size} words of {info.tokenizer.name} stand in "
        f"{len(pixels)} views of {info.grid_size} x {info.grid_size} tokens",
        legend="Left: the word and its share of all tokens. Colour: the mean of all patches here that carry it. Right "
        "of it: such patches, framed, each from another image, with what is around them.",
    )


def _load(store: TokenStore, count: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    """Return one view of each of some samples: pixels (img_size, img_size, 3), and tokens (samples, g, g)."""
    pixels, token_ids, info = [], [], store.info
    for number, position in enumerate(spread_evenly(len(store), count).tolist()):
        record = store.read_record(*store.locate(position), number % info.views)
        assert record.view is not None and record.token_ids is not None
        image = record.decode_image()
        scope = info.augment.jitter_scope
        pixels.append(render_view(image, record.view, img_size=info.img_size, jitter_scope=scope, check_crop=True))
        token_ids.append(record.token_ids.astype(np.int64))
    return pixels, np.stack(token_ids)


def _mean_colour(pixels: Sequence[NDArray[np.uint8]], places: NDArray[np.int64], patch_size: int) -> NDArray[np.uint8]:
    """Return the mean colour of the patches at `places` (n, 3), each sample, row and column; (1, 1, 3)."""
    means = [
        pixels[sample][row * patch_size :, column * patch_size :][:patch_size, :patch_size].mean((0, 1))
        for sample, row, column in places.tolist()
    ]
    return np.asarray(np.mean(means, axis=0).round(), np.uint8).reshape(1, 1, 3)


def _cut(pixels: NDArray[np.uint8], row: int, column: int, patch_size: int) -> NDArray[np.uint8]:
    """Cut a patch with half a patch of its surroundings, and frame it."""
    margin = patch_size // 2
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    top, left, side = row * patch_size, column * patch_size, patch_size + 2 * margin
    cell = Image.fromarray(padded[top : top + side, left : left + side])
    cell = cell.resize((_CELL_PX, _CELL_PX), Image.Resampling.NEAREST)
    inner = round(_CELL_PX * margin / side)
    draw = ImageDraw.Draw(cell)
    for margin_px, colour in ((1, _RIM), (0, _MARK)):  # seen on light patches and on dark ones
        first, last = inner - margin_px, _CELL_PX - inner - 1 + margin_px
        draw.rectangle((first, first, last, last), outline=colour)
    return np.asarray(cell)
