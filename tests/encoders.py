"""Encoders of small models on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from beit.common.encoder import save_model
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig


def save_encoder(
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    architecture: ViTConfig,
    mean: Sequence[float],
    std: Sequence[float],
    **described: Any,
) -> None:
    """Write a pre-trained encoder as `beit pretrain` does."""
    normalization = Normalization(tuple(mean), tuple(std))
    save_model(
        directory,
        state,
        EncoderConfig(architecture=architecture, normalization=normalization, task="pretrain", **described),
    )
