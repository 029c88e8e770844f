"""`beit predict --tile` with a classifier: a row for each tile of an image, and one for the image, their mean.

A tile is looked at as a whole, resized to the model's input: the margin that evaluation cuts off would hide a part of
the image that no other tile shows. Parts of large TIFFs are decoded without the rest.

B = tiles at once.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from beit.common.errors import BadSample, InputError, require
from beit.common.images.large.tiles import Tile, Tiling
from beit.common.images.large.windows import Pixels, open_pixels
from beit.common.pages.numbers import count
from beit.common.progress import Progress
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.depth import warn_of_missed
from beit.common.sources.index_build import build_index
from beit.common.sources.types import place_in
from beit.common.vit.description import read_encoder_config
from beit.common.vit.transform import resize_and_center_crop
from beit.finetune.data import image_name
from beit.finetune.evaluation.evaluate import say_fit, single_rank
from beit.finetune.prediction.files import Prediction, check_prediction_file, write_csv_text, write_predictions
from beit.finetune.prediction.predict import ALL_BUT_ONE, Predictor, load_predictor, report_bad_samples

logger = logging.getLogger(__name__)

_AT_ONCE = 32
"""Tiles in one forward pass; arbitrary."""


def tiling_of(model: str | Path, tile: int | None, overlap: int) -> Tiling | None:
    """Return what --tile and --overlap mean for a model; None where images are not cut."""
    if tile is None:
        require(not overlap, f"--overlap ({overlap}) is for tiles; it needs --tile, such as --tile 1024")
        return None
    tiling, side = Tiling(tile, overlap), read_encoder_config(model).architecture.img_size
    if tile < side:
        logger.warning(
            "--tile (%d) is smaller than the input of the model, %d px: it sees less than it was trained to", tile, side
        )
    return tiling


def predict_tiles_to_file(
    model: str | Path,
    source: str,
    tiling: Tiling,
    *,
    out: Path | None,
    stdout: TextIO,
    features: bool = False,
    settings: SourceConfig | None = None,
) -> None:
    """Label every tile and every image of `source`, as `predict_to_file` labels images."""
    check_prediction_file(out, inputs=[model, source])
    predictor = load_predictor(model, features=features)
    reading = (settings or SourceConfig()).after(predictor.stored.decoding, str(model), is_final=True)
    batches = predict_tiles(predictor, source, tiling, settings=reading)
    if out is None:
        write_csv_text(batches, stdout)
    else:
        write_predictions(batches, out)


def predict_tiles(
    predictor: Predictor, source: str, tiling: Tiling, *, settings: SourceConfig
) -> Iterator[list[Prediction]]:
    """Yield the predictions of the tiles of each image, and then its own: the mean of their probabilities, or features.

    Tiles that cannot be read are reported and are no part of the mean; images none of whose tiles can are left out.
    `settings` say how images are decoded, as the model's own do (`SourceConfig.after`).
    """
    index, world = build_index(source, settings=settings), single_rank()
    world.announce()
    say_fit(index, predictor.stored, world)
    warn_of_missed(index, index.decoding, option="--range")
    predictor.model.to(world.device)
    bad_samples = BadSampleLog(len(index), ALL_BUT_ONE)
    with (
        closing(LabelledDataset(index)) as dataset,
        Progress(len(index), unit="images", description="predicting") as progress,
    ):
        for position in range(len(index)):
            name = image_name(index, position)
            try:
                with _opened(dataset, position) as file, open_pixels(file, index.decoding) as pixels:
                    yield from _of_image(predictor, name, pixels, tiling, world.device)
            except BadSample as error:
                with suppress(InputError):  # at the last, where all are bad: `report_bad_samples` says so
                    bad_samples.add([BadSampleReport(name, error.reason, error.detail)])
            progress.update(1)
    report_bad_samples(bad_samples, index)


def _opened(dataset: LabelledDataset, position: int) -> BinaryIO:
    index = dataset.index
    shard_id, rank = index.locate(position)
    place = place_in(index.shards[shard_id], index.ref(shard_id, rank))
    return io.BytesIO(dataset.image_bytes(shard_id, rank)) if place is None else place.open()


def _of_image(
    predictor: Predictor, name: str, pixels: Pixels, tiling: Tiling, device: torch.device
) -> Iterator[list[Prediction]]:
    total, seen, wrong = tiling.count(pixels.size), 0, BadSample("decode-error")
    sums: list[Tensor | None] = [None, None]
    rest = tiling.tiles(pixels.size)
    while tiles := list(islice(rest, _AT_ONCE)):
        shown: list[tuple[Tile, NDArray[np.uint8]]] = []
        for tile in tiles:
            try:
                image = pixels.read(tile.box)
            except BadSample as error:
                wrong = error
                continue
            side = predictor.stored.architecture.img_size
            shown.append((tile, np.atleast_3d(resize_and_center_crop(image, side, crop_pct=1.0))))
        if not shown:
            continue
        images = torch.from_numpy(np.stack([view for _, view in shown])).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            looks = predictor.look(images)
        found = predictor.name(*looks, [name] * len(shown))
        yield [
            replace(prediction, tile=tile.name, box=tile.box)
            for prediction, (tile, _) in zip(found, shown, strict=True)
        ]
        seen += len(shown)
        sums = [_added(before, look) for before, look in zip(sums, looks, strict=True)]
    if not seen:
        raise wrong
    if seen < total:
        logger.warning(
            "%s: %d of %s cannot be read (%s), and are left out", name, total - seen, count(total, "tile"), wrong
        )
    features, probabilities = (None if summed is None else (summed / seen)[None] for summed in sums)
    assert features is not None
    whole = predictor.name(features, probabilities, [name])
    yield [replace(prediction, tile="", box=(0, 0, *pixels.size)) for prediction in whole]


def _added(before: Tensor | None, rows: Tensor | None) -> Tensor | None:
    if rows is None:
        return None
    return rows.sum(0) if before is None else before + rows.sum(0)
