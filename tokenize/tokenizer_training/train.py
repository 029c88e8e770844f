"""`beit tokenizer train`: from images and settings to a tokenizer directory, which is also the directory of the run.

The loop, checkpoints and resume are `beit.common.training.trainer`; here is what is particular to a discrete VAE. The
directory holds the tokenizer of the evaluation with the highest PSNR on held-out images; before the first, the newest
one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from beit.common.errors import InputError
from beit.common.forecast.hardware import Hardware
from beit.common.forecast.training import TrainingForecast
from beit.common.processes.distributed import World
from beit.common.reading.contents import Watched
from beit.common.rng import CounterRng, stable_hash64
from beit.common.runs.idle import training_needs, warn_of_idle
from beit.common.runs.outputs import written
from beit.common.tokenizers.directory import save_tokenizer
from beit.common.training.data import Batch, TrainingData
from beit.common.training.judge import Goal
from beit.common.training.trainer import train
from beit.common.vit.channels import describe_fit
from beit.tokenize.tokenizer_training.card import training_record
from beit.tokenize.tokenizer_training.codebook import fit_codebook, revive_words
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig
from beit.tokenize.tokenizer_training.data import CropTransform, Images, introduction, open_split, read_samples
from beit.tokenize.tokenizer_training.forecast import forecast_tokenizer
from beit.tokenize.tokenizer_training.report import reconstruction_metrics, reconstruction_sheet, tokenizer_card
from beit.tokenize.tokenizer_training.step import (
    TokenizerModel,
    autoencoder_loss,
    discrete_loss,
    first_discrete_step,
    phase_at,
)

logger = logging.getLogger(__name__)

_FEATURES_PER_WORD = 16
"""Features that the codebook is first fitted to; with fewer, k-means would memorise them."""
_EVAL_MICRO_BATCH_SIZE = 32
_SHEET_IMAGES = 16


def train_tokenizer(config: TokenizerTrainConfig, source: str, out_dir: Path, *, resume: str = "auto") -> None:
    """Train a discrete VAE on the images of `source` and write it to `out_dir`; on every rank.

    Args:
        config: Settings.
        source: Folder, tars, Parquet files or list of images, or "synthetic:N" for N generated ones.
        out_dir: New, empty, or of the same run. Gets model.safetensors, config.json and README.md, beside checkpoints
            and metrics, and reconstruction.png.
        resume: "auto", "never", or a checkpoint.
    Raises:
        InputError: bad input.
        ResumableStop: a signal asked to stop; a checkpoint was committed.
    """
    warn_of_idle(config, training_needs(config))

    def build(world: World) -> TokenizerTask:
        images = world.run_on_main(lambda: open_split(source, config, img_size=config.data.view_size))
        return TokenizerTask(config, source, images, world)

    task, result = train(config, build, run_dir=out_dir, resume=resume)
    if task.world.is_main:
        best = result.best
        if best.value is not None:
            logger.info("best tokenizer: %.2f dB on held-out images, of step %d", best.value, best.step)
        if result.step > result.start_step:
            logger.info("%s", written(out_dir))


@dataclass
class TokenizerTask:
    """A discrete VAE on images, as the training loop wants it (`beit.common.training.task.Task`).

    Args:
        config: Settings.
        source: As the user named it.
        images: Training and held-out images.
        world: The ranks.
    """

    config: TokenizerTrainConfig
    source: str
    images: Images
    world: World

    def __post_init__(self) -> None:
        """Build the order; identical on every rank."""
        config = self.config
        self.transform = CropTransform(data=config.data, augment=config.augment, seed=config.train.seed)
        watched = {
            "training images": Watched(self.images.train.index),
            "held-out images": Watched(self.images.held_out.index),
        }
        # The loss has a term for how evenly the images of a micro-batch use the words.
        self.data = TrainingData(
            self.images.train, self.transform, config, world=self.world, watched=watched, rows_together=None
        )
        self._kept_step = -1  # whose upkeep of the codebook is done
        self._moved_words: Tensor | None = None

    @cached_property
    def model(self) -> TokenizerModel:
        """The discrete VAE, with the use of its words."""
        return TokenizerModel(self.config.model)

    @property
    def goal(self) -> Goal:
        """What evaluations are judged by."""
        return Goal(metric="eval_psnr", is_higher_better=True, keep_best=True)

    def begin(self, run: Path) -> None:
        """Say what is about to happen."""
        plan, shape = self.data.plan, self.config.model
        colours = "grey" if shape.channels == 1 else "colour"
        size = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        made = f"{colours} tokenizer of {size:.1f} M parameters"
        logger.info("%s", introduction(made, num_words=shape.vocab_size, side=shape.downsampling, images=self.images))
        if fit := describe_fit(self.images.train.index.decoding.num_channels, shape.channels, what="the tokenizer"):
            logger.info("%s (model.channels)", fit)
        first = first_discrete_step(self.config.objective, plan.total_steps)
        logger.info("%s; words come into use at step %d", plan, first)

    def evaluation_images(self) -> float:
        """Return what one evaluation costs, in images trained on: it looks at whole views instead of pieces."""
        data, held_out = self.config.data, int(self.images.held_out.shard_sizes.sum())
        views_per_image = data.view_size**2 / (data.crops_per_image * data.crop_size**2)
        return min(data.num_eval_images, held_out) * views_per_image

    def forecast(self, hardware: Hardware) -> TrainingForecast:
        """Return what the run takes."""
        return forecast_tokenizer(
            self.config,
            num_images=int(self.images.train.shard_sizes.sum()),
            num_held_out=int(self.images.held_out.shard_sizes.sum()),
            hardware=hardware,
            plan=self.data.plan,
        )

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay kernels only; let the logit scale move faster."""
        vae = self.model.vae
        special = {id(vae.codebook), id(vae.log_scale)}
        others = [parameter for parameter in vae.parameters() if id(parameter) not in special]
        decay = self.config.optimizer.weight_decay
        kernels = [parameter for parameter in others if parameter.ndim > 1]
        biases = [parameter for parameter in others if parameter.ndim == 1]
        return [
            {"params": kernels, "weight_decay": decay, "lr_scale": 1.0},
            {"params": [*biases, vae.codebook], "weight_decay": 0.0, "lr_scale": 1.0},
            {"params": [vae.log_scale], "weight_decay": 0.0, "lr_scale": self.config.optimizer.scale_lr},
        ]

    def forward(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and metrics of one micro-batch."""
        assert isinstance(model, TokenizerModel)
        images = batch["images"].flatten(0, 1)  # (images x crops, 3, crop_size, crop_size)
        phase = phase_at(self.config.objective, step, self.data.plan.total_steps)
        generator = self._generator("noise", int(batch["positions"][0]))
        if not phase.is_discrete:
            loss = autoencoder_loss(model, images, generator)
            return loss, {}
        if step != self._kept_step:
            self._keep_codebook(model, images, step, is_revival=phase.is_revival)
            self._kept_step = step
        return discrete_loss(model, images, phase=phase, objective=self.config.objective, generator=generator)

    def _generator(self, *labels: int | str) -> torch.Generator:
        """Return a random stream that depends on seed and labels only, so that a resumed run repeats it."""
        generator = torch.Generator(self.world.device)
        generator.manual_seed(stable_hash64(self.config.train.seed, *labels) >> 1)
        return generator

    @torch.no_grad()
    def _keep_codebook(self, model: TokenizerModel, images: Tensor, step: int, *, is_revival: bool) -> None:
        """Fit the codebook when it comes into use, and revive words; rank 0 decides, all ranks follow."""
        vae, is_first = model.vae, step == first_discrete_step(self.config.objective, self.data.plan.total_steps)
        if not (is_first or is_revival):
            return
        before = vae.codebook.detach().clone()
        if self.world.is_main:
            generator = self._generator("codebook", step)
            if is_first:
                features = _flat_features(model, self._first_images())
                vae.codebook.copy_(fit_codebook(features, vae.vocab_size, generator=generator))
            else:
                threshold = self.config.objective.revive_threshold
                features = _flat_features(model, images)
                revive_words(vae.codebook, model.usage, features, threshold=threshold, generator=generator)
        codebook, usage = self.world.broadcast((vae.codebook.data.cpu(), model.usage.cpu()))
        vae.codebook.copy_(codebook)
        model.usage.copy_(usage)
        self._moved_words = (vae.codebook != before).any(dim=1)

    def overwritten_rows(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return which words were moved in this step, so that their average jumps along instead of smearing."""
        rows, self._moved_words = self._moved_words, None
        return [] if rows is None else [(self.model.vae.codebook, rows)]

    def _first_images(self) -> Tensor:
        """Return pieces of random images, enough to fit the codebook to, uint8 on the device."""
        data, shape = self.config.data, self.config.model
        per_image = data.crops_per_image * (data.crop_size // shape.downsampling) ** 2
        count = -(-shape.vocab_size * _FEATURES_PER_WORD // per_image)
        rng = CounterRng(self.config.train.seed, "codebook-images")
        num_images = int(self.images.train.shard_sizes.sum())
        rows = [rng.integers(0, num_images - 1) for _ in range(count)]
        pieces = read_samples(self.images.train, rows, lambda record: self.transform(record)["images"])
        return self._on_device([piece for pieces_of_view in pieces for piece in pieces_of_view])

    @cached_property
    def _eval_images(self) -> Tensor:
        """Views to measure on, uint8 (B, 3, view_size, view_size), the same in every evaluation."""
        rng = CounterRng(self.config.train.seed, "evaluation")
        num_images = int(self.images.held_out.shard_sizes.sum())
        rows = rng.permutation(num_images)[: self.config.data.num_eval_images].tolist()
        views = read_samples(self.images.held_out, rows, lambda record: self.transform.render(record, rng))
        return self._on_device([view.transpose(2, 0, 1) for view in views])

    def _on_device(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        if not images:
            raise InputError(f"none of the images drawn from {self.source} can be read; check the images")
        return torch.from_numpy(np.stack(images)).to(self.world.device)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Measure reconstruction and use of the vocabulary; rank 0 does, the few images need no help."""
        assert isinstance(model, TokenizerModel)
        if self._is_before_words(step):
            return {}
        metrics = self.world.run_on_main(lambda: self._measure(model))
        if self.world.is_main:
            logger.info(
                "step %d: %.2f dB (mean of each patch: %.2f dB), %d of %d words, perplexity %.0f",
                step,
                metrics["eval_psnr"],
                metrics["eval_block_mean_psnr"],
                metrics["eval_words_used"],
                model.vae.vocab_size,
                metrics["eval_perplexity"],
            )
        return metrics

    def _is_before_words(self, step: int) -> bool:
        # The codebook is fitted in the first discrete step, `step` counts completed ones.
        return step <= first_discrete_step(self.config.objective, self.data.plan.total_steps)

    def _measure(self, model: TokenizerModel) -> dict[str, float]:
        metrics = reconstruction_metrics(model.vae, self._eval_images, micro_batch_size=_EVAL_MICRO_BATCH_SIZE)
        return {f"eval_{name}": value for name, value in metrics.items()} | {
            "eval_images": float(len(self._eval_images))
        }

    def pictures(self, model: nn.Module, step: int) -> dict[str, Image]:
        """Draw the first of the measured views beside what becomes of them, on rank 0, once there are words."""
        assert isinstance(model, TokenizerModel)
        if not self.world.is_main or self._is_before_words(step):
            return {}
        return {"reconstruction": reconstruction_sheet(model.vae, self._eval_images[:_SHEET_IMAGES])}

    def report(self, run: Path, *, is_over: bool) -> None:
        """Write RUN/report.html."""
        from beit.common.overview.report.automatic import write_report

        write_report(run)

    def save_artifacts(
        self, state: dict[str, Tensor], directory: Path, step: int, metrics: Mapping[str, float]
    ) -> None:
        """Write the tokenizer and its card into the run directory."""
        weights = {name.removeprefix("vae."): value for name, value in state.items() if name.startswith("vae.")}
        reached = {"step": step, "total_steps": self.data.plan.total_steps, "metrics": dict(metrics)}
        training = training_record(self.source, self.images, self.config, **reached)
        fingerprint = save_tokenizer(directory, weights, self.config.model, training=training)
        tokenizer_card(self.config, training).write(directory, training, fingerprint=fingerprint)


def _flat_features(model: TokenizerModel, images: Tensor) -> Tensor:
    """Return unit features of uint8 images (B, 3, H, W) as float32 (B x h x w, C)."""
    features = [
        model.vae.encode_features(model.vae.see(chunk)) for chunk in torch.split(images, _EVAL_MICRO_BATCH_SIZE)
    ]
    return torch.cat([chunk.float().permute(0, 2, 3, 1).flatten(0, 2) for chunk in features])
