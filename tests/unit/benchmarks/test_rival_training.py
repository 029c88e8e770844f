"""Rivals are trained on a store's images alone, in an order of their own, and go on bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import beit
from beit.benchmarks.dino import Dino, DinoConfig, DinoLearning
from beit.benchmarks.mae import Mae, MaeConfig, MaeLearning
from beit.benchmarks.rival_training import STATE, Images, Kind, Learning, Training, between, scheduled_lr
from beit.common.errors import InputError, ResumableStop, RunFailed
from beit.common.processes.signals import StopFlag
from beit.common.views import AugmentConfig
from beit.common.vit.config import ViTConfig
from beit.common.vit.vit import VisionTransformer
from beit.tests.support import write_bare_store

SHAPE = ViTConfig(
    **{"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path": 0.0},
    **{"use_mask_token": False, "final_norm": True, "mlp_ratio": 2.0},
)
SETTINGS = {"lr": 1e-3, "batch_size": 3, "betas": (0.9, 0.95), "weight_decay": (0.04, 0.4)}
DINO = DinoConfig(
    learning=DinoLearning(**SETTINGS),
    outputs=12,
    hidden_dim=16,
    bottleneck_dim=8,
    local_crops=2,
    local_size=8,
    frozen=0.4,
)
MAE = MaeConfig(learning=MaeLearning(**SETTINGS), decoder_dim=16, decoder_depth=1, decoder_heads=2)
MUON = replace(MAE, learning=replace(MAE.learning, optimizer="muon"))
RIVALS = {
    "dino": lambda: Dino(VisionTransformer(SHAPE), DINO),
    "mae": lambda: Mae(VisionTransformer(SHAPE), MAE),
    "mae by muon": lambda: Mae(VisionTransformer(SHAPE), MUON),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write_bare_store(folder, images=10)
    return Images(folder / "bare")


class StopAfter(StopFlag):
    """Asks for a stop at the n-th question."""

    def __init__(self, steps):
        super().__init__()
        self.left = steps

    def is_set(self):
        self.left -= 1
        return self.left < 0


def make(name, images, folder, **changes):
    settings = {"steps": 5, "seed": 3, "identity": {"of": "a test"}} | changes
    return Training(build=RIVALS[name], images=images, folder=folder, **settings)


def weights(folder):
    return beit.load_encoder(folder).state_dict()


@pytest.mark.parametrize("name", RIVALS)
def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(name, images, tmp_path):
    whole = make(name, images, tmp_path / "whole")
    whole.run(StopFlag(), name=name)
    with pytest.raises(ResumableStop):
        make(name, images, tmp_path / "cut").run(StopAfter(3), name=name)
    assert (tmp_path / "cut" / STATE).exists() and not (tmp_path / "cut/encoder").exists()
    rest = make(name, images, tmp_path / "cut")
    assert 0 < rest.step < 5 and rest.seconds > 0
    rest.run(StopFlag(), name=name)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert rest.records == whole.records and len(whole.records) == 5
    assert not (tmp_path / "cut" / STATE).exists() and rest.seconds > 0
    encoder = beit.load_encoder(tmp_path / "cut")
    assert encoder.config.final_norm and encoder.normalization.mean == (0.5, 0.5, 0.5)
    assert encoder.provenance["total_steps"] == 5


def test_another_seed_learns_something_else(images, tmp_path):
    for seed in (0, 1):
        make("mae", images, tmp_path / str(seed), seed=seed, steps=1).run(StopFlag(), name="mae")
    assert not torch.equal(weights(tmp_path / "0")["cls_token"], weights(tmp_path / "1")["cls_token"])


def test_a_state_of_other_settings_is_refused_in_one_line(images, tmp_path):
    with pytest.raises(ResumableStop):
        make("mae", images, tmp_path / "run").run(StopAfter(0), name="mae")
    with pytest.raises(InputError, match="was begun with other settings; name another --out, or remove it"):
        make("mae", images, tmp_path / "run", identity={"of": "another"})
    (tmp_path / "run" / STATE).write_bytes(b"damaged")
    with pytest.raises(InputError, match="state.safetensors cannot be read"):
        make("mae", images, tmp_path / "run")


def test_a_loss_that_is_no_number_ends_the_run(images, tmp_path):
    run = make("mae", images, tmp_path)
    torch.nn.init.constant_(run.rival.decoder.paint.bias, float("nan"))
    with pytest.raises(RunFailed, match="the loss of step 0 is nan; lower learning.lr"):
        run.run(StopFlag(), name="mae")


def test_every_pass_has_all_images_once_and_nothing_held_out(images):
    store_size = 10
    assert 0 < len(images) < store_size
    passes = [[images._at(position, 7) for position in range(start, start + len(images))] for start in (0, len(images))]
    assert all(sorted(taken) == list(range(len(images))) for taken in passes) and passes[0] != passes[1]


def test_views_of_a_batch_are_those_of_its_images_alone(images):
    kinds = (
        Kind(views=2, img_size=16, augment=AugmentConfig(), grey=0.0),
        Kind(views=0, img_size=8, augment=AugmentConfig()),
        Kind(views=3, img_size=8, augment=AugmentConfig(scale=(0.1, 0.2)), grey=1.0),
    )
    wide, narrow = images.batch(kinds, first=4, count=3, seed=0)
    assert wide.shape == (2, 3, 3, 16, 16) and narrow.shape == (3, 3, 3, 8, 8)
    assert -1 <= wide.min() < wide.max() <= 1
    (again, _) = images.batch(kinds, first=5, count=1, seed=0)
    assert torch.equal(again[:, 0], wide[:, 1]) and not torch.equal(wide[0], wide[1])
    assert torch.allclose(narrow[:, :, 0], narrow[:, :, 1], atol=0.02)  # grey
    assert not torch.allclose(wide[:, :, 0], wide[:, :, 1], atol=0.02)


def test_the_schedule_warms_up_and_falls():
    learning = Learning(**SETTINGS, warmup=0.2, min_lr=1e-5)
    rates = [scheduled_lr(learning, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([5e-4, 1e-3, 1e-3]) and np.all(np.diff(rates[2:]) < 0) and rates[-1] > 1e-5
    assert scheduled_lr(learning, 0, 1) == 1e-3
    assert [between(0.04, 0.4, at) for at in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.22, 0.4])
