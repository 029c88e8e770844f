"""`beit finetune segmentation`: from images with masks, settings and an encoder to a run directory with a model in it.

The loop, checkpoints and resume are `beit.common.training.trainer`; here is what is particular to segmentation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from beit.common.forecast.hardware import Hardware
from beit.common.forecast.training import TrainingForecast
from beit.common.forecast.words import in_words
from beit.common.pages.numbers import percent
from beit.common.processes.distributed import World
from beit.common.processes.signals import stop_on_signals
from beit.common.reading.contents import Watched
from beit.common.runs.idle import warn_of_idle
from beit.common.runs.kinds import SEGMENTATION, require_command
from beit.common.runs.layout import MODEL
from beit.common.runs.outputs import written
from beit.common.training.data import Batch, TrainingData
from beit.common.training.judge import Goal
from beit.common.training.trainer import train
from beit.common.vit.adaptation import merge_state, parameters_in_words
from beit.common.vit.channels import describe_fit
from beit.common.vit.config import Adaptation, for_channels
from beit.common.vit.description import read_encoder_config
from beit.common.vit.flops import training_flops
from beit.common.vit.param_groups import param_groups
from beit.finetune.artifact import StartingPoint, starting_point
from beit.finetune.at_the_end import attention_of
from beit.finetune.best_model import BestModel, saved_when_measured
from beit.finetune.classification.step import balanced_weights
from beit.finetune.evaluation.prediction_sheet import ROWS, prediction_sheet
from beit.finetune.evaluation.segmentation import measure_masks, measured_sha256
from beit.finetune.evaluation.segmentation_scores import SegmentationMetrics
from beit.finetune.forecast import forecast_segmentation
from beit.finetune.in_force import in_force, unnamed_shape
from beit.finetune.masks.dataset import MaskedDataset
from beit.finetune.masks.index import MaskedData, open_training_masks
from beit.finetune.segmentation.artifact import SegmentationInfo, build_segmenter, describe, settled_head
from beit.finetune.segmentation.config import IMAGENET, SegmentationConfig, needs
from beit.finetune.segmentation.cost import evaluation_windows, head_flops
from beit.finetune.segmentation.crops import SceneTransform
from beit.finetune.segmentation.heads import head_in_words
from beit.finetune.segmentation.inference import require_no_gaps, require_room
from beit.finetune.segmentation.model import Segmenter
from beit.finetune.segmentation.norm import require_statistics
from beit.finetune.segmentation.step import SegmentationStep

logger = logging.getLogger(__name__)

_SHOWN_CLASSES = 12
"""Whose shares are told, the largest; arbitrary."""


@stop_on_signals()
def run(config: SegmentationConfig, *, data: str, run_dir: Path, resume: str = "auto") -> None:
    """Train a segmenter on the images and masks of `data` and write everything to `run_dir`; on every rank.

    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    require_command(run_dir, SEGMENTATION)
    start = scene_starting_point(config)
    warn_of_idle(config, needs(config))
    warning = unnamed_shape(config, start.architecture)
    config = in_force(config, start.architecture, start.normalization)
    config = replace(config, head=settled_head(config, start), source=start.reading(config))
    require_no_gaps(config.evaluation, start.architecture.img_size)
    scenes = open_training_masks(data, config.data, reading=config.source)
    if scenes.val is not None:
        require_room(config.evaluation, start.architecture, int(scenes.val.pixel_counts.sum(1).max()))
    task, result = train(
        config, lambda world: SegmentationTask(config, scenes, start, world, warning), run_dir=run_dir, resume=resume
    )
    if task.world.is_main:
        best = read_encoder_config(run_dir / MODEL).provenance
        if best["metrics"]:
            logger.info("best model: mIoU %s at step %d", percent(best["metrics"]["miou"]), best["step"])
        if result.step > result.start_step:
            logger.info("%s", written(run_dir))


def scene_starting_point(config: SegmentationConfig) -> StartingPoint:
    """Decide what a run starts from, with the normalisation that the settings ask for."""
    if config.normalization == "encoder":
        return starting_point(config)
    # Settings that were in force name it, too, where an encoder has another.
    own = replace(config, image=replace(config.image, mean=None, std=None))
    start = starting_point(own)
    return replace(start, normalization=for_channels(IMAGENET, start.architecture.in_chans))


@dataclass
class SegmentationTask:
    """Segmentation of one set of images, as the training loop wants it (`beit.common.training.task.Task`)."""

    config: SegmentationConfig
    scenes: MaskedData
    start: StartingPoint
    world: World
    warning: str | None = None
    """What is to be said before it begins."""

    def __post_init__(self) -> None:
        """Build the order; identical on every rank."""
        config, scenes = self.config, self.scenes
        mean, std = self.start.normalization
        transform = SceneTransform(
            img_size=self.start.architecture.img_size,
            augment=config.augment,
            decoder=scenes.train.decoder,
            seed=config.train.seed,
            channels=self.start.architecture.in_chans,
            fill=mean,
        )
        is_measured = scenes.val is not None
        rhythm = replace(
            config, checkpoint=saved_when_measured(config.checkpoint, config.train, is_measured=is_measured)
        )
        watched = {"training images": Watched(scenes.train.images)}
        if scenes.val is not None:
            watched["validation images"] = Watched(scenes.val.images, ("data.val", "data.num_val_images"))
        # Batch statistics are of all images that go through the model at a time.
        is_batch = config.head.kind != "linear" and config.head.norm == "batch"
        self.data = TrainingData(
            MaskedDataset(scenes.train, cache_bytes=config.reader.parquet_cache_bytes),
            transform,
            rhythm,
            world=self.world,
            watched=watched,
            rows_together=None if is_batch else 1,
            is_joint=is_batch,
        )
        is_balanced = config.class_weights == "balanced"
        self.step = SegmentationStep(
            mean=mean,
            std=std,
            auxiliary_weight=config.head.auxiliary_weight,
            class_weights=balanced_weights(scenes.train.class_pixels().tolist()) if is_balanced else None,
        )
        self.info = SegmentationInfo(head=config.head, classes=scenes.classes, inference=config.evaluation)
        self.measured: tuple[int, SegmentationMetrics] | None = None
        """Step and result of the latest evaluation in this process."""

    @cached_property
    def model(self) -> Segmenter:
        """The encoder with a head for the classes of the data."""
        model = build_segmenter(self.config, self.start, self.scenes.classes)
        require_statistics(model.modules(), self.data.plan.micro_batch_size * self.world.world_size)
        model.normalization = self.start.normalization
        return model

    @property
    def goal(self) -> Goal | None:
        """What evaluations are judged by."""
        if self.scenes.val is None:
            return None
        # The best model is chosen among the saved ones by `save_artifacts`, which keeps the newest beside it.
        return Goal(
            metric="val_miou",
            is_higher_better=True,
            keep_best=False,
            is_chosen_by_saves=True,
            measured_on=self._best_model.validation_sha256,
        )

    @cached_property
    def _best_model(self) -> BestModel:
        val = self.scenes.val
        return BestModel(
            validation_sha256=None if val is None else measured_sha256(val),
            score=lambda found: (found["miou"], found["pixel_accuracy"]),
        )

    @cached_property
    def _source_sha256(self) -> str:
        return measured_sha256(self.scenes.source)

    def begin(self, run: Path) -> None:
        """Say what is about to happen."""
        val, head = self.scenes.val, self.config.head
        logger.info(
            "%s from %s, %s, %s; %d training and %d validation images",
            self.start.architecture.name,
            self.config.encoder,
            head_in_words(head),
            parameters_in_words(self.model),
            len(self.scenes.train),
            0 if val is None else len(val),
        )
        self._tell_classes()
        logger.info("%s", self.data.plan)
        if self.warning and self.world.is_main:
            logger.warning("%s", self.warning)
        if fit := describe_fit(self.scenes.train.images.decoding.num_channels, self.start.architecture.in_chans):
            logger.info("%s", fit)
        if val is None:
            logger.info("no --val: nothing is measured, and the model is that of the last step")

    def _tell_classes(self) -> None:
        """Say how the labelled pixels of the training images are spread over the classes, and which have none."""
        pixels = self.scenes.train.class_pixels()
        shares = sorted(zip((pixels / max(1, pixels.sum())).tolist(), self.scenes.classes.names, strict=True))[::-1]
        shown = ", ".join(f"{name} {percent(share)}" for share, name in shares[:_SHOWN_CLASSES])
        more = f", and {len(shares) - _SHOWN_CLASSES} more" if len(shares) > _SHOWN_CLASSES else ""
        logger.info("%d classes, of the labelled pixels: %s%s", len(shares), shown, more)
        absent = [name for share, name in shares[::-1] if share == 0]
        if absent and self.world.is_main:
            listed = ", ".join(absent[:_SHOWN_CLASSES]) + (", ..." if len(absent) > _SHOWN_CLASSES else "")
            logger.warning(
                "no pixel of the training images is of %d class%s (%s); the model will not find %s",
                len(absent),
                "es" * (len(absent) > 1),
                listed,
                "them" if len(absent) > 1 else "it",
            )

    def evaluation_images(self) -> float:
        """Return what one evaluation costs, in crops; those that are drawn are looked at twice."""
        val = self.scenes.val
        if val is None:
            return 0.0
        crop_px = self.start.architecture.img_size
        windows = evaluation_windows(val.pixel_counts, self.config.evaluation, crop_px=crop_px)
        return windows * (1 + min(ROWS, len(val)) / len(val))

    def forecast(self, hardware: Hardware) -> TrainingForecast:
        """Return what the run takes."""
        return forecast_segmentation(
            self.config,
            shape=self.start.architecture,
            adaptation=self.start.adaptation,
            head=self.config.head,
            num_images=len(self.scenes.train),
            num_classes=len(self.scenes.classes),
            evaluated_crops=self.evaluation_images(),
            hardware=hardware,
            plan=self.data.plan,
        )

    def flops_per_sample(self) -> int:
        """Return the arithmetic of one crop."""
        return self._flops(self.start.adaptation)

    def quicker(self, flops_per_second: float) -> str | None:
        """Return the training of the head alone with its time, where there is an encoder to keep as it is."""
        depth, plan = self.start.architecture.depth, self.data.plan
        head_alone = Adaptation(last_blocks=0)
        if self.start.encoder is None or self.start.adaptation == head_alone:
            return None
        seconds = self._flops(head_alone) * plan.global_batch_size * plan.total_steps / flops_per_second
        return f"the head alone takes about {in_words(seconds)}: --set freeze_blocks={depth}"

    def _flops(self, adaptation: Adaptation) -> int:
        shape = self.start.architecture
        frozen = adaptation.frozen_blocks(shape.depth)
        encoder = training_flops(shape, head_rows=0, head_outputs=0, frozen_blocks=frozen, lora_rank=adaptation.rank)
        return encoder + 3 * self._head_flops

    @cached_property
    def _head_flops(self) -> int:
        return head_flops(self.start.architecture, self.config.head, num_classes=len(self.scenes.classes))

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay matrices, spare vectors and CLS, and let lower layers learn more slowly; neck and heads do not."""
        return param_groups(
            self.model,
            weight_decay=self.config.optimizer.weight_decay,
            layer_decay=self.config.layer_decay,
            depth=self.start.architecture.depth,
        )

    def forward(self, model: torch.nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and accuracy of one micro-batch."""
        return self.step(model, batch)

    def evaluate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """Measure the main numbers on the validation images."""
        val = self.scenes.val
        if val is None:
            return {}
        metrics = measure_masks(model, val, self.info, world=self.world, reader=self.config.reader)
        if metrics is None:
            return {}
        self.measured = step, metrics
        logger.info("step %d: %s on %d images", step, metrics.describe(), metrics.num_images)
        return {f"val_{name}": float(value) for name, value in asdict(metrics).items()}

    def pictures(self, model: torch.nn.Module, step: int) -> Mapping[str, Image]:
        """Draw what the model says of a few validation images."""
        val = self.scenes.val
        if val is None:
            return {}
        facts = f"after {step} steps" + ("" if self.measured is None else f"; {self.measured[1].describe()}")
        sheet = prediction_sheet(model, val, self.info, heading="Validation images, segmented", facts=facts)
        return {} if sheet is None else {"predictions": sheet}

    def report(self, run: Path, *, is_over: bool) -> None:
        """Write RUN/report.html, with attention where there is time for it."""
        from beit.common.overview.report.automatic import write_report

        shown = self.scenes.val or self.scenes.train
        write_report(run, draw={"attention": attention_of(run, shown.images)} if is_over else {})

    def save_artifacts(
        self, state: dict[str, Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Write `directory`/last, and `directory`/model where this step did better than any before."""
        # The loop hands over the latest evaluation, which may be that of an earlier step.
        measured = self.measured[1] if self.measured is not None and self.measured[0] == step else None
        result = None if measured is None else asdict(measured)
        encoder = self.start.encoder
        description = describe(
            self.start.architecture,
            self.start.normalization,
            self.info,
            best_block=None if encoder is None else encoder.best_block,
            decoding=self.scenes.train.images.decoding.of_any_size(),
            provenance=self._provenance(step, result),
        )
        self._best_model.save(
            merge_state(state), directory, description, step=step, start_step=self.data.start_step, result=result
        )

    def _provenance(self, step: int, result: Mapping[str, Any] | None) -> dict[str, Any]:
        scenes = self.scenes
        return {
            "step": step,
            "total_steps": self.data.plan.total_steps,
            "metrics": dict(result or {}),
            "validation_data": None if scenes.val is None else scenes.val.location,
            "validation_sha256": self._best_model.validation_sha256,
            "data": scenes.train.location,
            "data_sha256": scenes.train.index_sha256,
            "source_sha256": self._source_sha256,
            "num_labels": len(scenes.train),
            "seed": self.config.train.seed,
            "encoder": self.config.encoder,
            "encoder_provenance": None if self.start.encoder is None else self.start.encoder.provenance,
        }
