"""The average of the weights: its formula at every ZeRO stage, exact resume, and that training does not notice it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from beit.common.errors import InputError, ResumableStop
from beit.common.runs.metrics import read_metrics
from beit.common.training.config import TrainConfig
from beit.common.training.ema import WeightAverage
from beit.tests.toy_training import WIDTH, ToyModel, toy_config, train_toy

EMA = "train.ema_decay=0.3"
EVERY_STEP = ("checkpoint.interval_steps=1", "checkpoint.keep=9")
TRAINED = ("first.weight", "first.bias", "second.weight", "second.bias")


def saved(run: Path, step: int, name: str = "optimizer") -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step}/{name}.safetensors")


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_average_follows_its_formula(tmp_path: Path, zero_stage: int) -> None:
    train_toy(tmp_path, toy_config(f"deepspeed.zero_stage={zero_stage}", EMA, *EVERY_STEP))
    torch.manual_seed(0)
    expected = {name: value.detach().clone() for name, value in ToyModel().named_parameters() if name in TRAINED}
    for done in range(8):
        decay = min(0.3, (1 + done) / (10 + done))
        for name, value in saved(tmp_path, done + 1, "model").items():
            if name in TRAINED:
                expected[name] = decay * expected[name] + (1 - decay) * value
        averages = saved(tmp_path, done + 1)
        for name in TRAINED:
            torch.testing.assert_close(averages[f"ema/{name}"], expected[name], rtol=1e-5, atol=1e-6)
        assert averages["ema_updates"] == done + 1
    assert not any("frozen" in name for name in averages)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_resume_is_bit_equal_with_an_average(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"deepspeed.zero_stage={zero_stage}", EMA)
    train_toy(tmp_path / "whole", toy_config(*settings))
    with pytest.raises(ResumableStop, match="step 4 of 8"):
        train_toy(tmp_path / "cut", toy_config(*settings, "stop_at=3"))
    train_toy(tmp_path / "cut", toy_config(*settings))
    for name in ("model", "optimizer", "rng"):
        whole, cut = saved(tmp_path / "whole", 8, name), saved(tmp_path / "cut", 8, name)
        assert whole.keys() == cut.keys()
        assert not [key for key, value in whole.items() if not torch.equal(value, cut[key])]


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_average_is_measured_and_given_away_while_training_goes_on_as_without(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"deepspeed.zero_stage={zero_stage}", "train.eval_interval_steps=2")
    train_toy(tmp_path / "with", toy_config(*settings, EMA))
    train_toy(tmp_path / "without", toy_config(*settings))
    with_average, without = saved(tmp_path / "with", 8, "model"), saved(tmp_path / "without", 8, "model")
    assert not [name for name, value in without.items() if not torch.equal(value, with_average[name])]
    given = load_file(tmp_path / "with/encoder/model.safetensors")
    averages = saved(tmp_path / "with", 8)
    assert all(torch.equal(given[name], averages[f"ema/{name}"]) for name in TRAINED)
    assert not torch.equal(given["first.weight"], without["first.weight"])
    model = ToyModel().eval()
    model.load_state_dict(given)
    values = torch.ones(2, WIDTH)
    with torch.no_grad():
        expected = float((model(values) - values).pow(2).mean())
    assert read_metrics(tmp_path / "with/metrics.jsonl")[-1]["val_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_skipped_step_leaves_the_average_alone(tmp_path: Path, zero_stage: int) -> None:
    train_toy(tmp_path, toy_config(f"deepspeed.zero_stage={zero_stage}", EMA, "bad_steps=[3]", *EVERY_STEP))
    before, after = saved(tmp_path, 3), saved(tmp_path, 4)
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert saved(tmp_path, 8)["ema_updates"] == 7


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_running_statistics_are_averaged_with_the_weights(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"deepspeed.zero_stage={zero_stage}", "batch_norm=true", "train.eval_interval_steps=2")
    train_toy(tmp_path / "with", toy_config(*settings, EMA, *EVERY_STEP))
    train_toy(tmp_path / "without", toy_config(*settings))
    with_average, without = saved(tmp_path / "with", 8, "model"), saved(tmp_path / "without", 8, "model")
    assert not [name for name, value in without.items() if not torch.equal(value, with_average[name])]
    expected = {"norm.running_mean": torch.zeros(16), "norm.running_var": torch.ones(16)}
    for done in range(8):
        decay = min(0.3, (1 + done) / (10 + done))
        for name, value in expected.items():
            expected[name] = decay * value + (1 - decay) * saved(tmp_path / "with", done + 1, "model")[name]
    given, averages = load_file(tmp_path / "with/encoder/model.safetensors"), saved(tmp_path / "with", 8)
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(given[name], averages[f"ema/{name}"]) and not torch.equal(given[name], without[name])
    model = ToyModel(batch_norm=True).eval()
    model.load_state_dict(given)
    values = torch.ones(2, WIDTH)
    with torch.no_grad():
        loss = float((model(values) - values).pow(2).mean())
    assert read_metrics(tmp_path / "with/metrics.jsonl")[-1]["val_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_resume_is_bit_equal_with_running_statistics(tmp_path: Path, zero_stage: int) -> None:
    settings = (f"deepspeed.zero_stage={zero_stage}", "batch_norm=true", EMA)
    train_toy(tmp_path / "whole", toy_config(*settings))
    with pytest.raises(ResumableStop, match="step 4 of 8"):
        train_toy(tmp_path / "cut", toy_config(*settings, "stop_at=3"))
    train_toy(tmp_path / "cut", toy_config(*settings))
    for name in ("model", "optimizer", "rng"):
        whole, cut = saved(tmp_path / "whole", 8, name), saved(tmp_path / "cut", 8, name)
        assert whole.keys() == cut.keys()
        assert not [key for key, value in whole.items() if not torch.equal(value, cut[key])]


def test_average_moves_between_zero_stages(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "run", toy_config(EMA, "deepspeed.zero_stage=3", "stop_at=3"))
    train_toy(tmp_path / "run", toy_config(EMA, "deepspeed.zero_stage=0"))
    train_toy(tmp_path / "whole", toy_config(EMA))
    moved, whole = saved(tmp_path / "run", 8), saved(tmp_path / "whole", 8)
    assert moved.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-6)


def test_average_may_begin_in_a_run_that_had_none(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop):
        train_toy(tmp_path, toy_config("stop_at=3"))
    with pytest.raises(InputError, match=r"train.ema_decay was None, is 0.3"):
        train_toy(tmp_path, toy_config(EMA))
    train_toy(tmp_path, toy_config(EMA), resume=str(tmp_path))
    assert saved(tmp_path, 8)["ema_updates"] == 4


def test_overwritten_rows_jump_and_the_others_go_on(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.arange(6.0).view(3, 2))
    average = torch.full((3, 2), -1.0)
    engine = SimpleNamespace(averages={weight: average})
    WeightAverage(engine, 0.9).restart_rows(weight, torch.tensor([False, True, False]))  # type: ignore[arg-type]
    assert average.tolist() == [[-1, -1], [2, 3], [-1, -1]]


def test_without_a_decay_nothing_is_kept(tmp_path: Path) -> None:
    train_toy(tmp_path, toy_config("train.steps=2"))
    assert not [name for name in saved(tmp_path, 2) if name.startswith("ema")]


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(InputError, match=r"train\.ema_decay"):
        TrainConfig(ema_decay=decay)
