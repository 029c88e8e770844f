"""The loop: exact resume at every ZeRO stage, skipped steps, stops, full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError, ResumableStop
from beit.common.processes.signals import stop_on_signals
from beit.common.reading.fetcher import StoppedWaiting
from beit.common.runs.commits import committed_steps
from beit.common.runs.metrics import read_metrics
from beit.common.training import saver
from beit.common.training.judge import Diverged
from beit.tests.toy_training import ToyData, ToyTask, toy_config, train_toy


def tensors_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    directory = run / "checkpoints" / f"step_{step}"
    contents = {file.stem: load_file(file) for file in directory.glob("*.safetensors")}
    return {f"{stem}:{name}": value for stem, tensors in contents.items() for name, value in tensors.items()}


def assert_same_tensors(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name, value in left.items() if not torch.equal(value, right[name])]
    assert not different


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path, zero_stage: int) -> None:
    stage = f"deepspeed.zero_stage={zero_stage}"
    train_toy(tmp_path / "whole", toy_config(stage))
    with pytest.raises(ResumableStop, match="step 4 of 8"):
        train_toy(tmp_path / "cut", toy_config(stage, "stop_at=3"))
    result, task = train_toy(tmp_path / "cut", toy_config(stage))
    assert result.step == 8
    assert_same_tensors(tensors_of(tmp_path / "whole", 8), tensors_of(tmp_path / "cut", 8))
    assert_same_tensors(
        load_file(tmp_path / "whole/encoder/model.safetensors"), load_file(tmp_path / "cut/encoder/model.safetensors")
    )


def test_three_stops_leave_the_trajectory_as_it_is(tmp_path: Path) -> None:
    keep_all = ("checkpoint.interval_steps=1", "checkpoint.keep=9", "train.ema_decay=0.9")
    train_toy(tmp_path / "whole", toy_config(*keep_all))
    for stop in (1, 4, 5):
        with pytest.raises(ResumableStop):
            train_toy(tmp_path / "cut", toy_config(*keep_all, f"stop_at={stop}"))
    train_toy(tmp_path / "cut", toy_config(*keep_all))
    for step in range(1, 9):
        assert_same_tensors(tensors_of(tmp_path / "whole", step), tensors_of(tmp_path / "cut", step))


def test_a_signal_during_a_save_is_heeded_after_it(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match="stopped at step 3 of 8 .SIGUSR1., saved"):
        train_toy(tmp_path, toy_config("signal_in_save=3"))
    train_toy(tmp_path, toy_config())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_6", "step_8"]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_stop_while_the_data_are_silent_saves_the_step_as_it_began(
    tmp_path: Path, zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step, after dropout has drawn random numbers."""
    settings = (f"deepspeed.zero_stage={zero_stage}", "checkpoint.interval_steps=100")
    train_toy(tmp_path / "whole", toy_config(*settings))
    micro_batches = ToyData.micro_batches

    def silent_at_step_4(self: ToyData, start_step: int) -> Iterator[Any]:
        yield from islice(micro_batches(self, start_step), 4 * 4 + 2)
        raise StoppedWaiting("stopped (SIGTERM) while waiting for data worker 0")

    monkeypatch.setattr(ToyData, "micro_batches", silent_at_step_4)
    message = "^stopped .SIGTERM. while waiting for data worker 0; step 4 of 8, step 4 is saved; run the same command"
    with pytest.raises(ResumableStop, match=message):
        train_toy(tmp_path / "cut", toy_config(*settings))
    monkeypatch.undo()
    train_toy(tmp_path / "cut", toy_config(*settings))
    whole, cut = tensors_of(tmp_path / "whole", 8), tensors_of(tmp_path / "cut", 8)
    del whole["model:calls"], cut["model:calls"]  # counts forward passes, two of which were in vain
    assert_same_tensors(whole, cut)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_stop_does_not_wait_for_the_rest_of_a_long_step(
    tmp_path: Path, zero_stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"deepspeed.zero_stage={zero_stage}", "checkpoint.interval_steps=100")
    train_toy(tmp_path / "whole", toy_config(*settings))
    micro_batches, said = ToyData.micro_batches, []

    def stopped_in_step_4(self: ToyData, start_step: int) -> Iterator[Any]:
        for number, batch in enumerate(micro_batches(self, start_step)):
            if number == 4 * 4 + 2:
                os.kill(os.getpid(), signal.SIGTERM)
                with stop_on_signals() as stop:
                    said.append(stop.outlook())
            yield batch

    monkeypatch.setattr(ToyData, "micro_batches", stopped_in_step_4)
    monkeypatch.setattr("beit.common.training.trainer.LONG_REST_SECONDS", 0.0)
    message = (
        r"^stopped .SIGTERM. within a step, the rest of which takes .* s; step 4 of 8, step 4 is saved; run the same"
    )
    with pytest.raises(ResumableStop, match=message):
        train_toy(tmp_path / "cut", toy_config(*settings))
    assert "stopping after this micro-batch (about 1 s)" in said[0]
    monkeypatch.undo()
    train_toy(tmp_path / "cut", toy_config(*settings))
    whole, cut = tensors_of(tmp_path / "whole", 8), tensors_of(tmp_path / "cut", 8)
    del whole["model:calls"], cut["model:calls"]  # counts forward passes, three of which were in vain
    assert_same_tensors(whole, cut)


def test_a_stop_waits_for_the_rest_of_a_short_step(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match="stopped at step 4 of 8 .SIGTERM., saved"):
        train_toy(tmp_path, toy_config("stop_at=3"))


def test_saves_come_by_the_clock_too(tmp_path: Path) -> None:
    rhythm = ("checkpoint.every_minutes=1e-9", "checkpoint.interval_steps=100", "checkpoint.keep=9")
    train_toy(tmp_path, toy_config(*rhythm))
    assert committed_steps(tmp_path / "checkpoints") == {*range(9)}


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "uncommitted"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    train_toy(tmp_path, toy_config())
    whole, newest = tensors_of(tmp_path, 8), tmp_path / "checkpoints/step_8"
    file = newest / ("COMMIT.json" if damage == "uncommitted" else "optimizer.safetensors")
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "checkpoints/latest").write_text("")
    train_toy(tmp_path, toy_config())
    assert f"checkpoint rejected: {newest}" in caplog.text
    assert_same_tensors(tensors_of(tmp_path, 8), whole)


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", toy_config())
    for zero_stage in (0, 3):
        config = toy_config(f"deepspeed.zero_stage={zero_stage}", "hidden=17")
        with pytest.raises(InputError, match=r"3 tensors differ, such as first.bias \(\(16,\) there, \(17,\) here\)"):
            train_toy(tmp_path / "other", config, resume=str(tmp_path / "run"))


def test_checkpoint_moves_between_zero_stages(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "run", toy_config("deepspeed.zero_stage=2", "stop_at=3"))
    train_toy(tmp_path / "run", toy_config("deepspeed.zero_stage=0"))
    train_toy(tmp_path / "whole", toy_config())
    moved, whole = tensors_of(tmp_path / "run", 8), tensors_of(tmp_path / "whole", 8)
    assert moved.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-6)


def test_finished_run_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "beit")
    first, _ = train_toy(tmp_path, toy_config())
    assert "is finished" not in caplog.text
    again, task = train_toy(tmp_path, toy_config())
    assert again == first and again.start_step == again.step == 8
    assert f"{tmp_path} is finished (8 of 8 steps); to train longer run the same command with" in caplog.text
    assert f"--resume {tmp_path}" in caplog.text and "training:" not in caplog.text.partition("is finished")[2]
    assert task.evaluated == []


def test_metrics_have_one_record_per_step_after_a_resume(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", toy_config())
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "cut", toy_config("stop_at=3"))
    (tmp_path / "cut/metrics.jsonl").open("a").write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')  # work that was lost
    train_toy(tmp_path / "cut", toy_config())
    whole, cut = read_metrics(tmp_path / "whole/metrics.jsonl"), read_metrics(tmp_path / "cut/metrics.jsonl")
    speed = ("images_per_second", "data_wait", "peak_memory_bytes", "evaluation_seconds", "evaluation_share")
    strip = [[{k: v for k, v in record.items() if k not in speed} for record in records] for records in (whole, cut)]
    assert strip[0] == strip[1]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_nonfinite_gradient_changes_neither_weights_nor_schedule(tmp_path: Path, zero_stage: int) -> None:
    keep_all = ("checkpoint.interval_steps=1", "checkpoint.keep=9")
    config = toy_config(f"deepspeed.zero_stage={zero_stage}", "bad_steps=[3]", *keep_all)
    result, _ = train_toy(tmp_path, config)
    assert result.nonfinite_steps == 1
    before, after = tensors_of(tmp_path, 3), tensors_of(tmp_path, 4)
    for state in (before, after):  # drop-out and the data went on
        del state["rng:rank0/cpu"], state["model:calls"]
    assert_same_tensors(before, after)
    lrs = {record["step"]: record["lr"] for record in read_metrics(tmp_path / "metrics.jsonl") if "lr" in record}
    assert lrs[5] == lrs[4]
    assert json.loads((tmp_path / "nonfinite.jsonl").read_text()) == {
        "step": 3,
        "sample_ids": [["3/0/0", "3/0/1", "3/0/2", "3/0/3"]],
    }


def test_a_task_that_ends_steps_is_told_after_each_whether_it_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    told_task = type("ToldTask", (ToyTask,), {"end_step": lambda task, skipped: told.append(float(skipped))})
    monkeypatch.setattr("beit.tests.toy_training.ToyTask", told_task)
    train_toy(tmp_path, toy_config("bad_steps=[3]", "train.steps=6"))
    assert told == [0, 0, 0, 1, 0, 0]


def test_run_stops_after_more_than_three_nonfinite_steps_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="step 7.*more than 3 steps in a row"):
        train_toy(tmp_path, toy_config("bad_steps=[1, 2, 4, 5, 6, 7]"))
    assert (tmp_path / "checkpoints/step_6/COMMIT.json").exists()


def test_stop_before_the_first_step_saves_and_is_resumable(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match="step 0 of 8 .SIGTERM."):
        train_toy(tmp_path / "cut", toy_config("stop_at=0", "train.micro_batch_size=8"))
    train_toy(tmp_path / "cut", toy_config("train.micro_batch_size=8"))
    train_toy(tmp_path / "whole", toy_config("train.micro_batch_size=8"))
    assert_same_tensors(tensors_of(tmp_path / "whole", 8), tensors_of(tmp_path / "cut", 8))


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train_toy(tmp_path, toy_config("train.steps=1", "optimizer.warmup_steps=0"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_data_are_refused(tmp_path: Path) -> None:
    train_toy(tmp_path / "run", toy_config())
    with pytest.raises(InputError, match="num_samples was 40, is 41"):
        train_toy(tmp_path / "other", toy_config("num_samples=41"), resume=str(tmp_path / "run"))


def test_explicit_resume_continues_with_other_settings(tmp_path: Path) -> None:
    train_toy(tmp_path, toy_config())
    with pytest.raises(InputError, match="train.steps was 8, is 10"):
        train_toy(tmp_path, toy_config("train.steps=10"))
    result, _ = train_toy(tmp_path, toy_config("train.steps=10"), resume=str(tmp_path / "checkpoints/step_6"))
    assert result.step == 10
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_10", "step_9"]


def test_full_disk_is_survived_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failures = saver.save_checkpoint, [1]

    def fail_once(*args: object, **kwargs: object) -> Path:
        if failures and failures.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr(saver, "save_checkpoint", fail_once)
    result, _ = train_toy(tmp_path, toy_config())
    assert result.step == 8
    assert "checkpoint at step 3 failed" in caplog.text


def test_second_full_disk_in_a_row_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saver, "save_checkpoint", fail)
    with pytest.raises(RuntimeError, match="checkpoint at step 6 failed .*No space left"):
        train_toy(tmp_path, toy_config())


def test_full_disk_at_the_end_is_not_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saver, "save_checkpoint", fail)
    with pytest.raises(RuntimeError, match="checkpoint at step 2 failed"):
        train_toy(tmp_path, toy_config("train.steps=2"))


def test_lone_process_does_not_look_like_a_rank_to_its_children(tmp_path: Path) -> None:
    train_toy(tmp_path, toy_config("train.steps=1", "optimizer.warmup_steps=0"))
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & os.environ.keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_fp32_weights(tmp_path: Path, precision: str) -> None:
    train_toy(tmp_path, toy_config(f"train.precision={precision}"))
    state = load_file(tmp_path / "encoder/model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("steps", "interval", "evaluated"), [(12, 4, [4, 8, 12]), (12, 5, [5, 10, 12]), (23, 11, [11, 23])]
)
def test_an_evaluation_just_before_the_end_is_left_to_the_end(tmp_path, steps, interval, evaluated):
    _, task = train_toy(tmp_path, toy_config(f"train.steps={steps}", f"train.eval_interval_steps={interval}"))
    assert task.evaluated == evaluated


@pytest.mark.parametrize("name", ["data", "world_size", "nonfinite", "evaluation"])
@pytest.mark.parametrize("value", ["absent", None, [], "x", {"total": "1", "recent": []}])
def test_a_record_of_before_that_was_edited_is_refused_and_nothing_rewritten(
    tmp_path: Path, done: Path, name: str, value: object
) -> None:
    shutil.copytree(done, tmp_path / "run")
    commit = tmp_path / "run/checkpoints/step_8/COMMIT.json"
    document = json.loads(commit.read_text())
    del document["sha256"]
    document["record"] |= {name: value}
    if value == "absent":
        del document["record"][name]
    commit.write_text(json.dumps(document))
    if name == "data" and value == {"total": "1", "recent": []}:
        return  # other data
    before = (tmp_path / "run/config.toml").stat().st_mtime_ns
    with pytest.raises(InputError, match="COMMIT.json is damaged .*; delete this checkpoint to go on from the one bef"):
        train_toy(tmp_path / "run", toy_config())
    assert (tmp_path / "run/config.toml").stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("done") / "run"
    train_toy(run, toy_config())
    return run
