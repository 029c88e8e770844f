"""`beit pretrain`: from a token store and settings to a run directory with an encoder in it.

Loop, checkpoints and resume: `beit.common.training.trainer`; here: what is particular to masked image modelling.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from beit.common.encoder import save_model
from beit.common.errors import InputError
from beit.common.forecast.hardware import Hardware, this_machine
from beit.common.forecast.training import TrainingForecast
from beit.common.pages.numbers import count
from beit.common.processes.distributed import World
from beit.common.processes.signals import stop_on_signals
from beit.common.reading.config import ReaderConfig
from beit.common.reading.contents import Watched
from beit.common.runs.idle import warn_of_idle
from beit.common.runs.kinds import PRETRAIN, require_command
from beit.common.runs.layout import ENCODER, METRICS
from beit.common.runs.metrics import read_metrics
from beit.common.runs.outputs import written
from beit.common.runs.run_dir import check_directory, check_run
from beit.common.shards.cache import ShardCache
from beit.common.shards.checks import check_files, check_vocabulary
from beit.common.shards.token_store import TokenStore
from beit.common.storage.files import default_cache_dir
from beit.common.storage.paths import is_remote
from beit.common.store import open_store
from beit.common.tokenizer import Tokenizer
from beit.common.training.data import Batch, TrainingData
from beit.common.training.judge import Goal
from beit.common.training.speed import check_partitions
from beit.common.training.trainer import train
from beit.common.vit.adaptation import adapt, fresh_names, merge_state, parameters_in_words
from beit.common.vit.channels import describe_fit
from beit.common.vit.config import ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.flops import training_flops
from beit.common.vit.param_groups import param_groups
from beit.pretrain.advice import another_size, check_views, little_training, quicker
from beit.pretrain.config import PretrainConfig, early_block, needs
from beit.pretrain.data import ViewTransform, build_transform, check_replay
from beit.pretrain.forecast import Start, forecast
from beit.pretrain.model import MaskedImageModel, MaskedPixelModel
from beit.pretrain.objective import TokenSource, build_model, build_step, token_source
from beit.pretrain.pictures.at_the_end import report_pictures
from beit.pretrain.pictures.reconstruction import Reconstruction, build_reconstruction, find_decoder
from beit.pretrain.signal.curve import TrainingCurve
from beit.pretrain.signal.held_out import HeldOut
from beit.pretrain.signal.probe import BEST_BLOCK, ProbeData, describe, open_probe_data, probe_metrics
from beit.pretrain.signal.verdict import Judge, verdict
from beit.pretrain.start import (
    StartingPoint,
    describe_pixels,
    earlier_start,
    in_force,
    load_initial,
    record,
    starting_point,
    trains_position_tables,
)
from beit.pretrain.start import describe as describe_start
from beit.pretrain.store_dataset import StoreDataset
from beit.pretrain.stored_run import record_data

logger = logging.getLogger(__name__)

_USUAL_WORDS = 8192
"""Of a tokenizer that is not loaded to look."""


@stop_on_signals()
def run(config: PretrainConfig, *, store: str | Path, run_dir: Path, resume: str = "auto") -> None:
    """Pre-train on `store`, a folder or URL, and write everything to `run_dir`; on every rank.

    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    require_command(run_dir, PRETRAIN)
    is_url = is_remote(str(store))
    token_store = open_store(store, check_images=not is_url)
    check_store(token_store, config)
    if token_store.is_remote and config.reader.cache_bytes:
        token_store.use_cache(shard_cache(config.reader))
    elif is_url and token_store.info.views and token_store.shards and not token_store.has_token_sums:
        logger.warning(
            "%s was written by an earlier beit, without checksums of its tokens: without reader.cache_bytes damage on "
            "the server goes unseen; beit verify looks for it",
            token_store.location,
        )
    earlier = earlier_start(run_dir, resume=resume, sync_to=config.run.sync_to if config.init else None)
    start = starting_point(config, token_store.info, earlier=earlier)
    check_settings(config, start.architecture)
    warn_of_idle(config, needs(config, has_position_tables=trains_position_tables(start)))
    config = in_force(config, start)
    probe = open_probe_data(config.probe)

    def build(world: World) -> PretrainTask:
        if is_url:  # once for all ranks: it is a request or two per shard
            world.run_on_main(lambda: check_files(token_store))
        return PretrainTask(config, token_store, world, probe=probe, start=start)

    task, result = train(config, build, run_dir=run_dir, resume=resume)
    if task.world.is_main:
        if result.metrics:
            words = verdict(result.metrics, task.alarm(result.metrics), is_continued=config.init is not None)
            logger.info("verdict: %s", words)
        if result.step > result.start_step:
            logger.info("%s", written(run_dir))


def check(config: PretrainConfig, *, store: str, run_dir: Path, resume: str = "auto") -> str:
    """Refuse whatever `run` would refuse before it builds anything, and say that there is nothing of the kind.

    And what it would take, on one rank of this machine. Of a store still to be made only the settings can be checked.
    """
    check_directory(run_dir, resume=resume)
    check_settings(config)
    if not is_remote(store) and not Path(store).exists():
        warn_of_idle(config, needs(config, has_position_tables=config.model.pos_bias != "none"))
        return f"the settings are right; {store} is not there yet"
    token_store = open_store(store, check_images=False)
    check_store(token_store, config)
    earlier = earlier_start(run_dir, resume=resume, sync_to=config.run.sync_to if config.init else None)
    start = starting_point(config, token_store.info, earlier=earlier)
    check_settings(config, start.architecture)
    warn_of_idle(config, needs(config, has_position_tables=trains_position_tables(start)))
    open_probe_data(config.probe)
    config = in_force(config, start)
    check_run(run_dir, config, resume=resume, sync_to=config.run.sync_to)
    counts = [int(StoreDataset(token_store, seed=0, held_out=side).shard_sizes.sum()) for side in (False, True)]
    info = token_store.info
    found = forecast(
        config,
        num_images=counts[0],
        img_size=info.img_size,
        patch_size=info.patch_size,
        vocab_size=info.tokenizer.vocab_size if info.tokenizer else _USUAL_WORDS,
        views=info.views,
        num_shards=len(token_store.shards),
        num_held_out=counts[1],
        hardware=this_machine(num_devices=1),
        is_materialized=info.is_materialized,
        start=Start(start.architecture, start.adaptation, start.continued is not None),
    )
    return "\n".join([f"the settings are right for {store}", *found.lines(), *map(str, found.problems)])


def check_settings(config: PretrainConfig, shape: ViTConfig | None = None) -> None:
    """Refuse, before anything is built, settings that do not go together, or not with the model's shape if known."""
    check_partitions(config)
    if shape is not None and config.objective.aggregate:
        early_block(shape, config.objective.aggregate_from)


def check_store(store: TokenStore, config: PretrainConfig) -> None:
    """Refuse, before anything is built, a store that this run cannot use."""
    check_views(config, store.info.views, store.location)
    if store.info.views:
        check_replay(store.info.canary, strict=config.data.replay == "strict")
        check_vocabulary(store)


def shard_cache(config: ReaderConfig) -> ShardCache:
    """Return the folder that keeps the shards of remote stores on this machine."""
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir() / "shards"
    return ShardCache(folder, config.cache_bytes)


@dataclass
class PretrainTask:
    """Masked image modelling on one token store, as the training loop wants it (`beit.common.training.task.Task`)."""

    config: PretrainConfig
    store: TokenStore
    world: World
    probe: ProbeData | None = None
    """Labelled images to probe the features on, at every evaluation."""
    start: StartingPoint = None  # type: ignore[assignment]
    """What it starts from; left out, what the settings say."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """Records of metrics.jsonl, on rank 0: what a run that kept nothing else is judged by."""

    def __post_init__(self) -> None:
        """Build the order; identical on every rank."""
        config = self.config
        self.dataset = StoreDataset(self.store, seed=config.train.seed)
        self.held_out_images = StoreDataset(self.store, seed=config.train.seed, held_out=True)
        self.start = self.start or starting_point(config, self.store.info)
        self.vit = self.start.architecture
        self.tokens: TokenSource | None = token_source(config, self.store.info, self.world.device)
        if self.tokens is not None and self.tokens.encoder is not None:
            # Words are part of the data: another tokenizer under the same name must not continue this run.
            identity = f"{self.store.index_sha256} tokens {self.tokens.fingerprint}"
            self.dataset.index_sha256 = hashlib.sha256(identity.encode()).hexdigest()
            self.dataset.location = f"{self.store.location} with words of {self.tokens.name}"
        watched = {}
        if self.probe is not None:
            sides = {"probe.data": self.probe.train, "probe.test": self.probe.test}
            watched = {name: Watched(index, (name,)) for name, index in sides.items()}
        self.data = TrainingData(self.dataset, self.transform(), config, world=self.world, watched=watched)
        self.step = build_step(config, self.tokens, patch_size=self.vit.patch_size)

    @cached_property
    def model(self) -> MaskedImageModel | MaskedPixelModel:
        """The vision transformer and what predicts from it, with its first weights."""
        model = build_model(self.config, self.vit, self.tokens)
        if self.start.continued is not None and not self.data.is_resumed:
            self.start = replace(self.start, continued=load_initial(model, self.start, self.tokens))
        adapt(model, self.start.adaptation, fresh=self._fresh_names(model))
        return model

    def _fresh_names(self, model: MaskedImageModel | MaskedPixelModel) -> list[str]:
        continued = self.start.continued
        return [] if continued is None else fresh_names(model, continued.source.architecture)

    def begin(self, run: Path) -> None:
        """Write down what the run trains on, find what it measured before, and say what is about to happen."""
        self.world.run_on_main(lambda: record_data(run, self.store, self.data.state(0)))
        if not self.world.is_main:
            return
        self.earlier += read_metrics(run / METRICS)
        if self.start.continued is not None:
            record(run, self.start.continued)
            logger.info("%s", describe_start(self.start, is_resumed=self.data.is_resumed))
            if not self.data.is_resumed and (unlike := describe_pixels(self.start, self.store.info.source.decoding)):
                logger.warning("%s", unlike)
        if fit := describe_fit(self.store.info.num_channels, self.start.architecture.in_chans):
            logger.info("%s", fit)
        another = another_size(config=self.config, sides=(self.vit.img_size, self.vit.patch_size))
        if another is not None:
            logger.warning("%s", another)
        plan, views = self.data.plan, self.store.info.views
        num_images = int(self.dataset.shard_sizes.sum())
        little = little_training(num_images, total_steps=plan.total_steps, batch=plan.global_batch_size)
        if little and self.start.continued is None:
            logger.warning("%s", little)
        epochs = plan.total_steps / plan.steps_per_epoch
        logger.info(
            "%s, %s, objective %s%s; %d training and %d held-out images",
            self.vit.name,
            parameters_in_words(self.model),
            self.config.objective.kind,
            f", vocabulary {self.tokens.vocab_size}" if self.tokens else "",
            self.dataset.shard_sizes.sum(),
            self.held_out_images.shard_sizes.sum(),
        )
        seen = (
            f"{count(views, 'view')} per image, each seen {epochs / views:.1f} times"
            if views
            else "a fresh view every time"
        )
        logger.info("%s; %s", plan, seen)
        order = self.data.order
        if self.store.is_remote:
            logger.info(
                "remote store %s; shards are kept in %s", self.store.location, self.store.cache or "memory only"
            )
        logger.info("order: windows of %d shards, lanes: %d, seed %d", order.window_shards, order.lanes, order.seed)

    @property
    def goal(self) -> Goal | None:
        """What evaluations are judged by; the newest encoder is written, unless the run may stop early."""
        if not self.held_out_images.shard_sizes.sum():
            return None
        keep_best = self.config.train.early_stop_evals is not None
        metric = "held_out_bits" if self.config.objective.needs_tokens else "held_out_mse"
        return Goal(metric=metric, is_higher_better=False, keep_best=keep_best)

    def evaluation_images(self) -> float:
        """Return how many images one evaluation looks at."""
        probed = 0 if self.probe is None else len(self.probe.train) + len(self.probe.test)
        return self.held_out.num_images + 2 * probed  # whose features are classified, besides

    def flops_per_sample(self) -> int:
        """Return the arithmetic of one image; a tokenizer that runs online is not part of it."""
        rows = self.model.num_predicted
        outputs = self.tokens.vocab_size if self.tokens else self.vit.in_chans * self.vit.patch_size**2
        adaptation, fresh = self.start.adaptation, self._fresh_names(self.model)
        extra_blocks = self.config.objective.aggregate
        return training_flops(
            self.vit,
            head_rows=2 * rows if extra_blocks else rows,
            head_outputs=outputs,
            last_rows=rows + 1 if extra_blocks else rows,  # CLS
            extra_blocks=extra_blocks,
            frozen_blocks=adaptation.frozen_blocks(self.vit.depth),
            lora_rank=adaptation.rank,
            is_input_trained=adaptation.rank is not None or any(not name.startswith("blocks.") for name in fresh),
        )

    def forecast(self, hardware: Hardware) -> TrainingForecast:
        """Return what the run takes."""
        is_continued, probe = self.start.continued is not None, self.probe
        is_input_trained = self.start.adaptation.rank is not None or any(
            not name.startswith("blocks.") for name in self._fresh_names(self.model)
        )
        return forecast(
            self.config,
            num_images=int(self.dataset.shard_sizes.sum()),
            img_size=self.vit.img_size,
            patch_size=self.vit.patch_size,
            vocab_size=self.tokens.vocab_size if self.tokens else 0,
            views=self.store.info.views,
            num_shards=len(self.dataset.shard_sizes),
            num_held_out=int(self.held_out_images.shard_sizes.sum()),
            hardware=hardware,
            is_materialized=self.store.info.is_materialized,
            probed_images=0 if probe is None else len(probe.train) + len(probe.test),
            start=Start(self.vit, self.start.adaptation, is_continued, is_input_trained),
            plan=self.data.plan,
        )

    def quicker(self, flops_per_second: float) -> str | None:
        """Return the recipe for a laptop with its time, unless this is it."""
        if self.tokens is None or self.start.continued is not None:
            return None
        return quicker(
            (self.vit.img_size, self.vit.patch_size),
            flops_per_image=self.flops_per_sample(),
            flops_per_second=flops_per_second,
            num_images=int(self.dataset.shard_sizes.sum()),
            vocab_size=self.tokens.vocab_size,
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay matrices, spare vectors, and let lower layers learn more slowly if asked to (BEiT's grouping)."""
        return param_groups(
            self.model,
            weight_decay=self.config.optimizer.weight_decay,
            layer_decay=self.config.layer_decay,
            depth=self.vit.depth,
            position_lr_scale=self.config.position_lr_scale,
        )

    def transform(self, *, fixed_masks: bool = False) -> ViewTransform:
        """Return what turns a record into a sample."""
        token_img_size = self.tokens.token_img_size if self.tokens else 0
        return build_transform(self.config, self.store.info, token_img_size=token_img_size, fixed_masks=fixed_masks)

    def forward(self, model: torch.nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and metrics of one micro-batch."""
        loss, metrics = self.step(model, batch, step)
        if self.tokens is None:
            self.curve.note(step, metrics.get("mse", loss))
        elif "bits" in metrics:
            self.curve.note(step, metrics["bits"])
        return loss, metrics

    def evaluate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """Measure the learning signal on held-out images and the probe, and say what they mean."""
        metrics: dict[str, float] = {}
        if self.held_out_images.shard_sizes.sum():
            metrics, costs = self.held_out.measure(model)
        if metrics:
            line = self.judge.take(metrics, step, costs, alarm=self.alarm(metrics))
            if self.world.is_main:
                logger.info("step %d: %s", step, line)
        if self.probe is not None:
            probed = probe_metrics(
                model,
                self.probe,
                config=self.config.probe,
                normalization=self.start.normalization,
                reader=self.config.reader,
                world=self.world,
            )
            if self.world.is_main:
                logger.info("step %d: %s", step, describe(probed))
            metrics |= probed
        return metrics

    @cached_property
    def judge(self) -> Judge:
        """What says in words how it goes."""
        plan = self.data.plan
        return Judge(earlier=self.earlier, grace_steps=max(2 * plan.warmup_steps, plan.total_steps // 10))

    @cached_property
    def curve(self) -> TrainingCurve:
        """What watches the training loss."""
        vocab_size = None if self.tokens is None else self.tokens.vocab_size
        return TrainingCurve(vocab_size=vocab_size, parts=self.data.plan.grad_accum_steps)

    def alarm(self, metrics: Mapping[str, float]) -> str:
        """Say what the training loss shows to have gone wrong; empty where nothing has."""
        simple = metrics.get("unigram_bits", metrics.get("mean_mse"))
        return "" if simple is None else self.curve.alarm(simple)

    def report(self, run: Path, *, is_over: bool) -> None:
        """Write RUN/report.html, with masks, attention and words where there is time for them."""
        from beit.common.overview.report.automatic import write_report

        draw = report_pictures(run, self.store, self.config) if is_over else {}
        write_report(run, draw=draw)

    def memory(self) -> dict[str, Any]:
        """Return what later evaluations are judged by."""
        return self.judge.state() | {"curve": self.curve.state()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Judge on as before."""
        self.judge.restore(memory)
        self.curve.restore(memory.get("curve", {}))

    def pictures(self, model: torch.nn.Module, step: int) -> dict[str, Image]:
        """Draw a few held-out images as the model completes them, if their words can be painted."""
        shown = self._reconstruction
        if shown is None:
            return {}
        predicted = shown.predict(model, self.world.device)  # by all ranks: ZeRO 3 needs them
        if not self.world.is_main:
            return {}
        decode = self._decoder.decode if self._decoder else None
        facts = f"step {step} of {self.data.plan.total_steps}; {self.config.mask.mode} masks"
        return {"reconstruction": shown.draw(predicted, decode, heading="Masked images, completed", facts=facts)}

    @cached_property
    def _reconstruction(self) -> Reconstruction | None:
        """What evaluations draw, the same on every rank; None where they draw nothing."""
        if not self.config.held_out.pictures or not self.held_out_images.shard_sizes.sum():
            return None
        return self.world.run_on_main(self._find_reconstruction)

    def _find_reconstruction(self) -> Reconstruction | None:
        if self.tokens is not None and self._decoder is None:
            return None
        try:
            return build_reconstruction(self.store, self.config, self.tokens, num_images=self.config.held_out.pictures)
        except InputError as error:  # what cannot be drawn can still be trained on
            logger.warning("evaluations draw no pictures: %s", error)
            return None

    @cached_property
    def _decoder(self) -> Tokenizer | None:
        """What paints words, on rank 0; None where there are none or nothing can."""
        if self.tokens is None:
            return None
        if self.tokens.encoder is not None:
            return self.tokens.encoder if self.tokens.encoder.can_decode else None
        assert self.store.info.tokenizer is not None
        return find_decoder(self.store.info.tokenizer, self.world.device)

    @cached_property
    def held_out(self) -> HeldOut:
        """What measures the learning signal."""
        return HeldOut(
            config=self.config,
            step=self.step,
            transform=self.transform(fixed_masks=True),
            train=self.dataset,
            held_out=self.held_out_images,
            vocab_size=self.tokens.vocab_size if self.tokens else 0,
            world=self.world,
        )

    def save_artifacts(
        self, state: dict[str, Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Write `directory`/encoder: every tensor of the model, under the official names."""
        best, facts = metrics.get(BEST_BLOCK), self.start.facts
        if best is not None:
            facts["best_block"] = int(best)
        continued = self.start.continued
        description = EncoderConfig(
            architecture=self.vit,
            normalization=self.start.normalization,
            task="pretrain",
            vocab_size=self.tokens.vocab_size if self.tokens else None,
            **facts,
            decoding=self.store.info.source.decoding.of_any_size(),
            provenance={
                "step": step,
                "total_steps": self.data.plan.total_steps,
                "metrics": dict(metrics),
                "store": self.store.location,
                "store_sha256": self.store.index_sha256,
                "objective": self.config.objective.kind,
                "tokenizer": self.tokens.name if self.tokens else None,
                "tokenizer_fingerprint": self.tokens.fingerprint if self.tokens else None,
                "tokenizer_online": bool(self.tokens and self.tokens.encoder is not None),
                "views": self.store.info.views,
                **({} if continued is None else {"init": continued.provenance()}),
            },
        )
        save_model(directory / ENCODER, merge_state(state), description)
