"""Settings of `beit tokenizer train --kind vqkd`; torch-free. What they do is `train.py`.

The defaults are the published ones of BEiT v2: ViT-B/16 at 224 px, 8192 words of 32 numbers, 100 epochs at batch 512.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from beit.common.config import at_least, checked, one_of, within
from beit.common.errors import require
from beit.common.reading.config import ReaderConfig
from beit.common.runs.idle import Need, training_needs
from beit.common.sources.config import SourceConfig
from beit.common.tokenizers.vqkd_config import VQKDConfig
from beit.common.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    ProfileConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
)
from beit.common.views import AugmentConfig
from beit.tokenize.tokenizer_training.config import TokenizerDeepSpeedConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecord:
    """Which teacher a run learns from: written down when it begins, so that it goes on with the same."""

    fingerprint: str | None = None
    """Of the teacher that --teacher names; left out, any."""


@checked("decoder")
class DecoderConfig:
    """From words back to the teacher's features; in training only, and of the tokenizer's width."""

    depth: Annotated[int, one_of((1, 3))] = 3
    """Its transformer blocks: 1 or 3, as published. Fewer leave more to the words."""


@checked("data")
class DistillationDataConfig:
    """From an image to what is learned from and measured on."""

    held_out: Annotated[float, within("(0, 0.2]")] = 0.02
    """Share of the images, chosen by a hash of their keys, that is never trained on."""
    num_eval_images: Annotated[int, at_least(1)] = 256
    """Held-out images, one view each, that the words are measured on. Where the share holds fewer, more images are held
    out, up to a fifth of all."""
    num_patch_images: Annotated[int, at_least(1)] = 1024
    """Training images, one view each, that the mean patch of each word is taken from, for pictures."""


@checked("objective")
class DistillationObjectiveConfig:
    """Loss, and what keeps the words in use. Fractions are of the whole run."""

    standardise: Literal["channel", "none"] = "channel"
    """What happens to the teacher's features before their cosine is taken. channel: every number has a mean subtracted
    and is divided by a deviation, of some training views; else what all patches share, which is longer than what tells
    them apart in a transformer without a last norm, would be most of the cosine. none: nothing, as published."""
    commitment_weight: Annotated[float, at_least(0)] = 1.0
    """Of the mean squared difference of codes and their words, against 1 - cosine of decoded and teacher's features."""
    codebook_decay: Annotated[float, within("(0, 1)")] = 0.99
    """Share per step that the running sums keep which words are the directions of."""
    restart_interval_steps: Annotated[int, at_least(1)] = 50
    """Optimizer steps between two searches for unused words; each is put onto a code that no word is near."""
    restart_threshold: Annotated[float, within("[0, 1)")] = 0.1
    """A word counts as unused below this share of its fair use, 1 / vocab_size; 0 restarts none."""
    restart_fraction: Annotated[float, within("[0, 1]")] = 0.9
    """Share of the run after which words are left in peace, to settle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationRunConfig(TrainConfig):
    """Length, batch and rhythm."""

    epochs: float = 100.0
    """Passes over the training images; ignored when `steps` is given."""
    global_batch_size: int = 512
    """Images per optimizer step over all ranks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16, fp16: torch.autocast over fp32 weights; codes and their comparison with words stay fp32. fp16 is for GPUs
    without bf16. auto: bf16 where the device has it in hardware, else fp32."""
    ema_decay: float | None = None
    """Always left out: the codebook follows the newest weights, and averaged ones would choose other words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationOptimizerConfig(OptimizerConfig):
    """AdamW as published."""

    lr: float = 2e-4
    """Peak learning rate; for a batch of 512."""
    min_lr: float = 1e-5
    """Learning rate the cosine ends at."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of matrices; biases, norms and positions have none."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's decay rates of the two moments."""
    clip_grad: float | None = None
    """Largest global L2 norm of the gradient; left out, no clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationAugmentConfig(AugmentConfig):
    """Distribution of the views: crops and flips as in `beit tokenize`, colours as they are."""

    brightness: float = 0.0
    """Brightness factors are drawn from 1 +- this; 0 leaves brightness alone."""
    contrast: float = 0.0
    """Contrast factors are drawn from 1 +- this; 0 leaves contrast alone."""
    saturation: float = 0.0
    """Saturation factors are drawn from 1 +- this; 0 leaves saturation alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """Everything that decides a distilled tokenizer, apart from the images and the teacher."""

    model: VQKDConfig = field(default_factory=VQKDConfig)
    """The tokenizer."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """What the words are judged through while they are learned."""
    teacher: TeacherRecord = field(default_factory=TeacherRecord)
    """Who is learned from; filled in when a run begins."""
    data: DistillationDataConfig = field(default_factory=DistillationDataConfig)
    """Pixels."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Which of them are read."""
    augment: DistillationAugmentConfig = field(default_factory=DistillationAugmentConfig)
    """Distribution of the views."""
    objective: DistillationObjectiveConfig = field(default_factory=DistillationObjectiveConfig)
    """Loss and words."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    train: DistillationRunConfig = field(default_factory=DistillationRunConfig)
    """Length, batch, precision, seed."""
    optimizer: DistillationOptimizerConfig = field(default_factory=DistillationOptimizerConfig)
    """AdamW and its schedule."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    deepspeed: TokenizerDeepSpeedConfig = field(default_factory=TokenizerDeepSpeedConfig)
    """A DeepSpeed JSON of one's own; no partitioning."""
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    """Time and memory of a step."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Steps to record."""
    run: RunConfig = field(default_factory=RunConfig)
    """Its copy."""

    def __post_init__(self) -> None:
        require(
            self.train.ema_decay is None,
            f"train.ema_decay ({self.train.ema_decay}) has no use for --kind vqkd: its codebook follows the newest "
            "weights, and averaged ones would choose other words; leave it out",
        )


def needs(config: DistillationConfig) -> list[Need]:
    """Return what settings need to have an effect, as `common/runs/idle.py` wants it."""
    restarts, why = config.objective.restart_threshold > 0, "with objective.restart_threshold=0; leave it out"
    names = ("restart_interval_steps", "restart_fraction")
    return [*training_needs(config), *(Need(f"objective.{name}", restarts, why) for name in names)]
