"""Any step's batch of a run, built again: on any machine, with any number of ranks, also of a step that went wrong.

The data order is arithmetic (`beit.common.reading.order`), and so are views and masks, so nothing of the run is needed
but its settings and its store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import InputError, require
from beit.common.images.channels import in_colour
from beit.common.pages.pictures import HIGHLIGHT, mask_patches, picture_table, sheet
from beit.common.processes.distributed import World
from beit.common.reading.config import ReaderConfig
from beit.common.runs.layout import NONFINITE
from beit.common.runs.metrics import read_records
from beit.common.storage.documents import reading
from beit.common.storage.samples import Record
from beit.common.training.data import Batch, TrainingData
from beit.common.views import compute_canary
from beit.pretrain.data import ViewTransform, build_transform
from beit.pretrain.pictures.masks import VEIL
from beit.pretrain.store_dataset import StoreDataset
from beit.pretrain.stored_run import StoredRun

VIEW_FIELDS = ("left", "top", "w", "h", "flip", "jitter_order", "bright", "contrast", "sat")
"""Of a stored view; docs/store-format.md explains them."""

_COLUMNS, _CELL_PX = 6, 144
_MAX_MICRO_BATCH = 64


@dataclass(frozen=True, slots=True)
class RebuiltBatch:
    """One optimizer step's samples, over all ranks."""

    listing: dict[str, Any]
    """Everything but the pixels, as plain JSON values."""
    pictures: list[NDArray[np.uint8]]
    """The first views as the model saw them, (img_size, img_size, 3) each."""
    masks: list[NDArray[np.bool_]]
    """Their masks, (grid_size, grid_size), True = masked."""


@dataclass(frozen=True, slots=True)
class ListedTransform:
    """The run's own transform, which also says which view it showed."""

    transform: ViewTransform

    def __call__(self, record: Record) -> dict[str, NDArray[np.generic]]:
        """Return what the transform does, and view (9,) int64, the values of `VIEW_FIELDS`."""
        sample = self.transform(record)
        image = record.decode_image()
        view = self.transform.view_of(record, image.width, image.height)
        return sample | {"view": np.array([int(view[name]) for name in VIEW_FIELDS], np.int64)}


def rebuild_batch(run: StoredRun, step: int, *, num_pictures: int) -> RebuiltBatch:
    """Build the batch of a step, counted from 0, again; the pixels of its first `num_pictures` samples are kept."""
    config, store = run.config, run.store
    batch_size = config.train.global_batch_size
    micro = max(size for size in range(1, min(batch_size, _MAX_MICRO_BATCH) + 1) if batch_size % size == 0)
    lanes = run.data.get("lanes", config.reader.lanes)
    reader = ReaderConfig(num_workers=0, window_shards=config.reader.window_shards, lanes=lanes)
    alone = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    data = TrainingData(
        StoreDataset(store, seed=config.train.seed),
        ListedTransform(_transform(run)),
        replace(config, reader=reader, train=replace(config.train, micro_batch_size=micro)),
        world=alone,
    )
    plan = data.plan
    require(
        0 <= step < plan.total_steps,
        f"--step ({step}) must be in [0, {plan.total_steps - 1}]: steps are counted from 0, and the run has "
        f"{plan.total_steps}",
    )
    rows: list[dict[str, Any]] = []
    bad: list[dict[str, str]] = []
    pictures: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    for batch in islice(data.micro_batches(step), plan.grad_accum_steps):
        bad += [one._asdict() for one in batch["bad_samples"]]
        for i in range(len(batch["keys"])):
            mask = batch["bool_masked_pos"][i].numpy()
            rows.append(_row(batch, i, number=len(rows), mask=mask))
            if len(pictures) < num_pictures:
                pictures.append(in_colour(batch["images"][i].permute(1, 2, 0).numpy()))
                masks.append(mask.reshape((store.info.grid_size,) * 2))
    recorded = _recorded_as_nonfinite(run, step)
    listing = {
        "run": str(run.path),
        "step": step,
        "epoch": round(step / plan.steps_per_epoch, 4),
        "seed": config.train.seed,
        "global_batch_size": batch_size,
        "store": store.location,
        "store_sha256": store.index_sha256,
        "is_nonfinite": recorded is not None,
        "bad_samples": bad,
        "rows": rows,
    }
    if recorded is not None and recorded != [row["sample_id"] for row in rows]:
        raise InputError(
            f"the samples of step {step} are not those that {run.path / 'nonfinite.jsonl'} records for it; were "
            "train.seed, train.global_batch_size or reader.window_shards changed since?"
        )
    return RebuiltBatch(listing, pictures, masks)


def batch_sheet(batch: RebuiltBatch) -> Image.Image:
    """Draw the first samples of a batch, masked patches covered; RGB."""
    listing, count = batch.listing, len(batch.pictures)
    cells: list[NDArray[np.uint8] | None] = [
        mask_patches(pixels, mask, colour=HIGHLIGHT, opacity=VEIL)
        for pixels, mask in zip(batch.pictures, batch.masks, strict=True)
    ]
    captions = [_caption(row) for row in listing["rows"][:count]]
    width = min(_COLUMNS, count)
    blanks = -count % width
    cells, captions = cells + [None] * blanks, captions + [""] * blanks
    rows = [slice(start, start + width) for start in range(0, len(cells), width)]
    table = picture_table([cells[row] for row in rows], captions=[captions[row] for row in rows], cell_px=_CELL_PX)
    size = listing["global_batch_size"]
    shown = f"all {size} samples" if count == size else f"the first {count} of {size} samples"
    wrong = "; its loss or gradients were not finite" if listing["is_nonfinite"] else ""
    replaced = f"; {len(listing['bad_samples'])} unusable samples were replaced" if listing["bad_samples"] else ""
    return sheet(
        [table],
        heading=f"Batch of step {listing['step']}",
        facts=f"{shown}, as the model saw them, over all ranks; epoch {listing['epoch']:.2f}, seed {listing['seed']}"
        f"{wrong}{replaced}",
        legend="Blue patches were masked. Below each: its key, cut where it is long (--json lists all in full), stored "
        "view and epoch.",
    )


def _transform(run: StoredRun) -> ViewTransform:
    """Return the run's transform; tolerant where this machine cannot replay exactly, without an online tokenizer."""
    info = run.store.info
    strict = run.config.data.replay == "strict" and info.views > 0 and compute_canary() == info.canary
    transform = build_transform(run.config, info, strict=strict)
    return replace(transform, needs_tokens=transform.needs_tokens and info.views > 0)


def _row(batch: Batch, i: int, *, number: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    token_ids = batch.get("token_ids")
    return {
        "row": number,
        "position": int(batch["positions"][i]),
        "epoch": int(batch["epochs"][i]),
        "sample_id": batch["sample_ids"][i],
        "key": batch["keys"][i],
        "view_index": int(batch["view_indices"][i]),
        "view": dict(zip(VIEW_FIELDS, batch["view"][i].tolist(), strict=True)),
        "masked": np.flatnonzero(mask).tolist(),
        "token_ids": None if token_ids is None else token_ids[i].tolist(),
    }


def _caption(row: dict[str, Any]) -> str:
    return f"{row['key'].rpartition('/')[2]}\nview {row['view_index']}, epoch {row['epoch']}"


def _recorded_as_nonfinite(run: StoredRun, step: int) -> list[str] | None:
    """Return the sample ids that the run noted for a step that was not finite, in the order of the batch."""
    for record in read_records(run.path / NONFINITE):
        if record["step"] == step:
            with reading(run.path / NONFINITE):
                return [sample_id for rank in record["sample_ids"] for sample_id in rank]
    return None
