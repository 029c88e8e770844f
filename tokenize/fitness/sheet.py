"""Which pictures a fitness report shows: the views that tokenizers keep best, middlingly and worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.tokenizer import Tokenizer
from beit.tokenize.fitness.measure import Measurement
from beit.tokenize.fitness.views import ViewSample

PICTURES_PER_GROUP = 3
GROUPS = ("Best kept", "Median", "Worst kept")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A view as one tokenizer keeps it."""

    tokenizer: int
    """Which one, by its place in the report."""
    pixels: NDArray[np.uint8]
    """(S, S, 3)."""
    psnr: float
    """dB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetRow:
    """One view and what became of it."""

    group: str
    """One of `GROUPS`."""
    name: str
    """Of the image."""
    original: NDArray[np.uint8]
    """The view at the largest side that a tokenizer had it at, (S, S, 3)."""
    pictures: list[Picture]
    """One per tokenizer that can decode."""


def reconstruction_sheet(
    tokenizers: Sequence[Tokenizer], measurements: Sequence[Measurement], sample: ViewSample
) -> list[SheetRow]:
    """Choose views by their mean PSNR over the tokenizers that can decode, and render them again.

    Returns:
        Up to `PICTURES_PER_GROUP` rows for each of `GROUPS`, no view twice; nothing if no tokenizer can decode.
    """
    decoders = [index for index, found in enumerate(measurements) if found.psnr]
    if not decoders:
        return []
    psnr = np.mean([measurements[index].psnr for index in decoders], axis=0)
    chosen = [(group, place) for group, places in choose(psnr).items() for place in places]
    positions = measurements[0].positions
    sizes = [found.fitness.view_size for found in measurements]
    views = {
        size: sample.views_at([positions[place] for _, place in chosen], view_size=size)
        for size in {max(sizes), *(sizes[index] for index in decoders)}
    }
    decoded = {index: tokenizers[index].decode(tokenizers[index].encode(views[sizes[index]])) for index in decoders}
    return [
        SheetRow(
            group=group,
            name=sample.name(positions[place]),
            original=views[max(sizes)][row],
            pictures=[
                Picture(tokenizer=index, pixels=decoded[index][row], psnr=measurements[index].psnr[place])
                for index in decoders
            ],
        )
        for row, (group, place) in enumerate(chosen)
    ]


def choose(psnr: NDArray[np.float64]) -> dict[str, list[int]]:
    """Return the places of the best (best first), median and worst (worst first) values; ties go to the earlier one."""
    falling = np.argsort(-psnr, kind="stable").tolist()
    size = min(PICTURES_PER_GROUP, max(1, len(falling) // len(GROUPS)))
    best, worst = falling[:size], falling[::-1][:size]
    rest = [place for place in falling if place not in best and place not in worst]
    start = max(0, (len(rest) - size) // 2)
    return dict(zip(GROUPS, (best, rest[start : start + size], [p for p in worst if p not in best]), strict=True))
