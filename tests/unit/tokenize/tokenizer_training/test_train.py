"""Training a tokenizer: its phases, exact resume in each of them, and what is left in the directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from beit.common.config import config_from_dict
from beit.common.errors import InputError, ResumableStop
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.common.tokenizer import load_tokenizer
from beit.tests.support import files_of, write_images
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.images import open_images
from beit.tokenize.run import run_tokenize
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig
from beit.tokenize.tokenizer_training.data import split_images
from beit.tokenize.tokenizer_training.train import TokenizerTask, train_tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"vocab_size": 16, "width": 16, "num_blocks": 1, "code_dim": 4},
    "data": {"view_size": 32, "crop_size": 16, "crops_per_image": 2, "num_eval_images": 4},
    "objective": {"autoencoder_fraction": 0.2, "revive_interval_steps": 2, "revive_threshold": 0.97},
    "train": {
        "steps": 10,
        "global_batch_size": 4,
        "precision": "fp32",
        "log_interval_steps": 1,
        "eval_interval_steps": 2,
        "ema_decay": 0.9,
        "early_stop_evals": 50,
    },
    "optimizer": {"warmup_steps": 0},
    "checkpoint": {"interval_steps": 4},
    "reader": {"num_workers": 0},
}
"""Two steps of autoencoder, four of soft words (revival at 4), four of single words (revival at 6 and 8)."""


def settings(**changes: dict[str, Any]) -> TokenizerTrainConfig:
    return config_from_dict(
        TokenizerTrainConfig, {name: values | changes.get(name, {}) for name, values in SETTINGS.items()}
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("data") / "images", 12, size=32))


def build_task(source: str, config: TokenizerTrainConfig, *, rank: int = 0, world_size: int = 1) -> TokenizerTask:
    torch.manual_seed(0)
    world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    images = split_images(open_images(source, img_size=32, cache_bytes=0), config.data, cache_bytes=0)
    return TokenizerTask(config, source, images, world)


@pytest.fixture
def task(source: str) -> TokenizerTask:
    return build_task(source, settings())


def test_task_goes_through_its_phases(task: TokenizerTask) -> None:
    before = task.model.vae.codebook.detach().clone()
    metrics = [set(task.forward(task.model, batch, step)[1]) for step, batch in enumerate(task.data.micro_batches(0))]
    assert metrics[0] == metrics[1] == set()
    assert all("usage_kl" in names for names in metrics[2:])
    assert len(metrics) == 10
    assert not torch.equal(task.model.vae.codebook, before)  # fitted to features


def test_moved_words_are_reported_once_for_the_average_to_jump(task: TokenizerTask) -> None:
    moved = []
    for step, batch in enumerate(task.data.micro_batches(0)):
        task.forward(task.model, batch, step)
        rows = task.overwritten_rows()
        assert task.overwritten_rows() == []
        moved.append(int(rows[0][1].sum()) if rows else 0)
    assert moved[2] == 16  # fitted
    assert 0 < moved[4] < 16 and moved[6] > 0  # revived
    assert [moved[step] for step in (0, 1, 3, 5, 7, 9)] == [0] * 6


def test_forward_repeats_itself_on_resume(task: TokenizerTask) -> None:
    batch = next(task.data.micro_batches(5))
    assert torch.equal(task.forward(task.model, batch, 5)[0], task.forward(task.model, batch, 5)[0])


def test_two_ranks_consume_the_batches_of_one(source: str) -> None:
    def positions(rank: int, world_size: int) -> list[list[int]]:
        task = build_task(source, settings(), rank=rank, world_size=world_size)
        return [list(batch["positions"]) for batch in task.data.micro_batches(0)]

    halves = zip(positions(0, 2), positions(1, 2), strict=True)
    assert [first + second for first, second in halves] == positions(0, 1)


def test_every_parameter_is_trained_once(task: TokenizerTask) -> None:
    groups = task.param_groups()
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in task.model.parameters())
    assert groups[2]["lr_scale"] == 5.0 and groups[1]["weight_decay"] == 0.0


def test_evaluation_measures_from_the_first_discrete_step(task: TokenizerTask) -> None:
    assert task.evaluate(task.model, 2) == {} and task.pictures(task.model, 2) == {}  # fitted in the step after
    metrics = task.evaluate(task.model, 3)
    assert set(metrics) == {
        "eval_psnr",
        "eval_block_mean_psnr",
        "eval_words_used",
        "eval_perplexity",
        "eval_images",
    }
    assert metrics == task.evaluate(task.model, 3)
    assert metrics["eval_images"] == 2  # a fifth of 12
    assert task.pictures(task.model, 3)["reconstruction"].mode == "RGB"


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGTERM in the forward pass of a step."""
    forward = TokenizerTask.forward

    def interrupted(self: TokenizerTask, model: Any, batch: Any, current: int) -> Any:
        if current == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, model, batch, current)

    monkeypatch.setattr(TokenizerTask, "forward", interrupted)


@pytest.mark.slow
def test_resume_is_bit_equal_in_every_phase(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_tokenizer(settings(), source, tmp_path / "whole")
    for step in (0, 2, 3, 4, 7):  # autoencoder, fit, soft words, revival, single words
        out = tmp_path / f"stopped at {step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(ResumableStop, match=f"stopped at step {step + 1} of 10"):
                train_tokenizer(settings(), source, out)
        train_tokenizer(settings(), source, out)
        for name in ("model", "checkpoints/step_10/optimizer", "checkpoints/step_10/model", "checkpoints/step_10/best"):
            whole, cut = (load_file(root / f"{name}.safetensors") for root in (tmp_path / "whole", out))
            assert whole.keys() == cut.keys()
            assert not [key for key, value in whole.items() if not torch.equal(value, cut[key])], (step, name)
        assert load_tokenizer(out).fingerprint == load_tokenizer(tmp_path / "whole").fingerprint
        steps = [record["step"] for record in read_metrics(out / "metrics.jsonl") if "eval_psnr" in record]
        assert steps == [4, 6, 8, 10]


@pytest.mark.slow
def test_directory_holds_the_best_tokenizer_with_card_and_pictures(source: str, tmp_path: Path) -> None:
    train_tokenizer(settings(), source, tmp_path / "out")
    records = read_metrics(tmp_path / "out/metrics.jsonl")
    measured = {record["step"]: record for record in records if "eval_psnr" in record}
    best = max(measured.values(), key=lambda record: record["eval_psnr"])
    training = json.loads((tmp_path / "out/config.json").read_text())["training"]
    assert training["step"] == best["step"] and training["metrics"]["eval_psnr"] == best["eval_psnr"]
    assert training["settings"]["model"]["vocab_size"] == 16
    assert (training["num_train_images"], training["num_held_out_images"]) == (10, 2)
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.encode(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 4, 4)
    card = (tmp_path / "out/README.md").read_text()
    for fact in (
        tokenizer.fingerprint,
        f"step {best['step']} of 10",
        f"{best['eval_psnr']:.2f} dB",
        "Licence",
        "10 im",
    ):
        assert fact in card
    with Image.open(tmp_path / "out/reconstruction.png") as picture:
        assert picture.size[0] > 4 * 160
    events = [path.read_bytes() for path in (tmp_path / "out/tensorboard").iterdir()]
    assert any(b"reconstruction" in content for content in events)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("downsampling", "channels", "reconstruction"), [(4, 1, "mse"), (8, 3, "logit_laplace"), (16, 1, "logit_laplace")]
)
def test_tokenize_accepts_what_was_trained(
    source: str, tmp_path: Path, downsampling: int, channels: int, reconstruction: str
) -> None:
    model = {"downsampling": downsampling, "channels": channels, "reconstruction": reconstruction}
    train_tokenizer(settings(model=model), source, tmp_path / "out")
    grid = 32 // downsampling
    config = TokenizeConfig(
        tokenizer=str(tmp_path / "out"), views=1, img_size=2 * 32, patch_size=2 * downsampling, workers=1, threads=1
    )
    summary = run_tokenize(config, source, tmp_path / "store")
    assert summary.num_samples == 12
    info = json.loads((tmp_path / "store/store.json").read_text())
    assert info["img_size"] // info["patch_size"] == grid


def test_other_images_are_refused_before_anything_is_rewritten(source: str, tmp_path: Path) -> None:
    train_tokenizer(settings(train={"steps": 2, "early_stop_evals": None}), source, tmp_path / "out")
    before = files_of(tmp_path / "out")
    other = str(write_images(tmp_path / "images", 13, size=32))
    with pytest.raises(InputError, match="data was .*, is "):
        train_tokenizer(settings(train={"steps": 2, "early_stop_evals": 50}), other, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_edited_images_are_refused_and_a_copy_of_them_is_not(source: str, tmp_path: Path) -> None:
    images = shutil.copytree(source, tmp_path / "images", copy_function=shutil.copyfile)
    train_tokenizer(settings(train={"steps": 2, "early_stop_evals": None}), source, tmp_path / "out")
    train_tokenizer(settings(train={"steps": 2, "early_stop_evals": 50}), str(images), tmp_path / "out")
    for file in (path for path in images.iterdir() if path.is_file()):
        data = file.read_bytes()
        file.write_bytes(data[:-4] + bytes(4))
    with pytest.raises(InputError, match="training images: edited images; held-out images: edited images"):
        train_tokenizer(settings(train={"steps": 2, "early_stop_evals": 60}), str(images), tmp_path / "out")


def test_too_few_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    few = str(write_images(tmp_path / "images", 4, size=32))
    with pytest.raises(InputError, match="holds 4 images, too few .* give at least 5"):
        train_tokenizer(settings(), few, tmp_path / "out")
    assert not (tmp_path / "out").exists()
