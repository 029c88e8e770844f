"""What a run says of itself: how long, how much memory and disk, and that a plan promises little."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from beit.common.forecast.words import in_gb, in_words
from beit.common.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, plan_training
from beit.common.training.outlook import expectation
from beit.common.training.outlook.forecast import better_batch, plan_advice
from beit.tests.toy_training import toy_config, train_toy


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("about ")]


@pytest.mark.parametrize("settings", [(), ("train.micro_batch_size=8",), ("deepspeed.zero_stage=3",)])
def test_a_run_says_once_what_it_will_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: tuple[str, ...]
) -> None:
    caplog.set_level("INFO")
    train_toy(tmp_path, toy_config(*settings))
    (line,) = said(caplog)
    assert " per step, " in line and "GB of disk" not in line and " of memory" in line
    assert line.split("disk (checkpoints of ")[1] == "2.6 kB)"


def test_a_run_of_one_micro_batch_is_over_before_there_is_anything_to_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train_toy(tmp_path, toy_config("train.micro_batch_size=8", "train.steps=1", "optimizer.warmup_steps=0"))
    assert not said(caplog)


def test_a_full_disk_is_foreseen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=5000))
    monkeypatch.setattr(expectation, "shutil", full)
    train_toy(tmp_path, toy_config())
    assert any(f"the disk of {tmp_path} has 5 kB free, and the run will need" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.234, "0.23 s"), (26.2, "26 s"), (1260, "21 min"), (18_800, "5.2 h"), (270_000, "3.1 days"), (1e7, "116 days")],
)
def test_durations_are_read_at_a_glance(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_amounts_are_read_at_a_glance() -> None:
    assert [in_gb(value) for value in (2530, 12e6, 2.1e9)] == ["2.53 kB", "12 MB", "2.1 GB"]


@pytest.mark.parametrize(("num_samples", "batch"), [(3, 8), (120, 8), (1000, 64), (5000, 256)])
def test_a_better_batch_makes_about_ten_steps_of_an_epoch(num_samples: int, batch: int) -> None:
    assert better_batch(num_samples) == batch


@pytest.mark.parametrize(
    ("num_samples", "batch", "epochs", "words"),
    [
        (120, 2048, 800.0, "more than the 120 images"),
        (120, 64, 20.0, "37 steps = 19.73 epochs of 120 images teach little"),
        (120, 64, 800.0, None),
        (120, 8, 1.0, None),
        (100_000, 2048, 800.0, None),
    ],
)
def test_a_plan_of_few_steps_is_warned_of_with_values_that_help(
    num_samples: int, batch: int, epochs: float, words: str | None
) -> None:
    config = toy_config("optimizer.lr=1.5e-3")
    train = TrainConfig(global_batch_size=batch, epochs=epochs)
    config = type(config)(train=train, optimizer=OptimizerConfig())
    plan = plan_training(train, OptimizerConfig(), CheckpointConfig(), num_samples=num_samples, world_size=1)
    advice = plan_advice(config, plan)
    if words is None:
        assert advice is None
        return
    line = str(advice)
    assert words in line
    lr = f"{1.5e-3 * (8 / batch) ** 0.5:.1g}"
    assert line.endswith(f"--set train.global_batch_size=8 --set optimizer.lr={lr}")


def test_a_log_and_a_bar_move_within_a_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("beit.common.progress.LOG_INTERVAL_SECONDS", 0.0)
    train_toy(tmp_path, toy_config("train.steps=2"))
    shown = [line.split()[1] for line in caplog.messages if line.startswith("training: ")]
    assert shown == ["0/2", "0.25/2", "0.50/2", "0.75/2", "1/2", "1/2", "1.25/2", "1.50/2", "1.75/2", "2/2"]
