"""Distilling words at a size that takes a second: settings, and an encoder to learn from."""

from pathlib import Path
from typing import Any

import torch

from beit.common.config import config_from_dict
from beit.common.encoder import save_model
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.tokenize.distillation.config import DistillationConfig

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": 16,
        "code_dim": 4,
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
    },
    "decoder": {"depth": 1},
    "data": {"num_eval_images": 4, "num_patch_images": 8},
    "objective": {"restart_interval_steps": 2, "restart_threshold": 0.5, "codebook_decay": 0.7},
    "train": {
        "steps": 6,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "precision": "fp32",
        "log_interval_steps": 1,
        "eval_interval_steps": 2,
        "early_stop_evals": 50,
    },
    "optimizer": {"warmup_steps": 0, "lr": 3e-3},
    "checkpoint": {"interval_steps": 4},
    "reader": {"num_workers": 0},
}


def settings(**changes: dict[str, Any]) -> DistillationConfig:
    """Return the small settings with some changed, by section."""
    names = SETTINGS.keys() | changes.keys()
    return config_from_dict(
        DistillationConfig, {name: SETTINGS.get(name, {}) | changes.get(name, {}) for name in names}
    )


def write_encoder(folder: Path, *, img_size: int = 16, patch_size: int = 4, seed: int = 0) -> Path:
    """Write an encoder of random weights, 24 wide."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ViTConfig(
            img_size=img_size, patch_size=patch_size, embed_dim=24, depth=2, num_heads=2, final_norm=True
        )
        state = VisionTransformer(config).state_dict()
    half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_model(folder, state, EncoderConfig(architecture=config, normalization=half, task="pretrain"))
    return folder
