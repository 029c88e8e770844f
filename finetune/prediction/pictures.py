"""`beit show predictions`: what a fine-tuned model says of some images, as a sheet.

Of a segmenter the classes over each image and, where the images have masks, the truth and what is wrong beside them; of
a classifier the likeliest labels below each image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError, require
from beit.common.pages.numbers import percent, run_name
from beit.common.pages.pictures import on_paper, picture_table, sheet
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.config import SourceConfig
from beit.common.sources.index_build import build_index
from beit.common.storage.samples import spread_evenly
from beit.common.vit.description import read_encoder_config
from beit.finetune.attention import read_pictures
from beit.finetune.data import image_name
from beit.finetune.evaluation.overlays import error_map, legend, overlay, shrunk
from beit.finetune.evaluation.segmentation import Scenes
from beit.finetune.masks.classes import IGNORED
from beit.finetune.masks.index import MaskedIndex, open_evaluation_masks
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.prediction.classifier import load_classification_model
from beit.finetune.segmentation.artifact import SegmentationInfo, load_segmenter
from beit.finetune.segmentation.inference import class_ids
from beit.finetune.segmentation.model import Segmenter

logger = logging.getLogger(__name__)

_CELL_PX, _LABELLED_CELL_PX, _LABELLED_COLUMNS, _LABELS = 300, 200, 4, 3
"""Sizes of pictures, how many stand in a row below which labels are written, and how many of these; arbitrary."""


class Scene(NamedTuple):
    """One image and what is said of it."""

    name: str
    pixels: NDArray[np.uint8]
    """(H, W, 3)."""
    said: NDArray[np.uint8]
    """(H, W)."""
    truth: NDArray[np.uint8] | None
    """(H, W), where there is a mask."""


def prediction_sheet(model: str | Path, source: str, *, num_rows: int) -> Image.Image:
    """Draw what a model says of some images of a source, spread over it, always the same.

    Args:
        model: A fine-tuned model, or its run.
        source: Images, in any form `beit predict` takes; for a segmenter also images with masks, as `beit evaluate`
            takes them.
        num_rows: Images of a segmenter, or rows of images of a classifier.
    """
    if read_encoder_config(model).task == "segmentation":
        return _segmented(model, source, num_rows)
    return _labelled(model, source, num_rows)


def _segmented(model: str | Path, source: str, num_rows: int) -> Image.Image:
    segmenter, stored, info = load_segmenter(model)
    reading = SourceConfig().after(stored.decoding, str(model), is_final=True)
    index = masks_of(source, info, reading=reading)
    found = _scenes_of_images(segmenter, source, info, num_rows, reading)
    if index is not None:
        found = _scenes_of_masks(segmenter, index, info, num_rows)
    rows, captions, seen = [], [], set()
    for scene in found:
        pictures, caption = _drawn(scene, info)
        rows.append(pictures)
        captions.append(caption)
        seen |= {*np.unique(scene.said).tolist(), *(() if scene.truth is None else np.unique(scene.truth).tolist())}
    require(bool(rows), f"none of the images of {source} that would be shown can be read")
    titles = ["image", "prediction", "truth", "wrong"][: len(rows[0])]
    # As high as the tallest of them needs, so that streets lie close together and towers are not cut.
    tallest = max(row[0].shape[0] / row[0].shape[1] for row in rows)
    high_px = min(_CELL_PX, max(1, round(_CELL_PX * tallest)))
    framed = [[on_paper(pixels, high_px / _CELL_PX) for pixels in row] for row in rows]
    table = picture_table(framed, titles=titles, captions=captions, cell_px=_CELL_PX, cell_height_px=high_px)
    names = legend(info.classes, sorted(seen), width_px=table.width)
    note = "Bright in the last column is what is wrong; striped pixels are of no class."
    return sheet(
        [table, names],
        heading=f"What {run_name(str(model))} says",
        facts=f"{stored.architecture.name}, {info.head.kind} head, {len(info.classes)} classes",
        legend=note if len(rows[0]) > 2 else "",
    )


def masks_of(source: str, info: SegmentationInfo, *, reading: SourceConfig) -> MaskedIndex | None:
    """Open the masks beside the images of a source; None where there are none of the model's classes, which is said."""
    try:
        return open_evaluation_masks(source, info.classes, MaskDataConfig(), reading=reading)
    except InputError as error:
        logger.info("no truth beside the predictions: %s", error)
        return None


def _scenes_of_masks(model: Segmenter, index: MaskedIndex, info: SegmentationInfo, count: int) -> Iterator[Scene]:
    scenes = Scenes(model, index, info)
    for position in spread_evenly(len(index), count).tolist():
        try:
            pixels, truth, said = scenes.look(position)
        except BadSample as error:
            logger.warning("%s cannot be used: %s", image_name(index.images, position), error)
            continue
        yield Scene(image_name(index.images, position), pixels, said, truth)


def _scenes_of_images(
    model: Segmenter, source: str, info: SegmentationInfo, count: int, reading: SourceConfig
) -> Iterator[Scene]:
    index = build_index(source, settings=reading)
    dataset = LabelledDataset(index)
    for position in spread_evenly(len(index), count).tolist():
        try:
            pixels = np.asarray(dataset.fetch(*index.locate(position), 0).decode_image())
        except BadSample as error:
            logger.warning("%s cannot be used: %s", image_name(index, position), error)
            continue
        yield Scene(
            image_name(index, position), pixels, class_ids(model, pixels.transpose(2, 0, 1), info.inference), None
        )


def _drawn(scene: Scene, info: SegmentationInfo) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Return the pictures of a row, and what stands below each."""
    masks = [scene.said] if scene.truth is None else [scene.said, scene.truth]
    image, small = shrunk(Image.fromarray(scene.pixels), masks, most_px=_CELL_PX)
    pictures = [image, *(overlay(image, mask, info.classes) for mask in small)]
    captions = [scene.name, *[""] * len(masks)]
    if scene.truth is not None:
        counted = scene.truth != IGNORED
        right = float((scene.said == scene.truth)[counted].mean()) if counted.any() else float("nan")
        pictures.append(error_map(image, small[1], small[0]))
        captions.append(f"{percent(right)} of the pixels right")
    return [np.asarray(picture) for picture in pictures], captions


def _labelled(model: str | Path, source: str, num_rows: int) -> Image.Image:
    classifier = load_classification_model(model)
    names, pixels = read_pictures(source, classifier.transform, num_rows * _LABELLED_COLUMNS)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    found = classifier.predict(images, top_k=_LABELS)
    captions = [
        "\n".join([name.rpartition("/")[2], *map(_label, said.labels, said.probabilities)])
        for name, said in zip(names, found, strict=True)
    ]
    rows = _in_rows(list(pixels), None)
    table = picture_table(rows, captions=_in_rows(captions, ""), cell_px=_LABELLED_CELL_PX)
    return sheet(
        [table],
        heading=f"What {run_name(str(model))} says",
        facts=f"{classifier.config.name}, {len(classifier.class_names)} classes; the likeliest below each image",
    )


def _label(name: str, probability: float) -> str:
    return f"{percent(probability)}  {name}"


def _in_rows(cells: Sequence, blank: object) -> list[list]:  # type: ignore[type-arg]
    columns = min(_LABELLED_COLUMNS, len(cells))
    padded = [*cells, *[blank] * (-len(cells) % columns)]
    return [padded[start : start + columns] for start in range(0, len(padded), columns)]
