"""`beit finetune classification`: from labelled images, settings and an encoder to a run directory with a model in it.

The loop, checkpoints and resume are `beit.common.training.trainer`; here is what is particular to classification.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.common.forecast.hardware import Hardware
from beit.common.forecast.training import TrainingForecast
from beit.common.pages.intervals import share_interval
from beit.common.pages.numbers import percent, percent_range
from beit.common.processes.distributed import World
from beit.common.processes.signals import stop_on_signals
from beit.common.reading.contents import Watched, contents_sha256
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.runs.idle import warn_of_idle
from beit.common.runs.kinds import CLASSIFICATION, require_command
from beit.common.runs.layout import MODEL
from beit.common.runs.outputs import written
from beit.common.sources.labels import all_listed
from beit.common.training.data import Batch, TrainingData
from beit.common.training.judge import Goal
from beit.common.training.trainer import train
from beit.common.vit.adaptation import merge_state, parameters_in_words
from beit.common.vit.channels import describe_fit
from beit.common.vit.description import EncoderConfig, read_encoder_config
from beit.common.vit.flops import training_flops
from beit.common.vit.param_groups import param_groups
from beit.finetune.artifact import StartingPoint, build_classifier, starting_point
from beit.finetune.at_the_end import Measured, attention_of, mistakes_of
from beit.finetune.augment.augment import TrainTransform
from beit.finetune.best_model import BestModel, saved_when_measured
from beit.finetune.classification.model import ImageClassifier
from beit.finetune.classification.step import ClassificationStep, balanced_weights
from beit.finetune.config import FinetuneConfig, needs
from beit.finetune.data import LabelledData, open_training_data
from beit.finetune.evaluation.evaluate import crop_pct_of, evaluation_loader, observe
from beit.finetune.evaluation.outcomes import OutcomeLog, Outcomes
from beit.finetune.evaluation.scores import Metrics, MultiLabelMetrics, compute_metrics
from beit.finetune.forecast import forecast
from beit.finetune.in_force import in_force, unnamed_shape

logger = logging.getLogger(__name__)


@stop_on_signals()
def run(config: FinetuneConfig, *, data: str, run_dir: Path, resume: str = "auto") -> None:
    """Fine-tune a classifier on the labelled images of `data` and write everything to `run_dir`; on every rank.

    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    require_command(run_dir, CLASSIFICATION)
    start = starting_point(config)
    warn_of_idle(config, needs(config))
    warning = unnamed_shape(config, start.architecture)
    config = replace(in_force(config, start.architecture, start.normalization), source=start.reading(config))
    images = open_training_data(data, config.data, multi_label=config.classifier.multi_label, reading=config.source)
    task, result = train(
        config, lambda world: ClassificationTask(config, images, start, world, warning), run_dir=run_dir, resume=resume
    )
    if task.world.is_main:
        best = read_encoder_config(run_dir / MODEL).provenance
        if best["metrics"]:
            logger.info("best model: %s at step %d", _score(best["metrics"], _main(images)), best["step"])
        if result.step > result.start_step:
            logger.info("%s", written(run_dir))


@dataclass
class ClassificationTask:
    """Classification of one labelled data set, as the training loop wants it (`beit.common.training.task.Task`)."""

    config: FinetuneConfig
    images: LabelledData
    start: StartingPoint
    world: World
    warning: str | None = None
    """What is to be said before it begins."""

    def __post_init__(self) -> None:
        """Build the order; identical on every rank."""
        config, shown = self.config, self.images.train
        if config.data.balanced:
            shown = shown.balanced(seed=config.train.seed)
        self.dataset = LabelledDataset(shown, cache_bytes=config.reader.parquet_cache_bytes)
        transform = TrainTransform(
            img_size=self.start.architecture.img_size,
            augment=config.augment,
            seed=config.train.seed,
            channels=self.start.architecture.in_chans,
            fill=self.start.normalization.mean,
        )
        is_measured = self.images.val is not None
        rhythm = replace(
            config, checkpoint=saved_when_measured(config.checkpoint, config.train, is_measured=is_measured)
        )
        together = 2 if config.mix.is_on else 1
        watched = {"training images": Watched(self.images.train)}
        if self.images.val is not None:
            watched["validation images"] = Watched(self.images.val, ("data.val", "data.num_val_images"))
        self.data = TrainingData(
            self.dataset, transform, rhythm, world=self.world, watched=watched, rows_together=together
        )
        self.step = self._objective()
        self.description = EncoderConfig(
            architecture=self.start.architecture,
            normalization=self.start.normalization,
            task="classification",
            class_names=self.images.class_names,
            pooling=config.classifier.pooling,
            multi_label=self.images.is_multi_label,
            crop_pct=config.evaluation.crop_pct,
            decoding=self.images.train.decoding.of_any_size(),
        )
        self.measured: tuple[int, Metrics | MultiLabelMetrics] | None = None
        """Step and result of the latest evaluation in this process."""
        self._said: dict[int, Outcomes] = {}
        self._best_step: int | None = None
        """What was said at the latest evaluation and, once it is saved, of the best model in this process."""

    @cached_property
    def model(self) -> ImageClassifier:
        """The encoder with a head for the classes of the data."""
        return build_classifier(self.config, self.start, self.images.class_names)

    def _objective(self) -> ClassificationStep:
        mean, std = self.start.normalization
        classifier, train = self.config.classifier, self.images.train
        is_balanced = classifier.class_weights == "balanced"
        table = self.images.label_table(train)
        return ClassificationStep(
            mean=mean,
            std=std,
            label_smoothing=classifier.label_smoothing,
            mix=self.config.mix,
            seed=self.config.train.seed,
            class_weights=balanced_weights(train.class_counts().tolist()) if is_balanced else None,
            label_table=None if table is None else torch.from_numpy(table).float(),
        )

    @property
    def goal(self) -> Goal | None:
        """What evaluations are judged by."""
        if self.images.val is None:
            return None
        # The best model is chosen among the saved ones by `save_artifacts`, which keeps the newest beside it.
        return Goal(
            metric=f"val_{_main(self.images)}",
            is_higher_better=True,
            keep_best=False,
            is_chosen_by_saves=True,
            measured_on=self._validation_sha256,
        )

    @cached_property
    def _validation_sha256(self) -> str | None:
        """Identity of the validation images: the best of two models is known only where both saw the same."""
        return None if self.images.val is None else contents_sha256(self.images.val)

    @cached_property
    def _best_model(self) -> BestModel:
        main = _main(self.images)
        return BestModel(validation_sha256=self._validation_sha256, score=lambda found: (found[main], -found["loss"]))

    @cached_property
    def _source_sha256(self) -> str:
        return contents_sha256(self.images.source)

    def begin(self, run: Path) -> None:
        """Say what is about to happen."""
        plan, val = self.data.plan, self.images.val
        logger.info(
            "%s from %s, %s; %d training and %d validation images",
            self.start.architecture.name,
            self.config.encoder,
            parameters_in_words(self.model),
            len(self.images.train),
            0 if val is None else len(val),
        )
        logger.info("%s", all_listed(self.images.class_names))
        if self.config.data.balanced:
            logger.info("balanced: an epoch shows %d images, as many of every class", len(self.dataset.index))
        logger.info("%s", plan)
        if self.warning and self.world.is_main:
            logger.warning("%s", self.warning)
        if fit := describe_fit(self.images.train.decoding.num_channels, self.start.architecture.in_chans):
            logger.info("%s", fit)
        if val is None:
            logger.info("no --val: nothing is measured, and the model is that of the last step")

    def evaluation_images(self) -> float:
        """Return how many images one evaluation looks at."""
        return 0 if self.images.val is None else len(self.images.val)

    def forecast(self, hardware: Hardware) -> TrainingForecast:
        """Return what the run takes."""
        return forecast(
            self.config,
            num_images=len(self.dataset.index),
            num_classes=len(self.images.class_names),
            num_val=0 if self.images.val is None else len(self.images.val),
            hardware=hardware,
            shape=self.start.architecture,
            adaptation=self.start.adaptation,
            plan=self.data.plan,
        )

    def flops_per_sample(self) -> int:
        """Return the arithmetic of one image."""
        shape, adaptation = self.start.architecture, self.start.adaptation
        return training_flops(
            shape,
            head_rows=1,
            head_outputs=len(self.images.class_names),
            frozen_blocks=adaptation.frozen_blocks(shape.depth),
            lora_rank=adaptation.rank,
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay matrices, spare vectors, and let lower layers learn more slowly (BEiT's grouping)."""
        return param_groups(
            self.model,
            weight_decay=self.config.optimizer.weight_decay,
            layer_decay=self.config.layer_decay,
            depth=self.start.architecture.depth,
        )

    def forward(self, model: torch.nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and accuracy of one micro-batch."""
        return self.step(model, batch, step)

    def evaluate(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """Measure the main numbers on the validation images."""
        val = self.images.val
        if val is None:
            return {}
        loader = evaluation_loader(
            val, self.description, world=self.world, settings=self.config.evaluation, reader=self.config.reader
        )
        log = OutcomeLog(self.images.label_table(val))
        outcomes = observe(model, loader, self.description, num_batches=len(loader), world=self.world, log=log)
        if outcomes is None:
            return {}
        metrics = compute_metrics(outcomes)
        self.measured = step, metrics
        self._said[step] = outcomes
        logger.info("step %d: %s on %d images", step, metrics.describe(), metrics.num_images)
        return {f"val_{name}": float(value) for name, value in asdict(metrics).items()}

    def save_artifacts(
        self, state: dict[str, Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Write `directory`/last, and `directory`/model where this step did better than any before."""
        # The loop hands over the latest evaluation, which may be that of an earlier step.
        result = self.measured[1] if self.measured is not None and self.measured[0] == step else None
        description = replace(self.description, provenance=self._provenance(step, result))
        is_best = self._best_model.save(
            merge_state(state),
            directory,
            description,
            step=step,
            start_step=self.data.start_step,
            result=None if result is None else asdict(result),
        )
        if step in self._said:
            kept = step if is_best else self._best_step
            self._best_step, self._said = kept, {at: said for at, said in self._said.items() if at in (step, kept)}

    def report(self, run: Path, *, is_over: bool) -> None:
        """Write RUN/report.html, with mistakes and attention where there is time for them."""
        from beit.common.overview.report.automatic import write_report

        draw = {}
        if is_over:
            draw["attention"] = attention_of(run, self.images.val or self.images.train)
        if is_over and self._said and self.images.val is not None:
            step = self._best_step if self._best_step in self._said else max(self._said)
            measured = Measured(
                step=step,
                outcomes=self._said[step],
                images=self.images.val,
                class_names=self.images.class_names,
                img_size=self.start.architecture.img_size,
                crop_pct=crop_pct_of(self.config.evaluation, self.description),
            )
            draw["mistakes"] = mistakes_of(run, measured)
        write_report(run, draw=draw)

    def _provenance(self, step: int, result: Metrics | MultiLabelMetrics | None) -> dict[str, Any]:
        train = self.images.train
        return {
            "step": step,
            "total_steps": self.data.plan.total_steps,
            "metrics": {} if result is None else asdict(result),
            "validation_data": None if self.images.val is None else self.images.val.location,
            "validation_sha256": self._validation_sha256,
            "data": train.location,
            "data_sha256": train.index_sha256,
            "source_sha256": self._source_sha256,
            "num_labels": len(train),
            "seed": self.config.train.seed,
            "encoder": self.config.encoder,
            "encoder_provenance": None if self.start.encoder is None else self.start.encoder.provenance,
        }


def _score(metrics: Mapping[str, Any], main: str) -> str:
    """Write the main number of a model and, where it is a share of images, how far so few images can be trusted."""
    score = f"{main} {percent(metrics[main])}"
    if main != "top1":
        return score
    limits = share_interval(metrics[main], metrics["num_images"])
    return f"{score} ({percent_range(*limits)} with 95 % confidence, {metrics['num_images']} images)"


def _main(images: LabelledData) -> str:
    """Return the name of the number that models are judged by."""
    return "map" if images.is_multi_label else "top1"
