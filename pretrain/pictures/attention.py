"""Where the encoder of a run looks in a few images of its store, for its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beit.common.encoder import load_encoder
from beit.common.errors import BadSample
from beit.common.images.channels import in_colour
from beit.common.pages.attention import chosen_points, points_sheet
from beit.common.runs.layout import ENCODER
from beit.common.shards.token_store import TokenStore
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import build_transform
from beit.pretrain.sample import EvenSample
from beit.pretrain.store_dataset import StoreDataset


def attention_sheet(run: Path, store: TokenStore, config: PretrainConfig, *, num_images: int) -> Image.Image | None:
    """Draw where the last block, or the one that a probe found best, looks from CLS and three patches.

    The images are held out where any are; None where none can be read.
    """
    model = load_encoder(run / ENCODER)
    block = model.config.depth - 1 if model.best_block is None else model.best_block
    held_out, trained = (StoreDataset(store, seed=config.train.seed, held_out=part) for part in (True, False))
    dataset = held_out if held_out.shard_sizes.sum() else trained
    # Nothing is predicted, so no tokens are needed.
    transform = replace(build_transform(config, store.info, strict=False), needs_tokens=False)
    names, pixels = [], []
    for shard, rank in EvenSample(dataset, num_images).places().tolist():
        try:
            record = dataset.fetch(shard, rank, 0)
            pixels.append(transform(record)["images"])
        except BadSample:
            continue
        names.append(record.key)
    if not pixels:
        return None
    stacked = np.stack(pixels)  # (B, C, height, width)
    with torch.inference_mode():
        weights = model.attention_weights(model.transform.normalize(torch.from_numpy(stacked)), block).numpy()
    which = "held-out" if dataset is held_out else "training"
    return points_sheet(
        names,
        in_colour(stacked.transpose(0, 2, 3, 1)),
        weights,
        chosen_points(model.config.grid_size),
        model.config.grid_size,
        block=block,
        facts=f"{model.config.name}, {model.config.depth} blocks of {model.config.num_heads} heads, counted from 0; "
        f"{len(names)} {which} images",
    )
