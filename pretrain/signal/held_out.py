"""The learning signal of a run: which images are measured, against which lines, and under which names.

How a batch is measured is `evaluate.py`, what the lines are is `baselines.py`, what the numbers mean is `verdict.py`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from beit.common.errors import BadSample
from beit.common.processes.distributed import World
from beit.common.reading.loader import Loader
from beit.common.reading.reader import sequential_loader
from beit.common.training.batches import padded
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import ViewTransform
from beit.pretrain.sample import EvenSample
from beit.pretrain.signal.baselines import MAX_PAIRS, TokenBaselines, fit_baselines
from beit.pretrain.signal.evaluate import pixel_metrics, token_metrics
from beit.pretrain.step import MimStep, PixelStep
from beit.pretrain.store_dataset import StoreDataset

logger = logging.getLogger(__name__)

MAX_ONLINE_BASELINE_VIEWS = 2_000
"""Each costs a forward pass of the tokenizer."""
_READ_AHEAD = 128
"""Views whose tokens come in one go from a remote store."""
_MEASURED = ("bits", "acc", "mse", "images")
"""Names of `evaluate.py` that get `held_out_` in front; the others say what they are."""
_EVALUATION_WORKERS = 2
"""A short pass does not repay starting many."""


@dataclass
class HeldOut:
    """Measures the objective on held-out and on training images.

    Args:
        config: Settings.
        step: The objective.
        transform: With fixed masks.
        train: Training images.
        held_out: Images that are never trained on.
        vocab_size: V; 0 for pixels.
        world: The ranks; all of them call `measure`.
    """

    config: PretrainConfig
    step: MimStep | PixelStep
    transform: ViewTransform
    train: StoreDataset
    held_out: StoreDataset
    vocab_size: int
    world: World

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Measure a model in eval mode.

        Returns:
            For tokens: held_out_bits, held_out_acc, unigram_bits, neighbour_bits, unigram_acc, held_out_images and, on
            training images, train_bits and train_acc. For pixels: held_out_mse, mean_mse, held_out_images and
            train_mse. Empty when no image could be read.
        """
        settings = self.config.held_out
        found = self._metrics(model, EvenSample(self.held_out, settings.max_images))
        metrics = {f"held_out_{name}" if name in _MEASURED else name: value for name, value in found.items()}
        if metrics and settings.train_images:
            beside = self._metrics(model, EvenSample(self.train, settings.train_images))
            metrics |= {f"train_{name}": beside[name] for name in ("bits", "acc", "mse") if name in beside}
        return metrics

    def _metrics(self, model: nn.Module, sample: EvenSample) -> dict[str, float]:
        loader, world = self._loader(sample), self.world
        blank = {name: torch.from_numpy(value)[None] for name, value in self.transform.blank().items()}
        batches = padded(loader, len(loader), blank, world)
        if isinstance(self.step, PixelStep):
            return pixel_metrics(model, batches, step=self.step, world=world)
        grid_size = (self.transform.grid_size,) * 2
        return token_metrics(model, batches, step=self.step, baselines=self.baselines, grid_size=grid_size, world=world)

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
        reader = self.config.reader
        return sequential_loader(
            sample,
            transform=self.transform,
            micro_batch_size=self.config.held_out.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            config=replace(reader, num_workers=min(reader.num_workers, _EVALUATION_WORKERS)),
        )
