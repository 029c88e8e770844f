"""The best evaluation: kept through interruptions, and waited for no longer than asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError, ResumableStop
from beit.common.runs.metrics import read_metrics
from beit.common.training.judge import BestSoFar, Goal
from beit.tests.toy_training import toy_config, train_toy

LOWER = Goal(metric="loss", is_higher_better=False, keep_best=False)
EVERY_STEP = ("train.eval_interval_steps=1", "checkpoint.interval_steps=3")
EARLY = (*EVERY_STEP, "train.early_stop_evals=2", "worse_from=4", "keep_best=true", "train.ema_decay=0.5")
"""Evaluations get worse from step 4: step 3 is the best, and step 5 the end."""


def test_direction_is_the_goals() -> None:
    lower = BestSoFar(goal=LOWER, patience=None)
    higher = BestSoFar(goal=Goal(metric="loss", is_higher_better=True, keep_best=False), patience=None)
    assert [lower.note(step, {"loss": loss}) for step, loss in enumerate([3.0, 2.0, 2.0, 5.0])] == [1, 1, 0, 0]
    assert [higher.note(step, {"loss": loss}) for step, loss in enumerate([3.0, 2.0, 3.0, 5.0])] == [1, 0, 0, 1]
    assert (lower.value, lower.step, lower.evals_since) == (2.0, 1, 2)


def test_patience_counts_evaluations_that_measured_something() -> None:
    best = BestSoFar(goal=LOWER, patience=2)
    for step, metrics in enumerate([{}, {"loss": 1.0}, {"loss": 2.0}, {}, {"loss": float("nan")}]):
        assert not best.is_exhausted
        best.note(step, metrics)
    assert best.is_exhausted and best.step == 1


def test_state_goes_through_a_checkpoint() -> None:
    best, other = (BestSoFar(goal=LOWER, patience=3) for _ in range(2))
    best.note(1, {"loss": 1.0, "other": 2.0})
    best.note(2, {"loss": 1.5})
    other.restore(best.state())
    assert other == best


def test_early_stop_without_evaluations_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.early_stop_evals \(3\) needs evaluations"):
        BestSoFar(goal=None, patience=3)


def test_run_ends_early_and_gives_away_the_best(tmp_path: Path) -> None:
    result, _ = train_toy(tmp_path / "run", toy_config(*EARLY))
    assert result.step == 5 and result.best.step == 3
    train_toy(tmp_path / "short", toy_config(*EVERY_STEP, "train.ema_decay=0.5", "checkpoint.keep=9"))
    at_best = load_file(tmp_path / "short/checkpoints/step_3/optimizer.safetensors")
    given = load_file(tmp_path / "run/encoder/model.safetensors")
    assert torch.equal(given["first.weight"], at_best["ema/first.weight"])
    assert read_metrics(tmp_path / "run/metrics.jsonl")[-1]["step"] == 5


def test_run_that_ended_early_is_left_as_it_is(tmp_path: Path) -> None:
    first, _ = train_toy(tmp_path, toy_config(*EARLY))
    again, task = train_toy(tmp_path, toy_config(*EARLY))
    assert again == first and task.evaluated == []


def test_more_patience_continues_it(tmp_path: Path) -> None:
    train_toy(tmp_path, toy_config(*EARLY))
    result, _ = train_toy(tmp_path, toy_config(*EARLY, "train.early_stop_evals=none"))
    assert result.step == 8 and result.best.step == 3


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_interrupted_run_ends_early_at_the_same_step_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole, _ = train_toy(tmp_path / "whole", toy_config(*EARLY))
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "cut", toy_config(*EARLY, f"stop_at={stop_at}"))
    cut, _ = train_toy(tmp_path / "cut", toy_config(*EARLY))
    assert cut == whole
    for name in ("checkpoints/step_5/optimizer", "checkpoints/step_5/best", "encoder/model"):
        files = [tmp_path / run / f"{name}.safetensors" for run in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_kill_before_the_commit_makes_the_artifacts_again(tmp_path: Path) -> None:
    train_toy(tmp_path, toy_config(*EARLY))
    expected = (tmp_path / "encoder/model.safetensors").read_bytes()
    (tmp_path / "checkpoints/step_5/COMMIT.json").unlink()
    (tmp_path / "encoder/model.safetensors").write_bytes(b"half")
    train_toy(tmp_path, toy_config(*EARLY))
    assert (tmp_path / "encoder/model.safetensors").read_bytes() == expected
