"""Distilling words: exact resume, the same on any number of ranks and micro-batches, and what is left in the folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError, ResumableStop
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.common.tokenizer import load_tokenizer
from beit.tests.distillation import settings, write_encoder
from beit.tests.support import files_of
from beit.tokenize.distillation.config import DistillationConfig
from beit.tokenize.distillation.train import DistillationTask, train_distilled
from beit.tokenize.images import open_images
from beit.tokenize.kinds import TeacherChoice
from beit.tokenize.teacher import load_teacher
from beit.tokenize.tokenizer_training.data import split_images


def build_task(
    source: str, encoder: Path, config: DistillationConfig, *, rank: int = 0, world_size: int = 1
) -> DistillationTask:
    torch.manual_seed(0)
    world = World(rank=rank, local_rank=rank, world_size=world_size, device=torch.device("cpu"))
    images = split_images(open_images(source, img_size=16, cache_bytes=0), config.data, cache_bytes=0)
    return DistillationTask(config, source, images, load_teacher(encoder), None, world)


def codebook_after_a_step(source: str, encoder: Path, micro_batch_size: int) -> dict[str, torch.Tensor]:
    task = build_task(source, encoder, settings(train={"micro_batch_size": micro_batch_size}))
    task.begin(Path())
    stream = task.data.micro_batches(0)
    for _ in range(task.data.plan.grad_accum_steps):
        task.forward(task.model, next(stream), 0)
    task.end_step(torch.zeros(()))
    return dict(task.model.vqkd.quantizer.state_dict())


def test_words_move_the_same_however_a_step_is_cut(source: str, encoder: Path) -> None:
    whole, parts = (codebook_after_a_step(source, encoder, size) for size in (4, 1))
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-6), name


def test_words_begin_where_codes_are_and_move_every_step(source: str, encoder: Path) -> None:
    task = build_task(source, encoder, settings())
    quantizer = task.model.vqkd.quantizer
    random = quantizer.codebook.clone()
    task.begin(Path())
    first = quantizer.codebook.clone()
    assert not torch.equal(first, random)
    assert quantizer.counts is not None and float(quantizer.counts.sum()) == pytest.approx(0.05 * 4 * 16)
    batch = next(task.data.micro_batches(0))
    loss, metrics = task.forward(task.model, batch, 0)
    assert set(metrics) == {"teacher_cosine", "commitment", "words_used"}
    assert float(loss.detach()) == pytest.approx(float(1 - metrics["teacher_cosine"] + metrics["commitment"]))
    task.end_step(torch.zeros(()))
    moved = quantizer.codebook.clone()
    assert not torch.equal(moved, first)
    task.forward(task.model, batch, 1)
    task.end_step(torch.ones(()))  # skipped, as its loss was not finite: no word moves, nor is it put elsewhere
    assert torch.equal(moved, quantizer.codebook)


def test_every_parameter_is_trained_once(source: str, encoder: Path) -> None:
    task = build_task(source, encoder, settings())
    ids = [id(parameter) for group in task.param_groups() for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in task.model.parameters())


def test_evaluation_is_the_same_whenever_it_is_made(source: str, encoder: Path) -> None:
    task = build_task(source, encoder, settings())
    metrics = task.evaluate(task.model, 3)
    assert metrics == task.evaluate(task.model, 3)
    assert metrics["eval_images"] == 2 and 0 <= metrics["eval_agreement"] <= 1
    assert task.pictures(task.model, 3)["words"].mode == "RGB"


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGTERM in the forward pass of a step."""
    forward = DistillationTask.forward

    def interrupted(self: DistillationTask, model: Any, batch: Any, current: int) -> Any:
        if current == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, model, batch, current)

    monkeypatch.setattr(DistillationTask, "forward", interrupted)


def test_resume_is_bit_equal_and_leaves_a_tokenizer(
    source: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = TeacherChoice(str(encoder), 1)
    train_distilled(settings(), source, tmp_path / "whole", teacher=teacher)
    for step in (0, 3):
        out = tmp_path / f"stopped at {step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(ResumableStop, match=f"stopped at step {step + 1} of 6"):
                train_distilled(settings(), source, out, teacher=teacher)
        train_distilled(settings(), source, out, teacher=teacher)
        for name in (
            "model",
            "decoder",
            *(f"checkpoints/step_6/{part}" for part in ("optimizer", "model", "best", "rng")),
        ):
            whole, cut = (load_file(root / f"{name}.safetensors") for root in (tmp_path / "whole", out))
            assert whole.keys() == cut.keys()
            assert not [key for key, value in whole.items() if not torch.equal(value, cut[key])], (step, name)
        assert load_tokenizer(out).fingerprint == load_tokenizer(tmp_path / "whole").fingerprint

    records = read_metrics(tmp_path / "whole/metrics.jsonl")
    measured = {record["step"]: record for record in records if "eval_teacher_cosine" in record}
    best = max(measured.values(), key=lambda record: record["eval_teacher_cosine"])
    training = json.loads((tmp_path / "whole/config.json").read_text())["training"]
    assert training["step"] == best["step"]
    assert training["teacher"]["fingerprint"] == load_teacher(encoder, block=1).fingerprint
    tokenizer = load_tokenizer(tmp_path / "whole", need_decoder=True)
    assert (tokenizer.img_size, tokenizer.downsampling, tokenizer.vocab_size) == (16, 4, 16)
    words = tokenizer.encode(np.zeros((2, 16, 16, 3), np.uint8))
    assert words.shape == (2, 4, 4) and tokenizer.decode(words).shape == (2, 16, 16, 3)
    saved = load_file(tmp_path / "whole/model.safetensors")
    assert not [name for name in saved if "counts" in name or "sums" in name or name.startswith("decoder")]
    card = (tmp_path / "whole/README.md").read_text()
    assert tokenizer.fingerprint in card and "Teacher" in card and f"step {best['step']} of 6" in card
    assert (tmp_path / "whole/words.png").is_file()


def test_another_teacher_is_refused_and_nothing_is_rewritten(source: str, encoder: Path, tmp_path: Path) -> None:
    config = settings(train={"steps": 2})
    train_distilled(config, source, tmp_path / "out", teacher=TeacherChoice(str(encoder), None))
    before = files_of(tmp_path / "out")
    other = write_encoder(tmp_path / "other", seed=1)
    more = settings(train={"steps": 2, "early_stop_evals": 60})
    with pytest.raises(InputError, match=r"checkpoints depend on \(teacher.fingerprint was [0-9a-f]+, is [0-9a-f]+\)"):
        train_distilled(more, source, tmp_path / "out", teacher=TeacherChoice(str(other), None))
    with pytest.raises(InputError, match=r"checkpoints depend on \(teacher.fingerprint"):  # nor on purpose
        run = tmp_path / "out"
        train_distilled(more, source, run, teacher=TeacherChoice(str(other), None), resume=str(run))
    with pytest.raises(InputError, match=r"depend on \(teacher.fingerprint"):  # of another block
        train_distilled(more, source, tmp_path / "out", teacher=TeacherChoice(str(encoder), 0))
    assert files_of(tmp_path / "out") == before
    moved = tmp_path / "moved"
    encoder_files = files_of(encoder)
    moved.mkdir()
    for name, data in encoder_files.items():
        (moved / name).write_bytes(data)
    train_distilled(more, source, tmp_path / "out", teacher=TeacherChoice(str(moved), None))  # the same, elsewhere


def test_a_teacher_of_another_grid_is_refused_with_a_way_out(source: str, tmp_path: Path) -> None:
    fine = write_encoder(tmp_path / "fine", img_size=16, patch_size=2)
    with pytest.raises(InputError, match=r"gives 8 x 8 features .* is 4 words per side; .*--set model.img_size=32"):
        train_distilled(settings(), source, tmp_path / "out", teacher=TeacherChoice(str(fine), None))
    assert not (tmp_path / "out").exists()


def test_teacher_and_tokenizer_may_see_a_view_at_different_sizes(source: str, tmp_path: Path) -> None:
    large = write_encoder(tmp_path / "large", img_size=32, patch_size=8)
    task = build_task(source, large, settings())
    batch = next(task.data.micro_batches(0))
    assert batch["images"].shape == (2, 3, 16, 16) and batch["teacher_images"].shape == (2, 3, 32, 32)
    halves = torch.nn.functional.avg_pool2d(batch["teacher_images"].float(), 2)
    assert (halves - batch["images"].float()).abs().mean() < 12  # one view: the same crop, mirrored or not
    task.begin(Path())
    task.forward(task.model, batch, 0)


def test_partitions_from_a_file_of_ones_own_are_refused(source: str, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    config = settings(deepspeed={"config": str(tmp_path / "ds.json")})
    with pytest.raises(InputError, match=r"zero_stage \(3\) must be 0 here"):
        train_distilled(config, source, tmp_path / "out", teacher=TeacherChoice(str(encoder), None))
    assert not (tmp_path / "out").exists()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match=r"train.ema_decay \(0.9\) has no use for --kind vqkd"):
        settings(train={"ema_decay": 0.9})
    with pytest.raises(InputError, match=r"deepspeed.zero_stage \(2\) must be 0"):
        settings(deepspeed={"zero_stage": 2})
    with pytest.raises(InputError, match=r"decoder.depth \(2\) must be one of 1, 3"):
        settings(decoder={"depth": 2})
