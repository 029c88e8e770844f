"""Is it learning? The masked-token loss on images that are never trained on, beside what a model without input reaches.

The unigram line is the cross-entropy of predicting every token by its frequency in the training set: a model that looks
at nothing gets there, one that has learned anything from its visible patches is below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.common.distributed import World
from beit.common.errors import BadSample
from beit.common.store import TokenStore
from beit.pretrain.step import MimStep

_SMOOTHING = 1.0
"""Added to every count, so that a token never seen in training costs much instead of infinitely much (Laplace)."""

_HISTOGRAM_SHARDS = 256
"""Sample tables to read for it at most; a large store has a hundred thousand."""


def unigram_nats(histogram: NDArray[np.int64]) -> Tensor:
    """Turn token counts into the cost of each token under the smoothed distribution.

    Args:
        histogram: Occurrences, (V,) int64.

    Returns:
        Minus log probability in nats, (V,) float32.
    """
    counts = torch.from_numpy(histogram.astype(np.float64)) + _SMOOTHING
    return -(counts / counts.sum()).log().float()


def token_histogram(store: TokenStore, max_images: int) -> NDArray[np.int64]:
    """Count the visual tokens of training images, (V,) int64: one view each, spread evenly over the shards.

    Damaged samples are passed over; the training reports those it meets.

    Args:
        store: With tokens.
        max_images: About how many images to read.
    """
    assert store.info.tokenizer is not None
    histogram = np.zeros(store.info.tokenizer.vocab_size, dtype=np.int64)
    num_shards = min(len(store.shards), _HISTOGRAM_SHARDS)
    per_shard = math.ceil(max_images / num_shards)
    for shard_id in np.linspace(0, len(store.shards) - 1, num_shards).astype(int).tolist():
        rows = np.flatnonzero(~store.samples(shard_id).held_out(store.info.held_out.threshold))
        picked = rows[np.linspace(0, len(rows) - 1, min(per_shard, len(rows))).astype(int)] if len(rows) else rows
        if store.is_remote:
            store.read_ahead([(shard_id, row, 0) for row in picked.tolist()], images=False)
        for row in picked.tolist():
            try:
                token_ids = store.read_token_ids(shard_id, row, 0)
            except BadSample:
                continue
            histogram += np.bincount(token_ids.reshape(-1), minlength=len(histogram))
    return histogram


def held_out_metrics(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], *, step: MimStep, unigram: Tensor, world: World
) -> dict[str, float]:
    """Measure the masked-token prediction on held-out images.

    Args:
        model: The `MaskedImageModel` in eval mode.
        batches: This rank's share of the held-out samples, each once, with fixed masks.
        step: The objective.
        unigram: Cost of each token in nats, (V,) float32.
        world: The ranks; sums are exchanged, so all return the same numbers.

    Returns:
        held_out_bits and unigram_bits (cross-entropy per masked token), held_out_acc and its chance level
        unigram_acc, held_out_images; empty when no rank had a batch.
    """
    unigram = unigram.to(world.device)
    favourite = unigram.argmin()  # a model without input would always answer the commonest token
    # Kept on the device until the end: one wait per evaluation instead of one per batch.
    sums = torch.zeros(6, dtype=torch.float64, device=world.device)
    for batch in batches:
        moved = {name: value.to(world.device) for name, value in batch.items() if isinstance(value, Tensor)}
        result = step.forward(model, moved)
        targets = moved["token_ids"][moved["bool_masked_pos"]]
        row = [
            result.loss.double() * result.num_predicted,
            unigram[targets].double().sum(),
            result.num_correct,
            (targets == favourite).sum(),
            result.num_predicted,
            torch.tensor(len(moved["images"]), device=world.device),
        ]
        sums += torch.stack([value.double() for value in row])
    loss, baseline, correct, commonest, tokens, images = world.sum_of(sums.tolist())
    if not tokens:
        return {}
    return {
        "held_out_bits": loss / tokens / math.log(2),
        "unigram_bits": baseline / tokens / math.log(2),
        "held_out_acc": correct / tokens,
        "unigram_acc": commonest / tokens,
        "held_out_images": images,
    }


def verdict(metrics: Mapping[str, float]) -> str:
    """Say in one line what the numbers of `held_out_metrics` mean."""
    gain = metrics["unigram_bits"] - metrics["held_out_bits"]
    where = f"{abs(gain):.2f} bits per token {'below' if gain > 0 else 'above'} the unigram line"
    meaning = "learning" if gain > 0 else "not yet better than token frequencies"
    return (
        f"held-out: {metrics['held_out_bits']:.2f} bits per masked token, {where}: {meaning}; "
        f"accuracy {100 * metrics['held_out_acc']:.1f} % (commonest token: {100 * metrics['unigram_acc']:.1f} %)"
    )
