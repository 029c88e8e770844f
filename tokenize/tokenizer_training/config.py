"""Settings of `beit tokenizer train`; torch-free. What they do is `train.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from beit.common.config import above, at_least, checked, within
from beit.common.errors import require
from beit.common.reading.config import ReaderConfig
from beit.common.sources.config import SourceConfig
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig
from beit.common.training.config import (
    CheckpointConfig,
    DeepSpeedConfig,
    OptimizerConfig,
    ProfileConfig,
    RunConfig,
    SpeedConfig,
    TrainConfig,
)
from beit.common.views import AugmentConfig


@checked("data")
class TokenizerDataConfig:
    """From an image to what the network sees."""

    view_size: int = 128
    """Side in px to which a random view of the image is rendered; near the side of the views that will be tokenised."""
    crop_size: Annotated[int, at_least(1)] = 64
    """Side in px of the pieces cut from a view for training; a multiple of model.downsampling. Small trains faster."""
    crops_per_image: Annotated[int, at_least(1)] = 4
    """Pieces cut from each view; more spare decoding, fewer mix more images into a batch."""
    held_out: Annotated[float, within("(0, 0.2]")] = 0.02
    """Share of the images, chosen by a hash of their keys, that is never trained on."""
    num_eval_images: Annotated[int, at_least(1)] = 64
    """Held-out images, one view each, that reconstruction and use of the vocabulary are measured on. Where the share
    holds fewer, more images are held out, up to a fifth of all."""

    def __post_init__(self) -> None:
        require(
            self.crop_size <= self.view_size,
            f"data.crop_size ({self.crop_size}) must be in [1, data.view_size = {self.view_size}]",
        )


@checked("objective")
class ObjectiveConfig:
    """Reconstruction, the discrete bottleneck, and what keeps the words in use. Fractions are of the whole run."""

    autoencoder_fraction: Annotated[float, within("[0, 1]")] = 0.1
    """Share of the run without the bottleneck; the codebook is then fitted to the features found by it."""
    temperature: Annotated[tuple[float, float], above(0)] = (1.0, 0.1)
    """Gumbel-softmax temperature when the bottleneck comes in, and from `anneal_fraction` on; geometric in between."""
    anneal_fraction: Annotated[float, within("[0, 1]")] = 0.8
    """Share of the run at which the temperature reaches its final value."""
    hard_fraction: Annotated[float, within("[0, 1]")] = 0.6
    """Share of the run after which the decoder sees single words (straight-through gradients), as it will in use."""
    kl_weight: Annotated[float, at_least(0)] = 1e-4
    """Of the KL divergence of each position's distribution from the uniform one, in nats, against a squared error of
    pixels in [-1, 1]. It holds back how certain the encoder becomes."""
    kl_ramp_fraction: Annotated[float, within("[0, 1]")] = 0.2
    """Share of the run over which kl_weight and usage_weight rise from 0."""
    usage_weight: Annotated[float, at_least(0)] = 1e-2
    """Of the KL divergence of the batch's mean distribution from the uniform one: what prevents collapse."""
    revive_interval_steps: Annotated[int, at_least(1)] = 50
    """Optimizer steps between two searches for unused words; each is moved onto a badly represented feature."""
    revive_threshold: Annotated[float, at_least(0)] = 0.05
    """A word counts as unused below this share of its fair use, 1 / vocab_size."""
    revive_fraction: Annotated[float, within("[0, 1]")] = 0.9
    """Share of the run after which words are left in peace, to settle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerRunConfig(TrainConfig):
    """Length, batch and rhythm; a tokenizer needs far fewer steps than an encoder."""

    steps: int | None = 50_000
    """Optimizer steps of the whole run."""
    global_batch_size: int = 64
    """Images per optimizer step over all ranks; each gives `data.crops_per_image` pieces."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: torch.autocast over fp32 weights; the comparison with the codebook stays fp32. auto: bf16 where the device
    is quicker in it, else fp32."""
    log_interval_steps: int = 100
    """Optimizer steps between two records in metrics.jsonl."""
    eval_interval_steps: int | None = 1000
    """Optimizer steps between two evaluations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerOptimizerConfig(OptimizerConfig):
    """AdamW for a small convolutional network."""

    lr: float = 3e-3
    """Peak learning rate."""
    min_lr: float = 6e-5
    """Learning rate the cosine ends at."""
    warmup_steps: int | None = 50
    """Length of the linear warmup in optimizer steps."""
    weight_decay: float = 0.01
    """Decoupled weight decay of convolution kernels; biases, codebook and scale have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the two moments."""
    clip_grad: float | None = 1.0
    """Largest global L2 norm of the gradient."""
    scale_lr: float = 5.0
    """Learning rate of the logit scale relative to the others; it has to travel from 20 to about 100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerCheckpointConfig(CheckpointConfig):
    """When to save."""

    interval_steps: int | None = 1000
    """Optimizer steps between two checkpoints."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerDeepSpeedConfig(DeepSpeedConfig):
    """What is passed on to DeepSpeed; the network is small, so there is nothing to gain from partitions."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """Always 0: the codebook is moved between steps, which only an optimizer without partitions notices, and rank 0
    measures words by itself."""

    def __post_init__(self) -> None:
        require(
            self.zero_stage == 0,
            f"deepspeed.zero_stage ({self.zero_stage}) must be 0 to train a tokenizer: its codebook is moved "
            "between steps, which partitions would not notice; leave it out",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerTrainConfig:
    """Everything that decides a tokenizer, apart from the images."""

    model: DiscreteVAEConfig = field(default_factory=DiscreteVAEConfig)
    """The network; its vocab_size is 8192, as in BEiT."""
    data: TokenizerDataConfig = field(default_factory=TokenizerDataConfig)
    """Pixels."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Which of them are read."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Distribution of the views, as in `beit tokenize`."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    train: TokenizerRunConfig = field(default_factory=TokenizerRunConfig)
    """Length, batch, precision, seed."""
    optimizer: TokenizerOptimizerConfig = field(default_factory=TokenizerOptimizerConfig)
    """AdamW and its schedule."""
    checkpoint: TokenizerCheckpointConfig = field(default_factory=TokenizerCheckpointConfig)
    """Saving."""
    deepspeed: TokenizerDeepSpeedConfig = field(default_factory=TokenizerDeepSpeedConfig)
    """A DeepSpeed JSON of one's own; no partitioning."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Steps to record."""
    run: RunConfig = field(default_factory=RunConfig)
    """Its copy."""

    @property
    def speed(self) -> SpeedConfig:
        """Nothing to choose: its choices are for vision transformers."""
        return SpeedConfig()

    def __post_init__(self) -> None:
        size, factor = self.data.crop_size, self.model.downsampling
        require(
            size % factor == 0 and self.data.view_size % factor == 0,
            f"data.crop_size ({size}) and data.view_size ({self.data.view_size}) must be multiples of "
            f"model.downsampling ({factor})",
        )
