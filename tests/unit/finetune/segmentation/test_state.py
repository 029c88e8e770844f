"""A segmentation model in the real training loop: ZeRO trains it alike, and resuming is exact."""

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import ResumableStop
from beit.common.training.config import plan_training
from beit.common.training.trainer import train
from beit.common.vit.config import ViTConfig
from beit.finetune.segmentation.config import HeadConfig
from beit.finetune.segmentation.heads import resolve_head
from beit.finetune.segmentation.model import Segmenter
from beit.tests.toy_training import MISBEHAVIOUR, ToyTask, toy_config

SHAPE = ViTConfig(
    img_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2, pos_bias="per_block", use_mask_token=False,
    init="finetune", drop_path=0.2,
)  # fmt: skip
SETTINGS = ("train.steps=6", "train.ema_decay=0.5", "checkpoint.interval_steps=3")


class SceneTask(ToyTask):
    def __init__(self, config, plan, world):
        super().__init__(config, plan, world)
        torch.manual_seed(0)
        self.model = Segmenter(SHAPE, num_classes=3, head=resolve_head(HeadConfig(kind="upernet"), SHAPE))

    def forward(self, model, batch, step):
        images = batch["values"].repeat(1, 128).view(-1, 3, 16, 16)
        logits, auxiliary = model(images, with_auxiliary=True)
        loss = (logits - 1).square().mean() + 0.4 * (auxiliary + 1).square().mean()
        return loss, {"loss_again": loss.detach()}

    def evaluate(self, model, step):
        images = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
        return {"val_loss": float((model(images) - 1).square().mean() + model(images[..., :8]).square().mean())}


def train_scenes(path, zero_stage, *settings):
    config = toy_config(*SETTINGS, f"deepspeed.zero_stage={zero_stage}", *settings)

    def build(world):
        plan = plan_training(config.train, config.optimizer, config.checkpoint, num_samples=40, world_size=1)
        return SceneTask(config, plan, world)

    _, result = train(config, build, run_dir=path, resume="auto", free_keys=MISBEHAVIOUR)
    return result.metrics["val_loss"]


def saved(path, name):
    return load_file(path / f"checkpoints/step_6/{name}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 3])  # 1 and 2 are those of `test_ema.py`
def test_resumed_run_is_bit_equal_and_like_that_of_another_zero_stage(tmp_path, zero_stage):
    plain = train_scenes(tmp_path / "plain", 0)
    whole = train_scenes(tmp_path / "whole", zero_stage)
    # Biases that the next batch norm takes out again have gradients of rounding alone, which Adam makes steps of.
    assert whole == pytest.approx(plain, rel=2e-2)
    with pytest.raises(ResumableStop):
        train_scenes(tmp_path / "cut", zero_stage, "stop_at=2")
    assert train_scenes(tmp_path / "cut", zero_stage) == whole
    for name in ("model", "optimizer", "rng"):
        expected, found = saved(tmp_path / "whole", name), saved(tmp_path / "cut", name)
        assert expected.keys() == found.keys()
        assert not [key for key, value in expected.items() if not torch.equal(value, found[key])]
    statistics = [value for name, value in saved(tmp_path / "whole", "model").items() if "running_mean" in name]
    assert len(statistics) == 14 and all(value.any() for value in statistics)
