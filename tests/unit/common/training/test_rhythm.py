"""How often a training evaluates: as set, else counted before it begins; the clock only makes it rarer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from beit.common.errors import ResumableStop
from beit.common.forecast.evaluations import SHARE, default_interval, evaluation_cost
from beit.common.processes.distributed import World
from beit.common.runs.metrics import read_metrics
from beit.common.training.config import CheckpointConfig, OptimizerConfig, TrainConfig, TrainingPlan, plan_training
from beit.common.training.rhythm import Rhythm
from beit.tests.toy_training import ToyTask, toy_config, train_toy

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


class CountingTask(ToyTask):
    def evaluation_images(self) -> float:
        return 1.0


def plan_for(train: TrainConfig, num_images: int = 120) -> TrainingPlan:
    return plan_training(train, OptimizerConfig(), CheckpointConfig(), num_samples=num_images, world_size=1)


def rhythm_for(cost: float, *, steps: int = 187, batch: int = 32, **settings: int) -> Rhythm:
    train = TrainConfig(steps=steps, global_batch_size=batch, **settings)
    return Rhythm(train, plan_for(train), cost=cost, world=ALONE)


def steps_of(rhythm: Rhythm, total: int = 187) -> list[int]:
    return [step for step in range(1, total + 1) if rhythm.is_due(step)]


@pytest.mark.parametrize("images", [0, 30, 150, 3000, 1_000_000])
@pytest.mark.parametrize(("steps", "batch"), [(6, 8), (187, 32), (1000, 64), (20_000, 256)])
@pytest.mark.parametrize("flops", [None, 1e8, 1e9, 1e11])
def test_all_evaluations_together_are_counted_as_a_tenth_at_most(
    images: int, steps: int, batch: int, flops: float | None
) -> None:
    cost = evaluation_cost(images, flops=flops, device="cpu", world_size=1)
    due = steps_of(rhythm_for(cost, steps=steps, batch=batch), steps)
    assert due[-1] == steps, "there is always one at the end"
    assert len(due) == 1 or cost * len(due) <= SHARE * (steps * batch + cost * len(due)) * (1 + 1e-9)


def test_where_evaluations_cost_little_there_is_one_per_epoch() -> None:
    plan = plan_for(TrainConfig(epochs=10, global_batch_size=100), num_images=50_000)
    run = {"per_epoch": plan.eval_interval_steps, "total_steps": plan.total_steps}
    run["global_batch_size"] = plan.global_batch_size
    assert default_interval(1000.0, **run) == plan.eval_interval_steps == 500
    assert default_interval(100_000.0, **run) == 5000 == plan.total_steps


def test_a_small_run_evaluates_a_few_times_instead_of_every_fourth_step() -> None:
    rhythm = rhythm_for(evaluation_cost(60, flops=1.1e9, device="cpu", world_size=1))
    assert len(steps_of(rhythm)) in range(3, 20)
    assert "so that it takes at most a tenth of the time" in str(rhythm)


def test_a_set_interval_is_kept_whatever_it_costs_and_the_share_is_said() -> None:
    rhythm = rhythm_for(300.0, eval_interval_steps=4)
    assert steps_of(rhythm) == [*range(4, 187, 4), 187]
    rhythm.note_evaluation(4, 1e6)
    assert steps_of(rhythm) == [*range(4, 187, 4), 187]
    assert str(rhythm).startswith("evaluates every 4 steps and at the end: about 7")


def test_a_dear_evaluation_is_made_once_and_what_it_takes_is_said() -> None:
    rhythm = rhythm_for(6000.0)
    assert steps_of(rhythm) == [187]
    assert str(rhythm) == "evaluates once, at the end, which takes about 50% of the time"


def test_the_clock_doubles_the_interval_where_an_evaluation_was_dearer_than_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("beit.common.training.rhythm.time.monotonic", lambda: now[0])
    rhythm = rhythm_for(50.0, steps=1000, batch=10)
    interval = steps_of(rhythm, 1000)[0]
    rhythm.start()
    now[0] += 1.0 * interval + 5.0  # a second per step: at most 111 s of evaluations, 22 of 5 s
    spent = rhythm.note_evaluation(interval, 5.0)
    assert spent["evaluation_seconds"] == 5.0 and spent["evaluation_share"] == pytest.approx(5 / (interval + 5), 1e-3)
    assert steps_of(rhythm, 1000)[0] == interval
    now[0] += 1.0 * interval + 15.0
    with caplog.at_level(logging.INFO, logger="beit"):
        rhythm.note_evaluation(2 * interval, 15.0)
    later = [step for step in steps_of(rhythm, 1000) if step > 2 * interval]
    assert later[0] % (2 * interval) == 0 and len(later) > 1 and 20 + 15 * len(later) <= 112
    assert caplog.messages[-1].startswith("an evaluation took 15.0 s, too much for a tenth of the time: from now on ")


def test_what_was_decided_goes_through_a_checkpoint_and_settings_have_the_last_word() -> None:
    before, after, other = rhythm_for(40.0), rhythm_for(40.0), rhythm_for(40.0, eval_interval_steps=5)
    before.start()
    before.note_evaluation(40, 1e6)
    for rhythm in (after, other):
        rhythm.restore(before.state())
    assert steps_of(after) == steps_of(before) == [187]
    assert steps_of(other)[0] == 5
    longer = rhythm_for(40.0, steps=400)
    longer.restore(before.state())
    assert len(steps_of(longer, 400)) > 1
    longer.restore({})  # a checkpoint of before


def test_patience_that_cannot_run_out_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="beit"):
        rhythm_for(130.0, early_stop_evals=5).start()
    assert "train.early_stop_evals (5) cannot end this run: it evaluates only 5 times" in caplog.messages[-1]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="beit"):
        rhythm_for(130.0, early_stop_evals=4).start()
    assert len(caplog.messages) == 1


def test_a_resumed_run_evaluates_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beit.tests.toy_training.ToyTask", CountingTask)
    monkeypatch.setattr("beit.common.forecast.evaluations._FIXED_SECONDS", 0.001)
    monkeypatch.setattr(Rhythm, "_affordable", lambda self, step, seconds: 3)  # as a clock would have it
    settings = ("train.steps=12", "train.eval_interval_steps=none", "checkpoint.interval_steps=1")
    _, whole = train_toy(tmp_path / "whole", toy_config(*settings))
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "cut", toy_config(*settings, "stop_at=7"))
    _, cut = train_toy(tmp_path / "cut", toy_config(*settings))
    assert whole.evaluated[-1] == 12 and whole.evaluated[1:] == [6, 9, 12]
    assert cut.evaluated == [step for step in whole.evaluated if step > 8]
    records = [record for record in read_metrics(tmp_path / "whole/metrics.jsonl") if "evaluation_share" in record]
    assert [record["step"] for record in records] == whole.evaluated
    assert all(0 <= record["evaluation_share"] <= 1 for record in records)


def test_saves_that_cost_much_are_rarer_than_epochs_unless_they_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rhythm, "has_rested", lambda self, saved_at: False)
    rare = ("checkpoint.interval_steps=none", "train.steps=12", "checkpoint.keep=9")
    train_toy(tmp_path / "rare", toy_config(*rare))
    assert {path.name for path in (tmp_path / "rare/checkpoints").iterdir()} == {"latest", "step_12"}
    train_toy(tmp_path / "set", toy_config("checkpoint.keep=9"))
    assert {path.name for path in (tmp_path / "set/checkpoints").iterdir()} == {"latest", "step_3", "step_6", "step_8"}
