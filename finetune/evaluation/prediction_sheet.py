"""What a training shows of itself: a few validation images beside their masks and what the model says of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample
from beit.common.pages.pictures import on_paper, picture_table, sheet
from beit.common.storage.samples import spread_evenly
from beit.finetune.data import image_name
from beit.finetune.evaluation.overlays import colours_of, legend
from beit.finetune.evaluation.segmentation import Scenes
from beit.finetune.masks.index import MaskedIndex
from beit.finetune.segmentation.artifact import SegmentationInfo

ROWS, _WIDTH_PX = 4, 240
_TITLES = ("image", "truth", "prediction")


def prediction_sheet(
    model: torch.nn.Module, index: MaskedIndex, info: SegmentationInfo, *, heading: str, facts: str
) -> Image.Image | None:
    """Draw a few images of `index`, spread evenly, always the same; None where none can be read.

    Every rank draws, since partitioned weights are gathered by all ranks or by none.
    """
    scenes = Scenes(model, index, info)  # type: ignore[arg-type]
    rows: list[list[NDArray[np.uint8]]] = []
    captions: list[list[str]] = []
    seen: set[int] = set()
    for position in spread_evenly(len(index), ROWS).tolist():
        try:
            pixels, truth, said = scenes.look(position)
        except BadSample:
            continue
        size = _WIDTH_PX, max(1, round(_WIDTH_PX * truth.shape[0] / truth.shape[1]))
        drawn = [Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)]
        drawn += [
            Image.fromarray(colours_of(ids, info.classes)).resize(size, Image.Resampling.NEAREST)
            for ids in (truth, said)
        ]
        rows.append([np.asarray(picture) for picture in drawn])
        captions.append([image_name(index.images, position).rpartition("/")[2], "", ""])
        seen |= {*np.unique(truth).tolist(), *np.unique(said).tolist()}
    if not rows:
        return None
    # As high as the tallest needs, so that streets lie close together.
    high_px = max(row[0].shape[0] for row in rows)
    framed = [[on_paper(pixels, high_px / _WIDTH_PX) for pixels in row] for row in rows]
    table = picture_table(framed, titles=_TITLES, captions=captions, cell_px=_WIDTH_PX, cell_height_px=high_px)
    return sheet([table, legend(info.classes, sorted(seen), width_px=table.width)], heading=heading, facts=facts)
