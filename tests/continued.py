"""Encoders to continue by a pre-training, and its settings; for tests."""

import torch

from beit.common.config import config_from_dict
from beit.common.encoder import save_model
from beit.common.processes.distributed import World
from beit.common.vit.config import Normalization, ViTConfig
from beit.common.vit.description import EncoderConfig
from beit.common.vit.vit import VisionTransformer
from beit.pretrain.config import PretrainConfig
from beit.pretrain.train import PretrainTask

PIXELS = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


DINO = ViTConfig(
    img_size=32,
    patch_size=4,
    embed_dim=24,
    depth=3,
    num_heads=2,
    init_values=0.0,
    use_abs_pos_emb=True,
    pos_bias="none",
    use_mask_token=False,
    final_norm=True,
    layer_norm_eps=1e-4,
    pos_resize="dino",
    drop_path=0.0,
)
"""The kind of DINO, MAE and timm: absolute positions, a last norm of its own, no mask token."""


ASLEEP = {"optimizer": {"lr": 1e-30, "min_lr": 0.0, "warmup_steps": 1}}
"""Changes nothing."""


def settings(init=None, **sections):
    usual = {
        "train": {"steps": 4, "global_batch_size": 8, "precision": "fp32", "log_interval_steps": 1},
        "reader": {"num_workers": 0},
        "held_out": {"pictures": 0, "train_images": 0},
        "checkpoint": {"interval_steps": 2},
    }
    merged = {name: {**usual.get(name, {}), **sections[name]} for name in sections if isinstance(sections[name], dict)}
    plain = {name: value for name, value in sections.items() if not isinstance(value, dict)}
    return config_from_dict(
        PretrainConfig, {**usual, **merged, **plain, **({} if init is None else {"init": str(init)})}
    )


def save_random(path, shape, **described):
    """Write an encoder whose every weight has a say."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = VisionTransformer(shape)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    description = EncoderConfig(architecture=shape, normalization=PIXELS, task="pretrain", **described)
    save_model(path, model.state_dict(), description)
    return path


def task_of(store, init, **sections):
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    return PretrainTask(settings(init, **sections), store, world)
