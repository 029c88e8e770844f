"""Which images an encoder finds alike: for some images of a source, those nearest to them, as a picture.

n images, D = embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.encoder import load_encoder
from beit.common.errors import require
from beit.common.images.channels import in_colour
from beit.common.pages.pictures import picture_table, sheet
from beit.common.storage.samples import spread_evenly
from beit.common.vit.description import read_encoder_config
from beit.common.vit.features import extract_features
from beit.finetune.attention import read_pictures

_BATCH = 64
_COLUMNS = 8
"""The image itself, and its neighbours."""
_CELL_PX = 112


class NeighbourPicture(NamedTuple):
    """What `neighbour_sheet` found and drew."""

    image: Image.Image
    neighbours: Mapping[str, Sequence[str]]
    """Names of the images nearest to each one that is shown, nearest first."""


def nearest(features: Tensor, queries: Sequence[int], count: int) -> Tensor:
    """Find the images nearest to some of them, by the cosine of the angle between their features.

    Args:
        features: (n, D) float32.
        queries: Rows of `features`.
        count: Neighbours of each, below n.

    Returns:
        Rows of `features`, (len(queries), count) int64, nearest first; an image is not its own neighbour.
    """
    unit = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    rows = torch.as_tensor(queries)
    similarity = unit[rows] @ unit.T
    similarity[torch.arange(len(rows)), rows] = -torch.inf
    return similarity.topk(count, dim=1).indices


def neighbour_sheet(encoder: Path, source: str, *, num_rows: int, num_images: int) -> NeighbourPicture:
    """Draw, for some images of a source, those that the encoder finds most like them.

    Compared are CLS and the mean of the patches, side by side, after the block that a probe found best, or else after
    the last, less their mean over all images, which says what these have in common. The mean of the patches alone says
    most of all what colours there are.

    Args:
        encoder: An encoder, a fine-tuned model, or a run.
        source: Images, in any form `beit predict` takes.
        num_rows: Images whose neighbours are shown.
        num_images: At most so many images, spread over the source, are looked at.
    """
    stored, model = read_encoder_config(encoder), load_encoder(encoder)
    block = model.config.depth - 1 if stored.best_block is None else stored.best_block
    names, pixels = read_pictures(source, model.transform, num_images)
    count = min(_COLUMNS - 1, len(names) - 1)
    require(count >= 1, f"{source} has {len(names)} image; neighbours need more")
    batches = (_batch(pixels[start : start + _BATCH]) for start in range(0, len(names), _BATCH))
    scale = stored.normalization
    found = extract_features(model, batches, device=torch.device("cpu"), normalization=scale, pooling="cls_mean")
    queries = spread_evenly(len(names), num_rows).tolist()
    rows = [
        [query, *near]
        for query, near in zip(queries, nearest(found.blocks[block], queries, count).tolist(), strict=True)
    ]
    captions = [[_caption(names[place]) for place in row] for row in rows]
    titles = ["image", "nearest", *[""] * (count - 1)]
    shown = in_colour(pixels)
    pictures = [[shown[place] for place in row] for row in rows]
    picture = sheet(
        [picture_table(pictures, titles=titles, captions=captions, cell_px=_CELL_PX)],
        heading="What the encoder finds alike",
        facts=f"{model.config.name}, features of block {block}, counted from 0; {len(names)} images",
        legend="Each row: an image and those whose features are most like its own, nearest first. No label is used.",
    )
    return NeighbourPicture(picture, {names[row[0]]: [names[place] for place in row[1:]] for row in rows})


def _batch(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return {"images": images, "labels": torch.zeros(len(images), dtype=torch.int64)}


def _caption(name: str) -> str:
    """Return the folder, which may be a class, and the file."""
    return "/".join(name.rsplit("/", 2)[-2:])
