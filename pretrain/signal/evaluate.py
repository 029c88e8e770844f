"""Is it learning? The objective on images that are never trained on, and on training images beside them.

Sums are exchanged, so all ranks return the same numbers. What they mean, in words, is `verdict.py`; the lines they are
read against are `baselines.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from beit.common.processes.distributed import World
from beit.pretrain.signal.baselines import TokenBaselines, neighbour_pairs
from beit.pretrain.step import MimStep, PixelStep


def token_metrics(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    step: MimStep,
    baselines: TokenBaselines,
    grid_size: tuple[int, int],
    world: World,
) -> dict[str, float]:
    """Measure the prediction of masked tokens, whatever training predicts; of all tokens where nothing is masked.

    Args:
        model: The `MaskedImageModel` in eval mode.
        batches: This rank's share of the samples, each once, with fixed masks, from `padded`.
        step: The objective.
        baselines: Both lines; without a neighbour line, nothing is masked.
        grid_size: Patches per side.
        world: The ranks.

    Returns:
        bits, unigram_bits and neighbour_bits (cross-entropy per token), acc and its chance level unigram_acc (always
        the commonest token), images; empty when no rank had a sample. Without masks there is no neighbour_bits.
    """
    everything = baselines.neighbours is None
    # Kept on the device until the end: one wait per evaluation instead of one per batch.
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    unigram = neighbour = commonest = 0.0
    for batch in batches:
        moved = _moved(batch, world)
        moved["token_ids"] = step.token_ids(moved)
        result = MimStep(mean=step.mean, std=step.std).forward(model, moved, predict_all=everything)
        if not batch["is_real"]:
            continue
        images = torch.tensor(len(moved["images"]))
        row = [result.loss.double() * result.num_predicted, result.num_correct, result.num_predicted, images]
        sums += torch.stack([value.double().to(world.device) for value in row])
        ids, masks = moved["token_ids"].cpu().numpy(), moved["bool_masked_pos"].cpu().numpy()
        words = ids.reshape(-1) if everything else ids[masks]
        unigram += baselines.unigram_nats(words)
        commonest += float((words == baselines.commonest).sum())
        if not everything:
            neighbour += baselines.neighbour_nats(*neighbour_pairs(ids, masks, grid_size))
    loss, correct, tokens, images_seen, *lines = world.sum_of([*sums.tolist(), unigram, commonest, neighbour])
    if not tokens:
        return {}
    unigram, commonest, neighbour = lines
    bit = tokens * math.log(2)
    metrics = {"bits": loss / bit, "acc": correct / tokens, "unigram_bits": unigram / bit}
    if not everything:
        metrics["neighbour_bits"] = neighbour / bit
    return metrics | {"unigram_acc": commonest / tokens, "images": images_seen}


def pixel_metrics(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], *, step: PixelStep, world: World
) -> dict[str, float]:
    """Measure the regression of masked patches.

    Args:
        model: The `MaskedPixelModel` in eval mode.
        batches: As in `token_metrics`.
        step: The objective.
        world: The ranks.

    Returns:
        mse, mean_mse (of predicting each value's mean over these patches: the variance of the target) and images; empty
        when no rank had a sample.
    """
    sums: Tensor | None = None  # of squared errors, patches, images, targets (P,), their squares (P,)
    for batch in batches:
        result = step.forward(model, _moved(batch, world))
        if not batch["is_real"]:
            continue
        targets = torch.where(result.valid[..., None], result.targets, 0.0).double().flatten(0, 1)  # (B K, P)
        images = torch.tensor([len(batch["images"])], dtype=torch.float64, device=world.device)
        head = torch.stack([result.loss.double() * result.num_predicted, result.num_predicted.double()])
        row = torch.cat([head, images, targets.sum(0), targets.square().sum(0)])
        sums = row if sums is None else sums + row
    num_values = 3 * step.patch_size**2
    own = [0.0] * (3 + 2 * num_values) if sums is None else sums.tolist()
    loss, patches, images_seen, *moments = world.sum_of(own)
    if not patches:
        return {}
    mean, square = torch.tensor(moments, dtype=torch.float64).view(2, num_values) / patches
    return {"mse": loss / patches, "mean_mse": (square - mean.square()).mean().item(), "images": images_seen}


def _moved(batch: Mapping[str, Any], world: World) -> dict[str, Tensor]:
    return {name: value.to(world.device) for name, value in batch.items() if isinstance(value, Tensor)}
