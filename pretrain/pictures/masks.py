"""Masks as a picture: images as training will hide them, epoch by epoch, and what many masks have in common."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.pages.charts import bar_chart
from beit.common.pages.numbers import percent
from beit.common.pages.pictures import HIGHLIGHT, beside, heat_colours, mask_patches, picture_table, sheet
from beit.common.rng import CounterRng
from beit.common.shards.token_store import TokenStore
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import build_transform
from beit.pretrain.masking import MaskConfig, draw_mask, target_min_block, target_num_masked
from beit.pretrain.sample import EvenSample
from beit.pretrain.store_dataset import StoreDataset

DRAWS = 5_000
"""Masks behind the statistics; half a second."""
VEIL = 0.75
"""Opacity of the cover: a masked patch cannot be mistaken, and what it hides can still be seen."""
_CELL_PX = 136


def masks_sheet(store: TokenStore, config: PretrainConfig, *, num_images: int, num_epochs: int) -> Image.Image:
    """Draw training images under the views and masks of their first epochs, and statistics of many masks below.

    One row per image, one column per epoch, RGB. Any token store will do, also one without tokens; of the settings,
    those of `mask` and the seed decide.
    """
    # No tokens are drawn, so none are needed.
    transform = replace(build_transform(config, store.info, strict=False), needs_tokens=False)
    dataset = StoreDataset(store, seed=config.train.seed)
    rows, captions = [], []
    for shard_id, rank in EvenSample(dataset, num_images).places().tolist():
        cells, texts = [], []
        for epoch in range(num_epochs):
            record = dataset.fetch(shard_id, rank, epoch)
            sample = transform(record)
            mask = sample["bool_masked_pos"].reshape((store.info.grid_size,) * 2)
            cells.append(mask_patches(sample["images"].transpose(1, 2, 0), mask, colour=HIGHLIGHT, opacity=VEIL))
            view = f"view {record.view_index}" if store.info.views else "fresh view"
            texts.append(f"{view}, {mask.sum()} of {mask.size}")
        rows.append(cells)
        captions.append(texts)
    titles = [f"epoch {epoch}" for epoch in range(num_epochs)]
    table = picture_table(rows, titles=titles, captions=captions, cell_px=_CELL_PX)
    grid = (store.info.grid_size,) * 2
    masks = np.stack([draw_mask(CounterRng(config.train.seed, "masks", i), grid, config.mask) for i in range(DRAWS)])
    return sheet(
        [table, _statistics(masks, table.width)],
        heading=f"Masks: {config.mask.mode}",
        facts=_facts(config.mask, masks),
        legend="Blue patches are hidden from the model, and what they show is to be predicted. A sample gets another "
        "mask in every epoch, decided by (seed, epoch, sample) alone. At the bottom: how often each patch is hidden, "
        "and how many are, over many masks.",
    )


def _statistics(masks: NDArray[np.bool_], width_px: int) -> Image.Image:
    shares = masks.mean(axis=0)
    low, high = float(shares.min()), float(shares.max())
    # Equal shares are one colour, not sampling noise blown up: the scale spans at least a fifth.
    span = max(high - low, 0.2)
    heat = heat_colours((shares - (low + high - span) / 2) / span)
    side = min(2 * _CELL_PX, width_px // 3)
    title = "how often a patch is hidden"
    patch_map = picture_table(
        [[heat]], titles=[title], captions=[[f"{percent(low)} (dark) to {percent(high)}"]], cell_px=side
    )
    counts = masks.reshape(len(masks), -1).sum(axis=1)
    # A single bar among empty places says more than one that fills the chart.
    first, last = max(0, int(counts.min()) - 2), min(masks[0].size, int(counts.max()) + 2)
    chart = bar_chart(
        np.bincount(counts - first, minlength=last - first + 1) / len(counts),
        first=first,
        title="how many patches are hidden",
        x_name="patches",
        size_px=(max(240, width_px - side - 24), patch_map.height),
    )
    return beside([patch_map, chart])


def _facts(config: MaskConfig, masks: NDArray[np.bool_]) -> str:
    grid = masks.shape[1:]
    counts = masks.reshape(len(masks), -1).sum(axis=1)
    rule = {
        "blockwise": f"blocks of at least {target_min_block(config, grid)} patches (a target), at most "
        f"{target_num_masked(config, grid)} of {grid[0] * grid[1]} in all",
        "algorithm1": "the paper's listing: blocks until more than 40 % are hidden",
        "random": f"exactly {target_num_masked(config, grid)} of {grid[0] * grid[1]}, anywhere",
        "none": "nothing is hidden",
    }[config.mode]
    grown = ", grown to exactly that" if config.exact and config.mode == "blockwise" else ""
    if counts.min() == counts.max():
        found = f"{counts.min()} patches"
    else:
        found = f"{counts.min()} to {counts.max()} patches, {counts.mean():.1f} on average"
    return f"{rule}{grown}; {len(masks)} draws hide {found}, {percent(counts.mean() / (grid[0] * grid[1]))}"
