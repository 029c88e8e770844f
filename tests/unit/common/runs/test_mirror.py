"""A run's copy elsewhere: complete, found by a machine that has nothing, and never that of another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError, ResumableStop
from beit.common.processes.distributed import World
from beit.common.runs.checkpoint import Checkpoint, open_checkpoint
from beit.common.runs.commits import committed_steps
from beit.common.runs.metrics import read_metrics
from beit.common.runs.mirror import RunMirror
from beit.common.runs.run_dir import RunDirectory, _make_visible, begin_run, open_run
from beit.tests.s3_server import serve_s3
from beit.tests.toy_training import ToyData, toy_config, train_toy


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    server = serve_s3({}) if request.param == "s3" else nullcontext(f"file://{tmp_path}/elsewhere")
    with server as url:
        yield f"{url}/runs/toy"


def weights(run: Path, step: int = 8) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step}/model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def names(place: str) -> list[str]:
    return RunMirror(place)._names()


def test_a_machine_that_has_nothing_goes_on_from_the_copy(tmp_path: Path, place: str) -> None:
    sync = f"run.sync_to={place}"
    train_toy(tmp_path / "whole", toy_config())
    with pytest.raises(ResumableStop, match="step 6 of 8 .SIGTERM., saved; run"):
        train_toy(tmp_path / "lost", toy_config(sync, "stop_at=5"))
    copied = names(place)
    assert {"config.toml", "environment.json", "metrics.jsonl", "encoder/model.safetensors"} <= set(copied)
    assert not [name for name in copied if name.startswith(("tensorboard", ".outgoing"))]
    shutil.rmtree(tmp_path / "lost")
    result, _ = train_toy(tmp_path / "fresh", toy_config(sync))
    assert result.step == 8
    assert same(weights(tmp_path / "fresh"), weights(tmp_path / "whole"))
    assert [record["step"] for record in read_metrics(tmp_path / "fresh/metrics.jsonl") if "lr" in record] == [
        *range(1, 9)
    ]
    steps = {name.split("/")[1] for name in names(place) if name.startswith("checkpoints/")}
    assert steps == {f"step_{step}" for step in committed_steps(tmp_path / "fresh/checkpoints")} == {"step_6", "step_8"}


def test_a_machine_that_is_behind_catches_up_and_another_run_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path / "elsewhere")
    sync = f"run.sync_to={place}"
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "one", toy_config(sync, "stop_at=2"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    train_toy(tmp_path / "one", toy_config(sync))
    train_toy(tmp_path / "two", toy_config(sync))
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"))
    train_toy(tmp_path / "other", toy_config())
    before = {name: (Path(place) / name).read_bytes() for name in names(place)}
    with pytest.raises(InputError, match="is the copy of another run"):
        train_toy(tmp_path / "other", toy_config(sync))
    with pytest.raises(InputError, match="already holds a run"):
        train_toy(tmp_path / "new", toy_config(sync), resume="never")
    assert before == {name: (Path(place) / name).read_bytes() for name in names(place)}


def test_a_place_that_holds_something_else_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="not empty and not a copy of a run"):
        train_toy(tmp_path / "run", toy_config(f"run.sync_to={tmp_path}/photos"))
    with pytest.raises(InputError, match="must not be in the run itself"):
        train_toy(tmp_path / "run", toy_config(f"run.sync_to={tmp_path}/run/copy"))
    with pytest.raises(InputError, match="cannot be written"):
        train_toy(tmp_path / "run", toy_config(f"run.sync_to={tmp_path}/photos/cat.jpg/run"))


@pytest.mark.parametrize("damage", ["cut", "uncommitted"])
def test_damage_in_the_copy_falls_back_to_the_checkpoint_before(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, offer = tmp_path / "elsewhere", RunMirror.offer

    def offer_and_wait(self: RunMirror, run: Path, step: int) -> None:
        offer(self, run, step)
        assert self.wait(60)  # else a newer checkpoint may take the place of one that is not under way yet

    monkeypatch.setattr(RunMirror, "offer", offer_and_wait)
    train_toy(tmp_path / "one", toy_config(f"run.sync_to={place}"))
    newest = place / "checkpoints/step_8"
    if damage == "cut":
        (newest / "model.safetensors").write_bytes(b"")
    else:
        (newest / "COMMIT.json").unlink()
    RunMirror(str(place)).fetch(tmp_path / "two")
    assert committed_steps(tmp_path / "two/checkpoints") == {6}
    assert open_checkpoint(tmp_path / "two/checkpoints/step_6").step == 6
    assert ("model.safetensors has 0 bytes" in caplog.text) == (damage == "cut")


def test_a_copy_that_fails_does_not_stop_the_training_and_the_same_command_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(f"run.sync_to={tmp_path}/elsewhere")
    real = RunMirror._put

    def fail(self: RunMirror, path: Path, name: str) -> None:
        if name.endswith("optimizer.safetensors"):
            raise OSError("the server is on fire")
        real(self, path, name)

    monkeypatch.setattr(RunMirror, "_put", fail)
    with pytest.raises(RuntimeError, match="is complete in .* not copied to .*the server is on fire"):
        train_toy(tmp_path / "run", config)
    assert RunMirror(f"{tmp_path}/elsewhere").newest_step() == -1
    assert "tried again after the next save" in caplog.text
    monkeypatch.undo()
    train_toy(tmp_path / "run", config)
    assert RunMirror(f"{tmp_path}/elsewhere").newest_step() == 8


class SecondMachine(World):
    """Rank 1 of 2, on a machine of its own; rank 0 sees everything."""

    def gather(self, value: Any) -> list[Any]:
        return [True, value]


def test_a_second_machine_fetches_what_the_first_goes_on_from(tmp_path: Path) -> None:
    world = SecondMachine(rank=1, local_rank=0, world_size=2, device=torch.device("cpu"))
    train_toy(tmp_path / "first", toy_config(f"run.sync_to={tmp_path}/elsewhere"))
    second = tmp_path / "second"
    checkpoint = Checkpoint(path=second / "checkpoints/step_8", step=8, record={}, identity="")
    with pytest.raises(InputError, match="step_8 is not visible to rank 1; put the run on a file system that all"):
        _make_visible(RunDirectory(path=second, checkpoint=checkpoint), world)
    _make_visible(RunDirectory(path=second, checkpoint=checkpoint, sync_to=f"{tmp_path}/elsewhere"), world)
    assert same(weights(second), weights(tmp_path / "first"))


KEEP = "checkpoint.keep=9"


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("keep", [2, 9])
def test_a_copied_run_that_went_another_way_is_not_the_newer_self_of_the_first(tmp_path: Path, keep: int) -> None:
    sync, few = f"run.sync_to={tmp_path}/elsewhere", f"checkpoint.keep={keep}"
    rhythm = ("checkpoint.interval_steps=1", few)
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "one", toy_config(sync, *rhythm, "stop_at=2"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "one", toy_config(*rhythm, "stop_at=4"))  # its own way, not copied
    train_toy(tmp_path / "two", toy_config(sync, *rhythm, "optimizer.lr=5e-3"), resume=str(tmp_path / "two"))
    before, copied = tree(tmp_path / "one"), tree(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="went another way than .*one, since step 3; name another place, or delete"):
        train_toy(tmp_path / "one", toy_config(sync, *rhythm))
    assert tree(tmp_path / "one") == before and tree(tmp_path / "elsewhere") == copied
    train_toy(tmp_path / "one", toy_config(*rhythm, f"run.sync_to={tmp_path}/new"))


def test_of_two_new_runs_in_one_empty_place_one_is_refused(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look at the place while it is empty."""
    config = toy_config(f"run.sync_to={place}")
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    runs = [open_run(tmp_path / name, config, world=world, resume="auto", sync_to=place) for name in ("one", "two")]
    begin_run(runs[0], config, world=world)
    with pytest.raises(InputError, match="is the copy of another run .*one. than .*two; name a new or empty place"):
        begin_run(runs[1], config, world=world)
    assert not (tmp_path / "two").exists()
    with pytest.raises(InputError, match="is the copy of another run .*one. than .*two"):
        train_toy(tmp_path / "two", config)
    train_toy(tmp_path / "one", config)
    shutil.rmtree(tmp_path / "one")
    train_toy(tmp_path / "one", config)
    assert same(weights(tmp_path / "one"), load_file(_fetched(tmp_path, place)))


def _fetched(tmp_path: Path, place: str) -> Path:
    RunMirror(place).fetch(tmp_path / "fetched")
    return tmp_path / "fetched/checkpoints/step_8/model.safetensors"


def test_a_machine_that_vanished_before_its_first_checkpoint_is_followed_by_another(tmp_path: Path) -> None:
    config = toy_config(f"run.sync_to={tmp_path}/elsewhere")
    world = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    run = open_run(tmp_path / "run", config, world=world, resume="auto", sync_to=config.run.sync_to)
    begin_run(run, config, world=world)
    shutil.rmtree(tmp_path / "run")
    train_toy(tmp_path / "run", config)
    assert RunMirror(f"{tmp_path}/elsewhere").newest_step() == 8


def test_whoever_lost_the_place_sends_nothing_more_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "elsewhere"
    sync, offer, copied = f"run.sync_to={place}", RunMirror.offer, {}
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "one", toy_config(sync, "stop_at=2"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def offer_late(self: RunMirror, run: Path, step: int) -> None:
        if run.name == "one" and not copied:
            monkeypatch.setattr(RunMirror, "offer", offer)
            train_toy(tmp_path / "two", toy_config(sync))
            copied.update(tree(place))
        offer(self, run, step)

    monkeypatch.setattr(RunMirror, "offer", offer_late)
    with pytest.raises(RuntimeError, match="complete in .*one, but not copied to .*it belongs to .*two since 2"):
        train_toy(tmp_path / "one", toy_config(sync))
    assert tree(place) == copied


def test_a_new_run_of_other_settings_is_refused_before_anything_is_fetched(tmp_path: Path, place: str) -> None:
    train_toy(tmp_path / "old", toy_config(f"run.sync_to={place}"))
    for change in ("optimizer.lr=5e-3", "train.seed=3"):
        with pytest.raises(
            InputError, match="holds a run with other settings .*; use the same to go on with it, or na"
        ):
            train_toy(tmp_path / "new", toy_config(f"run.sync_to={place}", change))
    assert not (tmp_path / "new").exists()
    train_toy(tmp_path / "new", toy_config("train.seed=3"))


def test_a_new_run_of_other_data_leaves_its_directory_as_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = f"run.sync_to={tmp_path}/elsewhere"
    train_toy(tmp_path / "old", toy_config(sync))
    before = tree(tmp_path / "elsewhere")

    def other(self: ToyData, saved: object, **_: object) -> None:
        raise InputError("the data differ")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="the data differ"):
        patch.setattr(ToyData, "check_resume", other)
        train_toy(tmp_path / "new", toy_config(sync))
    assert not list((tmp_path / "new").iterdir()) and tree(tmp_path / "elsewhere") == before


def test_a_new_run_from_a_checkpoint_does_not_take_the_place_of_another(tmp_path: Path) -> None:
    sync = f"run.sync_to={tmp_path}/elsewhere"
    train_toy(tmp_path / "old", toy_config(sync, KEEP))
    before = tree(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="already holds a run; name a new or empty place"):
        train_toy(tmp_path / "new", toy_config(sync, KEEP), resume=str(tmp_path / "old/checkpoints/step_3"))
    assert tree(tmp_path / "elsewhere") == before and not (tmp_path / "new").exists()


def test_an_intact_checkpoint_of_the_copy_replaces_a_damaged_one(tmp_path: Path) -> None:
    sync = f"run.sync_to={tmp_path}/elsewhere"
    train_toy(tmp_path / "run", toy_config(sync))
    whole = {name: value.clone() for name, value in weights(tmp_path / "run").items()}  # not a map of the file
    for step in (6, 8):
        (tmp_path / f"run/checkpoints/step_{step}/model.safetensors").write_bytes(b"")
    train_toy(tmp_path / "run", toy_config(sync))
    assert same(weights(tmp_path / "run"), whole)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"starts": [null]}', b'{"run_id": 3}', b"null", b'{"starts": {}}'])
def test_a_damaged_record_of_starts_is_one_line(tmp_path: Path, content: bytes) -> None:
    sync = f"run.sync_to={tmp_path}/elsewhere"
    train_toy(tmp_path / "run", toy_config(sync))
    record = tmp_path / "run/environment.json"
    good = record.read_bytes()
    record.write_bytes(content)
    with pytest.raises(InputError, match="environment.json is"):
        train_toy(tmp_path / "run", toy_config(sync))
    record.unlink()  # the way out; whose run it is, the copy knows
    train_toy(tmp_path / "run", toy_config(sync))
    assert json.loads(record.read_text())["run_id"] == json.loads(good)["run_id"]
    (tmp_path / "elsewhere/environment.json").write_bytes(content)
    with pytest.raises(InputError, match="elsewhere/environment.json is"):
        train_toy(tmp_path / "run", toy_config(sync))
    record.unlink()
    train_toy(tmp_path / "run", toy_config())
