"""Is it learning? The objective on images that are never trained on, and on training images beside them.

Here: which images are measured, how a batch is, and under which names. Sums are exchanged, so all ranks return the same
numbers. What they mean, in words, is `verdict.py`; the lines they are read against are `baselines.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from beit.common.errors import BadSample
from beit.common.processes.distributed import World
from beit.common.reading.loader import Loader
from beit.common.reading.reader import sequential_loader
from beit.common.training.data import padded
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import ViewTransform
from beit.pretrain.model import image_costs, mim_loss
from beit.pretrain.sample import EvenSample
from beit.pretrain.signal.baselines import MAX_PAIRS, TokenBaselines, fit_baselines, neighbour_pairs
from beit.pretrain.signal.spread import CostLog, ImageCosts
from beit.pretrain.step import MimStep, PixelStep
from beit.pretrain.store_dataset import StoreDataset

logger = logging.getLogger(__name__)

MAX_ONLINE_BASELINE_VIEWS = 2_000
"""Each costs a forward pass of the tokenizer."""
_READ_AHEAD = 128
"""Views whose tokens come in one go from a remote store."""
_MEASURED = ("bits", "acc", "mse", "images")
"""Metrics that get `held_out_` in front; the others say what they are."""
_EVALUATION_WORKERS = 2
"""A short pass does not repay starting many."""
_MIN_IMAGES_PER_WORKER = 1000
"""Or any: starting one takes as long as reading so many."""


@dataclass
class HeldOut:
    """Measures the objective on images that are never trained on, and on training images; all ranks call `measure`."""

    config: PretrainConfig
    step: MimStep | PixelStep
    transform: ViewTransform
    """With fixed masks."""
    train: StoreDataset
    held_out: StoreDataset
    vocab_size: int
    """V; 0 for pixels."""
    world: World

    def measure(self, model: nn.Module) -> tuple[dict[str, float], dict[str, ImageCosts]]:
        """Measure a model in eval mode.

        Returns:
            For tokens: held_out_bits, held_out_acc, unigram_bits, neighbour_bits, unigram_acc, held_out_images and, on
            training images, train_bits and train_acc. For pixels: held_out_mse, mean_mse, held_out_images and
            train_mse. held_out_bits_se, held_out_mse_se and below_unigram_se (of unigram_bits - held_out_bits) are
            standard errors over images. Empty when no image could be read. Beside them the costs of every image,
            "held_out" and "train".
        """
        held_out, beside = self._samples
        found, costs = self._metrics(model, held_out)
        metrics = {f"held_out_{name}" if name in _MEASURED else name: value for name, value in found.items()}
        if costs is None:
            return {}, {}
        metrics |= {f"{name}_se": costs.mean()[1] for name in ("held_out_bits", "held_out_mse") if name in metrics}
        if "unigram_bits" in metrics:
            metrics["below_unigram_se"] = costs.below_line()[1]
        by_side = {"held_out": costs}
        if metrics and len(beside):
            trained, costs = self._metrics(model, beside)
            metrics |= {f"train_{name}": trained[name] for name in ("bits", "acc", "mse") if name in trained}
            by_side |= {} if costs is None else {"train": costs}
        return metrics, by_side

    @cached_property
    def _samples(self) -> tuple[EvenSample, EvenSample]:
        """The held-out images that are measured, and the training images beside them."""
        settings = self.config.held_out
        held_out = EvenSample(self.held_out, settings.max_images)
        return held_out, EvenSample(self.train, min(len(held_out), settings.train_images))

    @property
    def num_images(self) -> int:
        """Images that one measurement looks at; none where none are held out."""
        held_out, beside = self._samples
        return len(held_out) + len(beside) if len(held_out) else 0

    def _metrics(self, model: nn.Module, sample: EvenSample) -> tuple[dict[str, float], ImageCosts | None]:
        loader, world, log = self._loader(sample), self.world, CostLog()
        blank = {name: torch.from_numpy(value)[None] for name, value in self.transform.blank().items()}
        batches = padded(loader, len(loader), blank, world)
        if isinstance(self.step, PixelStep):
            return pixel_metrics(model, batches, step=self.step, world=world, log=log), log.collect(world)
        step, grid_size = self.step, (self.transform.grid_size,) * 2
        metrics = token_metrics(
            model, batches, step=step, baselines=self.baselines, grid_size=grid_size, world=world, log=log
        )
        return metrics, log.collect(world)

    @cached_property
    def baselines(self) -> TokenBaselines:
        """Both lines, fitted to training images; ranks share the reading."""
        assert isinstance(self.step, MimStep)
        grid_size = self.transform.grid_size
        count = min(self.config.held_out.baseline_views, max(1, MAX_PAIRS // grid_size**2))
        if self.step.tokenizer is None:
            own = self._stored_tokens(count)
        else:
            own = self._online_tokens(min(count, MAX_ONLINE_BASELINE_VIEWS))
        token_ids, masks = (np.concatenate(parts) for parts in zip(*self.world.gather(own), strict=True))
        return fit_baselines(token_ids, masks, grid_size=(grid_size, grid_size), vocab_size=self.vocab_size)

    def _stored_tokens(self, count: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Read this rank's part of about `count` views, tokens and masks of training (n, N); images are not touched."""
        sample, training = EvenSample(self.train, count), replace(self.transform, fixed_masks=False)
        views = min(self.train.num_views, count // len(sample))
        token_ids, masks = self._no_tokens()
        places = sample.places()[self.world.rank :: self.world.world_size].tolist()
        step = max(1, _READ_AHEAD // max(1, views))
        for number, (shard_id, rank) in enumerate(places):
            if number % step == 0:
                self.train.expect_token_ids(places[number : number + step], views)
            sample_id = self.train.sample_id(shard_id, rank)
            try:
                token_ids += [self.train.token_ids(shard_id, rank, k).reshape(1, -1) for k in range(views)]
            except BadSample as error:  # counted where it is trained on; the line does not hang on one image
                logger.debug("%s is left out of the baselines: %s", sample_id, error)
                continue
            masks += [training.draw_mask(sample_id, epoch).reshape(1, -1) for epoch in range(views)]
        return np.concatenate(token_ids), np.concatenate(masks)

    def _online_tokens(self, count: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Compute this rank's part of `count` views' tokens."""
        assert isinstance(self.step, MimStep)
        token_ids, masks = self._no_tokens()
        for batch in self._loader(EvenSample(self.train, count)):
            if "images" in batch:
                views = batch["token_views"].to(self.world.device)
                token_ids.append(self.step.token_ids({"token_views": views}).cpu().numpy().astype(np.uint16))
                masks.append(batch["bool_masked_pos"].numpy())
        return np.concatenate(token_ids), np.concatenate(masks)

    def _no_tokens(self) -> tuple[list[NDArray[np.uint16]], list[NDArray[np.bool_]]]:
        num_patches = self.transform.grid_size**2
        return [np.empty((0, num_patches), np.uint16)], [np.empty((0, num_patches), np.bool_)]

    def _loader(self, sample: EvenSample) -> Loader:
        reader, world = self.config.reader, self.world
        num_workers = min(
            reader.num_workers, _EVALUATION_WORKERS, len(sample) // world.world_size // _MIN_IMAGES_PER_WORKER
        )
        return sequential_loader(
            sample,
            transform=self.transform,
            micro_batch_size=self.config.held_out.micro_batch_size,
            rank=world.rank,
            world_size=world.world_size,
            config=replace(reader, num_workers=num_workers),
        )


def token_metrics(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    step: MimStep,
    baselines: TokenBaselines,
    grid_size: tuple[int, int],
    world: World,
    log: CostLog | None = None,
) -> dict[str, float]:
    """Measure the prediction of masked tokens, whatever training predicts; of all tokens where nothing is masked.

    The model is in eval mode. `batches`, from `padded`, are this rank's share of the samples, each once, with fixed
    masks. Where the baselines have no neighbour line, nothing is masked. `log` gets the costs of each image in bits.

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
        prediction = MimStep(mean=step.mean, std=step.std, predict_all=everything).predict(model, moved)
        if not batch["is_real"]:
            continue
        result = mim_loss(prediction, moved["token_ids"])
        images = torch.tensor(len(moved["images"]))
        row = [result.loss.double() * result.num_predicted, result.num_correct, result.num_predicted, images]
        sums += torch.stack([value.double().to(world.device) for value in row])
        ids, masks = moved["token_ids"].cpu().numpy(), moved["bool_masked_pos"].cpu().numpy()
        words = ids.reshape(-1) if everything else ids[masks]
        if log is not None:
            costs, weights = (values.cpu().numpy() for values in image_costs(prediction, moved["token_ids"]))
            lines = np.where(everything | masks, baselines.word_nats[ids], 0.0).sum(1)
            log.add(batch["positions"], costs / math.log(2), weights, lines / math.log(2))
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
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    step: PixelStep,
    world: World,
    log: CostLog | None = None,
) -> dict[str, float]:
    """Measure the regression of masked patches; model, batches and `log` are as in `token_metrics`.

    Returns:
        mse, mean_mse (of predicting each value's mean over these patches: the variance of the target) and images; empty
        when no rank had a sample.
    """
    sums: Tensor | None = None  # of squared errors, patches, images, targets (P,), their squares (P,)
    for batch in batches:
        prediction, result = step.compare(model, _moved(batch, world))
        if not batch["is_real"]:
            continue
        if log is not None:
            errors = (prediction.logits.float() - result.targets).square().mean(-1)  # (B, K)
            costs = torch.where(result.valid, errors, 0.0).sum(1)
            log.add(batch["positions"], costs.cpu(), result.valid.sum(1).cpu(), [math.nan] * len(costs))
        targets = torch.where(result.valid[..., None], result.targets, 0.0).double().flatten(0, 1)  # (B K, P)
        images = torch.tensor([len(batch["images"])], dtype=torch.float64, device=world.device)
        head = torch.stack([result.loss.double() * result.num_predicted, result.num_predicted.double()])
        row = torch.cat([head, images, targets.sum(0), targets.square().sum(0)])
        sums = row if sums is None else sums + row
    num_values = len(step.mean) * step.patch_size**2
    own = [0.0] * (3 + 2 * num_values) if sums is None else sums.tolist()
    loss, patches, images_seen, *moments = world.sum_of(own)
    if not patches:
        return {}
    mean, square = torch.tensor(moments, dtype=torch.float64).view(2, num_values) / patches
    return {"mse": loss / patches, "mean_mse": (square - mean.square()).mean().item(), "images": images_seen}


def _moved(batch: Mapping[str, Any], world: World) -> dict[str, Tensor]:
    return {name: value.to(world.device) for name, value in batch.items() if isinstance(value, Tensor)}
