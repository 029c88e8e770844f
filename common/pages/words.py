"""Visual words as a picture: how common the commonest ones are, and patches that carry them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.pages.numbers import percent
from beit.common.pages.pictures import picture_table, sheet

WORDS, EXAMPLES, SAMPLES = 16, 10, 200
"""Words to draw, patches of each, and samples to look at, unless others are asked for."""
_CELL_PX, _MARK, _RIM = 72, (255, 255, 255), (33, 37, 41)


def words_sheet(
    pixels: Sequence[NDArray[np.uint8]],
    token_ids: NDArray[np.int64],
    *,
    patch_size: int,
    tokenizer: str,
    vocab_size: int,
    name: str,
    num_words: int = WORDS,
    num_examples: int = EXAMPLES,
) -> Image.Image:
    """Draw the commonest visual words among some samples, one row each, RGB.

    The examples of a word come from different samples.

    Args:
        pixels: One view of each sample, (height, width, 3).
        token_ids: Its words, (samples, rows, columns).
        patch_size: Pixels per side that a word stands for.
        tokenizer: Its name.
        vocab_size: Words that it has.
        name: Of the store.
        num_words: Words to draw, at most.
        num_examples: Patches of each, at most.
    """
    words, counts = np.unique(token_ids, return_counts=True)
    rows: list[list[NDArray[np.uint8] | None]] = []
    labels = []
    for rank in np.argsort(-counts, kind="stable")[:num_words].tolist():
        places = np.argwhere(token_ids == words[rank])
        firsts = places[np.unique(places[:, 0], return_index=True)[1]][:num_examples].tolist()  # one of each sample
        cells = [_cut(pixels[sample], row, column, patch_size) for sample, row, column in firsts]
        rows.append([_mean_colour(pixels, places, patch_size), *cells, *[None] * (num_examples - len(cells))])
        labels.append(f"word {words[rank]}\n{percent(counts[rank] / token_ids.size)}")
    return sheet(
        [picture_table(rows, labels=labels, titles=["colour"], cell_px=_CELL_PX)],
        heading=f"Commonest visual words of {name}",
        facts=f"{len(words)} of the {vocab_size} words of {tokenizer} stand in {len(pixels)} views of "
        f"{token_ids.shape[1]} x {token_ids.shape[2]} tokens",
        legend="Left: the word and its share of all tokens. Colour: the mean of all patches here that carry it. Right "
        "of it: such patches, framed, each from another image, with what is around them.",
    )


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
