"""Where an encoder looks: attention maps of chosen patches, how far each head reaches, and both as a picture.

B images, H heads, L blocks, N patches, S = 1 + N positions with CLS first.

Source: mean attention distance as in ViT (A. Dosovitskiy et al., 2021), appendix D.7. Differs: attention to CLS, which
has no place, is left out, and the rest is scaled to sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beit.common.encoder import load_encoder
from beit.common.errors import BadSample, InputError, require
from beit.common.pages.attention import chosen_points, framed, overlaid, place_of, points_sheet
from beit.common.pages.charts import dot_chart
from beit.common.pages.pictures import enlarged, picture_table, sheet
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.config import SourceConfig
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import build_index
from beit.common.storage.samples import spread_evenly
from beit.common.vit.transform import ImageTransform
from beit.common.vit.vit import VisionTransformer
from beit.finetune.data import image_name

_MANY_HEADS, _LARGE_CELL_PX, _SMALL_CELL_PX = 6, 136, 100


def parse_query(text: str, grid_size: tuple[int, int]) -> int:
    """Read whose attention is shown, "ROW,COLUMN" of a patch or "cls"; returns its position in the sequence."""
    if text.lower() == "cls":
        return 0
    numbers = text.split(",")
    if len(numbers) != 2 or not all(number.strip().isdecimal() for number in numbers):
        raise InputError(f"--query ({text}) must be ROW,COLUMN of a patch, counted from 0, or cls")
    row, column = map(int, numbers)
    require(
        row < grid_size[0] and column < grid_size[1],
        f"--query ({text}) is outside the encoder's grid of {grid_size[0]} x {grid_size[1]} patches",
    )
    return 1 + row * grid_size[1] + column


def attention_distances(model: VisionTransformer, images: Tensor) -> NDArray[np.float64]:
    """Measure how far every head looks at normalised images (B, 3, img_size, img_size).

    Returns:
        (L, H): mean distance in pixels between a patch and what it attends to, over patches and images.
    """
    config = model.config
    distances = patch_distances(config.grid_size).to(images.device) * config.patch_size
    rows = []
    for block in range(config.depth):
        weights = model.attention_weights(images, block)[:, :, 1:, 1:]  # (B, H, N, N)
        weights = weights / weights.sum(-1, keepdim=True)
        rows.append((weights * distances).sum(-1).mean((0, 2)).cpu())
    return torch.stack(rows).double().numpy()


def patch_distances(grid_size: tuple[int, int]) -> Tensor:
    """Return the distance between the centres of any two patches, in patches, (N, N) float32."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid_size), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


class AttentionPicture(NamedTuple):
    """What `attention_sheet` found and drew."""

    image: Image.Image
    distances: NDArray[np.float64]
    """(L, H), in pixels."""
    block: int
    """Whose maps are shown."""


def attention_sheet(
    encoder: Path,
    source: str | LabelledIndex,
    *,
    num_images: int,
    block: int | None,
    queries: Sequence[str],
    is_mean: bool = False,
) -> AttentionPicture:
    """Draw, for some images and patches, where every head of a block looks, and how far the heads of all blocks do.

    Args:
        encoder: An encoder, a fine-tuned model, or a run.
        source: Images, in any form `beit predict` takes.
        num_images: At most this many, spread over the source.
        block: Counted from 0; None takes the one that a probe found best, or else the last.
        queries: "ROW,COLUMN" or "cls"; none takes the patch in the middle, or `chosen_points`.
        is_mean: Draw the mean of the heads only, and no chart.
    """
    model = load_encoder(encoder)
    config = model.config
    if block is None:
        block = config.depth - 1 if model.best_block is None else model.best_block
    require(0 <= block < config.depth, f"--block ({block}) must be in [0, {config.depth - 1}]")
    middle = chosen_points(config.grid_size)[1]
    asked = [parse_query(text, config.grid_size) for text in queries]
    asked = asked or (chosen_points(config.grid_size) if is_mean else [middle])
    names, pixels = read_pictures(source, model.transform, num_images)
    images = model.transform.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        weights = model.attention_weights(images, block)
        distances = attention_distances(model, images)
    facts = f"{config.name}, {config.depth} blocks of {config.num_heads} heads, counted from 0; {len(names)} images"
    if is_mean:
        maps = weights.numpy()
        picture = points_sheet(names, pixels, maps, asked, config.grid_size, block=block, facts=facts)
        return AttentionPicture(picture, distances, block)
    table = _maps(names, pixels, weights, asked, config.grid_size)
    uniform = float(patch_distances(config.grid_size).mean()) * config.patch_size
    chart = dot_chart(
        distances,
        title="mean attention distance in pixels",
        x_name="block",
        size_px=(min(table.width, 900), 280),
        reference=(uniform, "everywhere alike"),
    )
    picture = sheet(
        [table, chart],
        heading=f"Attention of block {block}",
        facts=facts,
        legend="Bright is much attention from the framed patch, relative to the brightest place of the same map; "
        "attention to CLS is left out. The chart says how far heads look: a light dot per head, the mean of the heads "
        "as a line. A head below the grey line looks closer than one that attends to all patches alike.",
    )
    return AttentionPicture(picture, distances, block)


def read_pictures(
    source: str | LabelledIndex, transform: ImageTransform, num_images: int
) -> tuple[list[str], NDArray[np.uint8]]:
    """Read images spread over a source, as `beit predict` shows them to a model.

    Returns:
        Their names, and pixels (n, height, width, 3) uint8; those that cannot be read are left out.
    """
    reading = SourceConfig().after(transform.decoding, "the model", is_final=True)
    index = build_index(source, settings=reading) if isinstance(source, str) else source
    dataset, names, pictures = LabelledDataset(index), [], []
    problem = ""
    for position in spread_evenly(len(index), num_images).tolist():
        try:
            record = dataset.fetch(*index.locate(position), 0)
            image = record.decode_image()
        except BadSample as error:
            problem = f"{image_name(index, position)}: {error}"
            continue
        names.append(image_name(index, position))
        pictures.append(transform.pixels(image))
    require(bool(pictures), f"none of {min(num_images, len(index))} images of {index.location} can be read ({problem})")
    return names, np.stack(pictures)


def _maps(
    names: Sequence[str], pixels: NDArray[np.uint8], weights: Tensor, queries: Sequence[int], grid_size: tuple[int, int]
) -> Image.Image:
    """Lay out image, mean map and one map per head, a row for each image and query."""
    num_heads = weights.shape[1]
    cell_px = _LARGE_CELL_PX if num_heads <= _MANY_HEADS else _SMALL_CELL_PX
    rows, captions = [], []
    for i, name in enumerate(names):
        for query in queries:
            place = place_of(query, grid_size)
            row = weights[i, :, query, 1:].view(num_heads, *grid_size).numpy()  # (H, rows, columns)
            shown = [framed(enlarged(pixels[i], cell_px), place, grid_size)]
            rows.append([*shown, *(overlaid(pixels[i], values, place, cell_px) for values in (row.mean(0), *row))])
            about = "CLS" if place is None else f"patch {place[0]},{place[1]}"
            captions.append([name.rpartition("/")[2], about, *[""] * num_heads])
    titles = ["image", "mean", *(f"head {head}" for head in range(num_heads))]
    return picture_table(rows, titles=titles, captions=captions, cell_px=cell_px)
