"""What a training shows of itself: a few validation images beside their masks and what the model says of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample
from beit.common.pages.pictures import PAPER, picture_table, sheet
from beit.common.storage.samples import spread_evenly
from beit.finetune.evaluation.overlays import colours_of, legend
from beit.finetune.evaluation.segmentation import Scenes
from beit.finetune.masks.index import MaskedIndex
from beit.finetune.segmentation.artifact import SegmentationInfo

_ROWS, _CELL_PX = 4, 240


def prediction_sheet(
    model: torch.nn.Module, index: MaskedIndex, info: SegmentationInfo, *, heading: str, facts: str
) -> Image.Image | None:
    """Draw a few images of `index`, spread evenly, always the same; None where none can be read.

    Every rank draws, since partitioned weights are gathered by all ranks or by none.
    """
    scenes = Scenes(model, index, info)  # type: ignore[arg-type]
    rows, seen = [], set()
    for position in spread_evenly(len(index), _ROWS).tolist():
        try:
            pixels, truth, said = scenes.look(position)
        except BadSample:
            continue
        rows.append([squared(one) for one in (pixels, *(colours_of(ids, info.classes) for ids in (truth, said)))])
        seen |= {*truth.ravel().tolist(), *said.ravel().tolist()}
    if not rows:
        return None
    table = picture_table(rows, titles=("image", "truth", "prediction"), cell_px=_CELL_PX)
    return sheet([table, legend(info.classes, sorted(seen), width_px=table.width)], heading=heading, facts=facts)


def squared(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a picture (height, width, 3) into the middle of a square of paper, so that a square cell shows its shape."""
    height, width, _ = pixels.shape
    side = max(height, width)
    page = np.empty((side, side, 3), np.uint8)
    page[:] = PAPER
    top, left = (side - height) // 2, (side - width) // 2
    page[top : top + height, left : left + width] = pixels
    return page
