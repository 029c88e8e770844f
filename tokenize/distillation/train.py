"""`beit tokenizer train --kind vqkd`: from images, a teacher and settings to a tokenizer, whose folder is the run's.

The loop, checkpoints and resume are `beit.common.training.trainer`; here is what is particular to distilled words. The
directory holds the tokenizer of the evaluation with the highest cosine to the teacher on held-out images; before the
first, the newest one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from beit.common.errors import InputError, require
from beit.common.forecast.hardware import Hardware
from beit.common.forecast.training import TrainingForecast
from beit.common.processes.distributed import World, init_distributed
from beit.common.processes.signals import stop_on_signals, under_way
from beit.common.reading.contents import Watched
from beit.common.rng import CounterRng, stable_hash64
from beit.common.runs.idle import warn_of_idle
from beit.common.runs.outputs import written
from beit.common.storage.samples import Record
from beit.common.tokenizer import DType
from beit.common.tokenizers.directory import save_tokenizer
from beit.common.tokenizers.patches import PatchMeans
from beit.common.tokenizers.quantizer import Tally
from beit.common.tokenizers.vqkd import VQKD
from beit.common.training.data import Batch, TrainingData
from beit.common.training.engine import choose_precision
from beit.common.training.judge import Goal
from beit.common.training.trainer import train
from beit.common.vit.param_groups import param_groups
from beit.tokenize.distillation.config import DistillationConfig, TeacherRecord, needs
from beit.tokenize.distillation.data import IMAGES, TEACHER_IMAGES, ViewTransform
from beit.tokenize.distillation.forecast import forecast_distillation
from beit.tokenize.distillation.model import DistillationModel, teacher_cosine
from beit.tokenize.distillation.report import batches_of, distillation_card, distillation_metrics, words_sheet
from beit.tokenize.distillation.words import CODES_PER_WORD, place_words, restart_words, used_words
from beit.tokenize.teacher import Teacher, cost_of, load_teacher
from beit.tokenize.tokenizer_training.card import training_record
from beit.tokenize.tokenizer_training.data import Images, introduction, open_split, read_samples

if TYPE_CHECKING:
    from beit.tokenize.kinds import TeacherChoice

logger = logging.getLogger(__name__)

_DTYPES: Mapping[str, DType] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SHEET_IMAGES = 8


def train_distilled(
    config: DistillationConfig, source: str, out_dir: Path, *, teacher: TeacherChoice, resume: str = "auto"
) -> None:
    """Distil words from a teacher on the images of `source` and write the tokenizer to `out_dir`; on every rank.

    Args:
        config: Settings.
        source: Folder, tars, Parquet files or list of images, or "synthetic:N" for N generated ones.
        out_dir: New, empty, or of the same run. Gets the tokenizer (model.safetensors, decoder.safetensors,
            config.json, README.md), beside checkpoints and metrics, and words.png.
        teacher: Whose features.
        resume: "auto", "never", or a checkpoint.
    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    warn_of_idle(config, needs(config))
    with stop_on_signals():  # the same signals as the training inside, so that one that comes now is not lost
        timeouts = config.train.collective_timeout_seconds, config.train.meeting_timeout_seconds
        world = init_distributed(timeout_seconds=timeouts[0], meeting_timeout_seconds=timeouts[1])
        loaded = _load_fitting(teacher, config, world)
        config = replace(config, teacher=TeacherRecord(fingerprint=loaded.fingerprint))

        def build(world: World) -> DistillationTask:
            images = world.run_on_main(lambda: open_split(source, config, img_size=config.model.img_size))
            return DistillationTask(config, source, images, loaded, teacher.block, world)

        task, result = train(config, build, run_dir=out_dir, resume=resume)
    if task.world.is_main:
        best = result.best
        if best.value is not None:
            logger.info("best tokenizer: cosine %.4f to the teacher, of step %d", best.value, best.step)
        if result.step > result.start_step:
            logger.info("%s", written(out_dir))


def _load_fitting(choice: TeacherChoice, config: DistillationConfig, world: World) -> Teacher:
    """Load the teacher, in the precision of the run, and see that it fits the settings."""
    setting = config.train.precision
    dtype = _DTYPES[choose_precision("auto", world) if setting == "auto" else setting]
    teacher = load_teacher(choice.name, block=choice.block, device=world.device, dtype=dtype)
    wanted, model = config.teacher.fingerprint, config.model
    require(
        wanted in (None, teacher.fingerprint),
        f"teacher.fingerprint ({wanted}) is not that of --teacher {choice.name} ({teacher.fingerprint}); name the "
        "teacher that these settings were made with, or leave teacher.fingerprint out",
    )
    grid, own = teacher.grid_size, model.grid_size
    require(
        grid == own,
        f"--teacher {choice.name} gives {grid} x {grid} features per image of {teacher.img_size} px, but "
        f"model.img_size ({model.img_size}) / model.patch_size ({model.patch_size}) is {own} words per side; let them "
        f"agree, as with --set model.img_size={grid * model.patch_size}",
    )
    return teacher


@dataclass
class DistillationTask:
    """Words distilled from a teacher, as the training loop wants it (`beit.common.training.task.Task`).

    Args:
        config: Settings.
        source: As the user named it.
        images: Training and held-out images.
        teacher: On the device.
        teacher_block: As the user gave it.
        world: The ranks.
    """

    config: DistillationConfig
    source: str
    images: Images
    teacher: Teacher
    teacher_block: int | None
    world: World

    def __post_init__(self) -> None:
        """Build the order; identical on every rank."""
        config = self.config
        self.transform = ViewTransform(
            side=config.model.img_size,
            teacher_side=self.teacher.img_size,
            augment=config.augment,
            seed=config.train.seed,
        )
        watched = {
            "training images": Watched(self.images.train.index),
            "held-out images": Watched(self.images.held_out.index),
        }
        self.data = TrainingData(self.images.train, self.transform, config, world=self.world, watched=watched)
        self._tally: Tally | None = None
        """Of the step under way, on this rank."""
        self._codes: list[Tensor] = []
        """Of the step under way, if unused words are looked for at its end."""
        self._step = 0
        self._patches: tuple[int, Tensor] | None = None
        """Mean patches, and the step whose words they are of."""

    @cached_property
    def model(self) -> DistillationModel:
        """Tokenizer and decoder."""
        return DistillationModel(
            self.config.model, decoder_depth=self.config.decoder.depth, teacher_dim=self.teacher.dim
        )

    @property
    def goal(self) -> Goal:
        """What evaluations are judged by."""
        return Goal(metric="eval_teacher_cosine", is_higher_better=True, keep_best=True)

    def begin(self, run: Path) -> None:
        """Say what is about to happen, and give the words of a new run their first places."""
        shape, vqkd = self.config.model, self.model.vqkd
        made = f"tokenizer of {sum(parameter.numel() for parameter in vqkd.parameters()) / 1e6:.1f} M parameters"
        sides = {"side": shape.patch_size, "view": shape.img_size}
        logger.info("%s", introduction(made, num_words=shape.vocab_size, images=self.images, **sides))
        logger.info("%s; teacher %s, %d features", self.data.plan, self.teacher.name, self.teacher.dim)
        self._tally, self._codes = None, []  # what was tried out while a micro-batch was sought does not count
        if not self.data.is_resumed:
            self._look_around()

    def _look_around(self) -> None:
        """Put the words where codes are and measure the teacher's features; rank 0 does, all ranks take it over."""
        self.model.to(self.world.device)
        with under_way("the first words are placed"):
            self.world.run_on_main(self._begin_words)
        self._share()

    @torch.no_grad()
    def _begin_words(self) -> None:
        shape, model = self.config.model, self.model
        count = -(-shape.vocab_size * CODES_PER_WORD // shape.grid_size**2)
        logger.info("placing the first words among the codes of %d images", count)
        views = self._views(count, "first words")
        codes, features = [], []
        for part in batches_of(views, self.world.device):
            codes.append(model.vqkd.codes(part[IMAGES]).flatten(0, 2))
            features.append(self.teacher.features(part.get(TEACHER_IMAGES, part[IMAGES])).cpu())
        per_step = float(self.data.plan.global_batch_size * shape.grid_size**2)
        generator = self._generator("first words")
        place_words(model.vqkd.quantizer, torch.cat(codes), codes_per_step=per_step, generator=generator)
        if self.config.objective.standardise == "channel":
            model.measure(torch.cat(features))

    def _share(self) -> None:
        """Give all ranks the buffers of rank 0: the words and what they are moved by."""
        buffers = dict(self.model.named_buffers())
        for name, value in self.world.broadcast({name: value.cpu() for name, value in buffers.items()}).items():
            buffers[name].copy_(value)

    def forecast(self, hardware: Hardware) -> TrainingForecast:
        """Return what the run takes."""
        return forecast_distillation(
            self.config,
            cost_of(self.teacher),
            num_images=int(self.images.train.shard_sizes.sum()),
            num_held_out=int(self.images.held_out.shard_sizes.sum()),
            hardware=hardware,
            plan=self.data.plan,
        )

    @property
    def _quantizer(self) -> Any:
        return self.model.vqkd.quantizer

    def evaluation_images(self) -> float:
        """Return what one evaluation costs, in images trained on: two views each, forward only, and the teacher."""
        held_out = int(self.images.held_out.shard_sizes.sum())
        return float(min(self.config.data.num_eval_images, held_out))

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay matrices only."""
        return param_groups(self.model, weight_decay=self.config.optimizer.weight_decay)

    def forward(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and metrics of one micro-batch, and add its codes to the tally of the step."""
        assert isinstance(model, DistillationModel)
        targets = model.standardised(self.teacher.features(batch.get(TEACHER_IMAGES, batch[IMAGES])))
        found = model(batch[IMAGES])
        quantizer, words = model.vqkd.quantizer, found.quantized
        tally = quantizer.tally(found.codes, words.words)
        self._tally = tally if self._tally is None else self._tally + tally
        self._step = step
        if self._is_restart_due(step):
            self._codes.append(found.codes.detach().flatten(0, 2))
        cosine = teacher_cosine(found.features, targets)
        loss = 1.0 - cosine + self.config.objective.commitment_weight * words.commitment
        metrics = {
            "teacher_cosine": cosine.detach(),
            "commitment": words.commitment.detach(),
            "words_used": used_words(quantizer, self.config.objective.restart_threshold),
        }
        return loss, metrics

    def _is_restart_due(self, step: int) -> bool:
        objective = self.config.objective
        done = step + 1
        is_time = done % objective.restart_interval_steps == 0
        return objective.restart_threshold > 0 and is_time and done <= objective.restart_fraction * self._total_steps

    @property
    def _total_steps(self) -> int:
        return self.data.plan.total_steps

    def end_step(self, skipped: Tensor) -> None:
        """Move the words to where the codes of this step are, and put unused ones elsewhere; every rank the same."""
        tally, codes, self._tally, self._codes = self._tally, self._codes, None, []
        assert tally is not None, "a step has at least one micro-batch"
        decay = self.config.objective.codebook_decay
        everywhere = Tally(self.world.add_up(tally.counts), self.world.add_up(tally.sums))
        self._quantizer.follow(everywhere, decay=decay, skipped=skipped)
        if codes and not float(skipped):  # waits for the device, which a restart does anyway
            self._restart(torch.cat(codes))

    def _restart(self, codes: Tensor) -> None:
        """Restart unused words on codes of the step just done, in the order of the data, whatever the ranks."""
        gathered = self.world.gather(codes.cpu())
        if self.world.is_main:
            restart_words(
                self._quantizer,
                torch.cat(gathered).to(self.world.device),
                threshold=self.config.objective.restart_threshold,
                generator=self._generator("restart", self._step),
            )
        self._share()

    def _generator(self, *labels: int | str) -> torch.Generator:
        """Return a random stream that depends on seed and labels only, so that a resumed run repeats it."""
        generator = torch.Generator(self.world.device)
        generator.manual_seed(stable_hash64(self.config.train.seed, *labels) >> 1)
        return generator

    def _views(self, count: int, label: str) -> dict[str, Tensor]:
        """Return one view each of random training images, by name, the same whenever it is called."""
        rng = CounterRng(self.config.train.seed, label)
        num_images = int(self.images.train.shard_sizes.sum())
        rows = [rng.integers(0, num_images - 1) for _ in range(count)]
        return self._stacked(read_samples(self.images.train, rows, lambda record: self.transform.render(record, rng)))

    @cached_property
    def _patch_views(self) -> dict[str, Tensor]:
        return self._views(self.config.data.num_patch_images, "patches")

    @cached_property
    def _eval_views(self) -> dict[str, Tensor]:
        """Views to measure on, by name, uint8 (B, 3, side, side), the same in every evaluation."""
        rng = CounterRng(self.config.train.seed, "evaluation")
        num_images = int(self.images.held_out.shard_sizes.sum())
        rows = rng.permutation(num_images)[: self.config.data.num_eval_images].tolist()

        def render(record: Record) -> dict[str, Any]:
            return self.transform.render(record, rng, with_changed=True)

        return self._stacked(read_samples(self.images.held_out, rows, render))

    def _stacked(self, samples: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Put views of each name together, uint8 (B, 3, side, side) on the CPU."""
        views = list(samples)
        if not views:
            raise InputError(f"none of the images drawn from {self.source} can be read; check the images")
        return {name: torch.from_numpy(np.stack([view[name] for view in views])) for name in views[0]}

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure words on held-out images; rank 0 does, the few images need no help."""
        assert isinstance(model, DistillationModel)
        metrics = self.world.run_on_main(lambda: self._measure(model))
        if self.world.is_main:
            logger.info(
                "step %d: cosine %.4f to the teacher, %d of %d words, perplexity %.0f, "
                "%.1f %% of words stay (%.1f %% by chance)",
                step,
                metrics["eval_teacher_cosine"],
                metrics["eval_words_used"],
                self.config.model.vocab_size,
                metrics["eval_perplexity"],
                100 * metrics["eval_agreement"],
                100 * metrics["eval_agreement_by_chance"],
            )
        return metrics

    def _measure(self, model: DistillationModel) -> dict[str, float]:
        metrics = distillation_metrics(model, self.teacher, self._eval_views, self.world.device)
        return {f"eval_{name}": value for name, value in metrics.items()}

    def pictures(self, model: nn.Module, step: int) -> dict[str, Image]:
        """Draw the first of the measured views beside their words, on rank 0."""
        assert isinstance(model, DistillationModel)
        if not self.world.is_main:
            return {}
        shown = {name: views[:_SHEET_IMAGES] for name, views in self._eval_views.items()}
        return {"words": words_sheet(model, shown, self.world.device)}

    def report(self, run: Path, *, is_over: bool) -> None:
        """Write RUN/report.html."""
        from beit.common.overview.report.automatic import write_report

        write_report(run)

    def save_artifacts(
        self, state: dict[str, Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Write the tokenizer and its card into the run directory."""
        with torch.device("meta"):  # initial values would draw from the training's random stream
            network = VQKD(self.config.model)
        weights = {name: state[f"vqkd.{name}"] for name in network.state_dict()}
        teacher = {
            "name": self.teacher.name,
            "block": self.teacher_block,
            "fingerprint": self.teacher.fingerprint,
            "img_size": self.teacher.img_size,
            "dim": self.teacher.dim,
        }
        reached = {"step": step, "total_steps": self._total_steps, "metrics": dict(metrics)}
        training = training_record(self.source, self.images, self.config, teacher=teacher, **reached)
        network.load_state_dict(weights, assign=True)
        patches = self._mean_patches(network, step)
        fingerprint = save_tokenizer(directory, weights, self.config.model, training=training, patches=patches)
        distillation_card(self.config, training).write(directory, training, fingerprint=fingerprint)

    @torch.no_grad()
    def _mean_patches(self, network: VQKD, step: int) -> Tensor:
        """Return the mean patch of each word of the weights of `step`, measured once."""
        if self._patches is None or self._patches[0] != step:
            network.eval().to(self.world.device)
            means = PatchMeans(network.vocab_size, network.downsampling)
            for part in batches_of(self._patch_views, self.world.device):
                means.add(part[IMAGES], network.pixels_to_ids(part[IMAGES]))
            self._patches = step, means.result()
        return self._patches[1]
