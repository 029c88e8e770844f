"""Examples of what a source holds: some images of each format, and pairs that look alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, require
from beit.common.images.decode import decode_image
from beit.common.pages.numbers import count
from beit.common.pages.pictures import on_paper, picture_table, sheet
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.few import draw_listed
from beit.common.storage.samples import spread_evenly
from beit.tokenize.survey.document import Survey
from beit.tokenize.survey.looking import Look, shown_as

_COLUMNS, _PAIRS = 6, 6
_CELL_PX = 160


def survey_sheet(found: Survey, looks: Sequence[Look], settings: SourceConfig) -> Image.Image:
    """Draw examples of every format, and of pairs that look alike.

    Args:
        found: What is known of the source.
        looks: The images that were looked at.
        settings: Which images are read, and how.
    Raises:
        InputError: none of the images can be shown.
    """
    usable = [look for look in looks if look.problem is None and look.facts is not None]
    require(bool(usable), f"{found.source} has no image that could be drawn; leave --out out")
    by_format: dict[str, list[Look]] = {}
    for look in usable:
        assert look.facts is not None
        by_format.setdefault(look.facts.format, []).append(look)
    names, rows = list(by_format), []
    for format_name in names:
        of_format = by_format[format_name]
        rows.append([of_format[place] for place in spread_evenly(len(of_format), _COLUMNS)])
    drawn = [[_picture(look, settings) for look in row] for row in rows]
    bodies = [
        picture_table(
            [[_pixels(picture) for picture in row] for row in drawn],
            labels=[f"{name}\n{count(len(by_format[name]), 'image')}" for name in names],
            captions=[
                [_caption(look, picture) for look, picture in zip(*both, strict=True)]
                for both in zip(rows, drawn, strict=True)
            ],
            cell_px=_CELL_PX,
        )
    ]
    if found.near_duplicates is not None and found.near_duplicates.pairs:
        bodies.append(_pairs(found, {look.name: look for look in usable}, settings))
    return sheet(
        bodies,
        heading=found.source,
        facts=f"{count(found.num_images, 'image')}, of which the headers of {count(found.num_looked_at)} were read.",
        legend="Images as tokenising reads them, spread over what was looked at; below, where there are any, such that "
        "look alike, and how many of the 64 bits of their perceptual hashes differ. An empty place is an image with a "
        "good header that cannot be decoded, for the reason below it.",
    )


def _pairs(found: Survey, by_name: dict[str, Look], settings: SourceConfig) -> Image.Image:
    assert found.near_duplicates is not None
    shown, seen = [], set[str]()
    for pair in found.near_duplicates.pairs:  # of a group of many, one pair
        if not seen & set(pair[:2]):
            shown.append(pair)
        seen |= set(pair[:2])
    shown = shown[:_PAIRS]
    return picture_table(
        [
            [_pixels(_picture(by_name[first], settings)), _pixels(_picture(by_name[second], settings))]
            for first, second, _ in shown
        ],
        labels=[f"{bits} bits differ" if bits != 1 else "1 bit differs" for _, _, bits in shown],
        captions=[[_caption(by_name[first]), _caption(by_name[second])] for first, second, _ in shown],
        cell_px=_CELL_PX,
    )


def _caption(look: Look, picture: NDArray[np.uint8] | BadSample | None = None) -> str:
    assert look.facts is not None
    below = f"cannot be used: {picture.reason}" if isinstance(picture, BadSample) else ""
    return f"{look.ref.path.rsplit('/', 1)[-1]}\n{below or f'{look.facts.width} x {look.facts.height}'}"


def _pixels(picture: NDArray[np.uint8] | BadSample) -> NDArray[np.uint8] | None:
    return None if isinstance(picture, BadSample) else picture


def _picture(look: Look, settings: SourceConfig) -> NDArray[np.uint8] | BadSample:
    """Return the pixels of an image on square paper, or why it cannot be decoded."""
    for few in draw_listed([look.shard], [[look.ref]], 1):
        try:
            image = decode_image(few.read(), shown_as(settings))
        except BadSample as error:
            return error
        image.thumbnail((2 * _CELL_PX, 2 * _CELL_PX))
        return on_paper(np.asarray(image), 1.0)
    return BadSample("unreadable", "gone since it was listed")
