"""What a training shows of itself: a few validation images beside their masks and what the model says of them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from beit.common.errors import BadSample
from beit.common.pages.pictures import beside, sheet
from beit.common.storage.samples import spread_evenly
from beit.finetune.evaluation.overlays import colours_of, legend
from beit.finetune.evaluation.segmentation import Scenes
from beit.finetune.masks.index import MaskedIndex
from beit.finetune.segmentation.artifact import SegmentationInfo

ROWS, _WIDTH_PX = 4, 240


def prediction_sheet(
    model: torch.nn.Module, index: MaskedIndex, info: SegmentationInfo, *, heading: str, facts: str
) -> Image.Image | None:
    """Draw a few images of `index`, spread evenly, always the same; None where none can be read.

    Every rank draws, since partitioned weights are gathered by all ranks or by none.
    """
    scenes = Scenes(model, index, info)  # type: ignore[arg-type]
    rows: list[Image.Image] = []
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
        rows.append(beside(drawn))
        seen |= {*np.unique(truth).tolist(), *np.unique(said).tolist()}
    if not rows:
        return None
    names = legend(info.classes, sorted(seen), width_px=rows[0].width)
    how = "From the left: image, mask, what the model says."
    return sheet([*rows, names], heading=heading, facts=facts, legend=how)
