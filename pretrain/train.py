"""`beit pretrain`: from a token store and settings to a run directory with an encoder in it.

The loop, checkpoints and resume are `beit.common.trainer`; here is what is particular to masked image modelling.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.common.batches import Batch
from beit.common.best import Goal
from beit.common.distributed import World, init_distributed
from beit.common.encoder import save_encoder
from beit.common.errors import InputError
from beit.common.files import default_cache_dir
from beit.common.locations import is_remote
from beit.common.param_groups import weight_decay_groups
from beit.common.reader import sequential_loader
from beit.common.reader_config import SPEED_KEYS, ReaderConfig
from beit.common.run_dir import open_run
from beit.common.shard_cache import ShardCache
from beit.common.signals import stop_on_signals
from beit.common.store import TokenStore, open_store
from beit.common.store_checks import check_files, check_vocabulary
from beit.common.store_dataset import StoreDataset
from beit.common.task import FitSettings
from beit.common.trainer import fit
from beit.common.training_data import TrainingData
from beit.common.vit_config import ViTConfig, build_vit_config
from beit.pretrain.config import PretrainConfig
from beit.pretrain.data import ViewTransform, check_replay
from beit.pretrain.evaluate import held_out_metrics, token_histogram, unigram_nats, verdict
from beit.pretrain.masking import max_num_masked
from beit.pretrain.model import MaskedImageModel
from beit.pretrain.step import MimStep

logger = logging.getLogger(__name__)

FREE_KEYS = (*SPEED_KEYS, "held_out.")
"""Settings a resumed run may change, beside those of the loop: they decide speed and reporting, not what is learned."""


@stop_on_signals()
def run(config: PretrainConfig, *, store: str | Path, run_dir: Path, resume: str = "auto") -> None:
    """Pre-train on `store`, a folder or URL, and write everything to `run_dir`; on every rank.

    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    is_url = is_remote(str(store))
    token_store = open_store(store, check_images=not is_url)
    check_store(token_store, config)
    if token_store.is_remote and config.reader.cache_bytes:
        token_store.use_cache(shard_cache(config.reader))
    world = init_distributed(timeout_seconds=config.train.collective_timeout_seconds)
    if is_url:  # once for all ranks: it is a request or two per shard
        world.run_on_main(lambda: check_files(token_store))
    torch.manual_seed(config.train.seed)
    task = PretrainTask(config, token_store, world)
    directory = open_run(run_dir, config, world=world, resume=resume, free_keys=FREE_KEYS)
    task.announce()
    settings = FitSettings(
        train=config.train,
        optimizer=config.optimizer,
        checkpoint=config.checkpoint,
        deepspeed=config.deepspeed,
        goal=task.goal(),
    )
    fit(task, settings=settings, run=directory, world=world)
    if world.is_main:
        logger.info("encoder: %s", run_dir / "encoder")


def check_store(store: TokenStore, config: PretrainConfig) -> None:
    """Refuse, before anything is built, a store that this run cannot use.

    Raises:
        InputError: the store has no tokens, or this machine would replay its views differently.
    """
    if store.info.tokenizer is None:
        raise InputError(f"{store.location} holds no tokens (views = 0); tokenize it with --views 1 or more")
    check_replay(store.info.canary, strict=config.data.replay == "strict")
    check_vocabulary(store)


def shard_cache(config: ReaderConfig) -> ShardCache:
    """Return the folder that keeps the shards of remote stores on this machine.

    Raises:
        InputError: it cannot be written.
    """
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir() / "shards"
    return ShardCache(folder, config.cache_bytes)


def vit_config(config: PretrainConfig, store: TokenStore) -> ViTConfig:
    """Return the shape of the model: size from the settings, geometry from the store."""
    return build_vit_config(config.model, img_size=store.info.img_size, patch_size=store.info.patch_size)


@dataclass
class PretrainTask:
    """Masked image modelling on one token store, as the training loop wants it (`beit.common.trainer.Task`).

    Args:
        config: Settings.
        store: With tokens.
        world: The ranks.
    """

    config: PretrainConfig
    store: TokenStore
    world: World

    def __post_init__(self) -> None:
        """Build model and order; identical on every rank."""
        config, info = self.config, self.store.info
        assert info.tokenizer is not None
        self.dataset = StoreDataset(self.store, seed=config.train.seed)
        self.held_out = StoreDataset(self.store, seed=config.train.seed, held_out=True)
        self.vit = vit_config(config, self.store)
        self.data = TrainingData(
            self.dataset,
            self.transform(),
            train=config.train,
            optimizer=config.optimizer,
            checkpoint=config.checkpoint,
            reader=config.reader,
            world=self.world,
        )
        self.step = MimStep(mean=config.data.mean, std=config.data.std)
        self.model = MaskedImageModel(
            self.vit,
            vocab_size=info.tokenizer.vocab_size,
            num_masked=max_num_masked(config.mask, self.vit.grid_size),
        )

    def announce(self) -> None:
        """Say what is about to happen, once."""
        if not self.world.is_main:
            return
        plan, views = self.data.plan, self.store.info.views
        epochs = plan.total_steps / plan.steps_per_epoch
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        logger.info(
            "%s, %.1f M parameters, vocabulary %d; %d training and %d held-out images",
            self.vit.name,
            parameters / 1e6,
            self.model.vocab_size,
            self.dataset.shard_sizes.sum(),
            self.held_out.shard_sizes.sum(),
        )
        logger.info(
            "%d steps of %d images = %.1f epochs; %d views per image, each seen %.1f times",
            plan.total_steps,
            plan.global_batch_size,
            epochs,
            views,
            epochs / views,
        )
        order = self.data.order
        if self.store.is_remote:
            logger.info(
                "remote store %s; shards are kept in %s", self.store.location, self.store.cache or "memory only"
            )
        logger.info("order: windows of %d shards, %d lanes, seed %d", order.window_shards, order.lanes, order.seed)

    def goal(self) -> Goal | None:
        """Return what evaluations are judged by; the newest encoder is written, unless the run may stop early."""
        if not self.held_out.shard_sizes.sum():
            return None
        keep_best = self.config.train.early_stop_evals is not None
        return Goal(metric="held_out_bits", is_higher_better=False, keep_best=keep_best)

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay matrices, spare vectors (BEiT's grouping)."""
        return weight_decay_groups(self.model, weight_decay=self.config.optimizer.weight_decay)

    def transform(self, *, fixed_masks: bool = False) -> ViewTransform:
        """Return what turns a record into a sample."""
        return ViewTransform(
            img_size=self.store.info.img_size,
            grid_size=self.store.info.grid_size,
            mask=self.config.mask,
            seed=self.config.train.seed,
            jitter_scope=self.store.info.augment.jitter_scope,
            strict=self.config.data.replay == "strict",
            fixed_masks=fixed_masks,
        )

    def forward(self, model: torch.nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and accuracy of one micro-batch."""
        return self.step(model, batch, step)

    def evaluate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """Measure the learning signal on held-out images and say what it means."""
        if not self.held_out.shard_sizes.sum():
            return {}
        settings = self.config.held_out
        workers = min(self.config.reader.num_workers, 2)  # a short pass does not repay starting many
        loader = sequential_loader(
            self.held_out,
            transform=self.transform(fixed_masks=True),
            micro_batch_size=settings.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.world_size,
            config=replace(self.config.reader, num_workers=workers),
        )
        limit = max(1, settings.max_images // (settings.micro_batch_size * self.world.world_size))
        metrics = held_out_metrics(
            model, itertools.islice(loader, limit), step=self.step, unigram=self.unigram, world=self.world
        )
        if metrics and self.world.is_main:
            logger.info("step %d: %s", step, verdict(metrics))
        return metrics

    @cached_property
    def unigram(self) -> Tensor:
        """Cost of each token in nats when only its frequency is known, (V,) float32."""
        return unigram_nats(token_histogram(self.store, self.config.held_out.unigram_images))

    def save_artifacts(
        self, state: dict[str, Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Write `directory`/encoder: every tensor of the model, under the official names."""
        info = self.store.info
        assert info.tokenizer is not None
        save_encoder(
            directory / "encoder",
            state,
            architecture=self.vit,
            mean=self.config.data.mean,
            std=self.config.data.std,
            task="pretrain",
            vocab_size=info.tokenizer.vocab_size,
            provenance={
                "step": step,
                "total_steps": self.data.plan.total_steps,
                "metrics": dict(metrics),
                "store": self.store.location,
                "store_sha256": self.store.index_sha256,
                "tokenizer": info.tokenizer.name,
                "tokenizer_fingerprint": info.tokenizer.fingerprint,
                "views": info.views,
            },
        )
