"""Settings of `beit pretrain`. The defaults are the paper's base model on ImageNet-1k; torch-free.

Image size, patch size, vocabulary and the number of views are not settings: they come from the token store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from beit.common.errors import require
from beit.common.reader_config import ReaderConfig
from beit.common.train_config import CheckpointConfig, DeepSpeedConfig, OptimizerConfig, TrainConfig
from beit.common.vit_config import ModelConfig
from beit.pretrain.masking import MaskConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is done to the pixels of a view, and how its replay is checked."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from pixels scaled to [0, 1]. ImageNet's, as in BEiT's ImageNet-1k recipe."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides the centred pixels."""
    replay: Literal["strict", "tolerant"] = "strict"
    """strict: every crop's checksum must match; tolerant: its 4 x 4 luma within 3 levels, for another Pillow build."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(all(value > 0 for value in self.std), f"data.std {self.std} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutConfig:
    """The learning signal on images that are never trained on."""

    micro_batch_size: int = 64
    """Images per forward pass of one rank."""
    max_images: int = 10_000
    """At most this many of the store's held-out images."""
    unigram_images: int = 20_000
    """Training images whose tokens give the unigram line; one view each."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("micro_batch_size", "max_images", "unigram_images"):
            value = getattr(self, name)
            require(value >= 1, f"held_out.{name} ({value}) must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Everything that decides a pre-training run, apart from the store."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The vision transformer."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which patches are hidden."""
    data: DataConfig = field(default_factory=DataConfig)
    """Pixels."""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    """Loading."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch, precision, seed."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    """Partitioning."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    """Evaluation."""
