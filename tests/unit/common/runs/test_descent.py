"""A run that goes back to a checkpoint: told so by the same command again and again, and killed at every point."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beit.common.errors import InputError, ResumableStop
from beit.common.runs import run_dir
from beit.common.runs.commits import committed_steps
from beit.common.storage import files
from beit.common.storage.files import set_trap
from beit.common.training import trainer
from beit.tests.toy_training import toy_config, train_toy

KEEP = ("checkpoint.keep=9",)
BACK = (*KEEP, "optimizer.lr=5e-3")


class KilledError(BaseException):
    """Stands for SIGKILL."""


class BegunError(BaseException):
    """The training loop was reached."""


def weights(run: Path, step: int = 8) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step_{step}/model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, its copy, and `back`: what going back to step 3 with another rate comes to."""
    root = tmp_path_factory.mktemp("whole")
    train_toy(root / "run", toy_config(*KEEP, f"run.sync_to={root}/copy"))
    shutil.copytree(root / "run", root / "back")
    train_toy(root / "back", toy_config(*BACK), resume=str(root / "back/checkpoints/step_3"))
    assert not same(weights(root / "back"), weights(root / "run"))
    return root


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.copytree(whole / "copy", tmp_path / "copy")
    return tmp_path


def go_back(place: Path, *overrides: str, resume: str | None = None, sync: bool = True) -> None:
    synced = (f"run.sync_to={place}/copy",) if sync else ()
    train_toy(place / "run", toy_config(*BACK, *synced, *overrides), resume=resume or f"{place}/run/checkpoints/step_3")


def is_killed(monkeypatch: pytest.MonkeyPatch, place: Path, trap: str, *, sync: bool) -> bool:
    """Begin to go back, dead at a fault point; returns whether it was met."""

    def die(*_: object) -> None:
        raise KilledError

    def begun(*_: object, **__: object) -> None:
        raise BegunError

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "kill", die)
        patch.setattr(trainer, "fit", begun)
        set_trap(trap)
        try:
            go_back(place, sync=sync)
        except KilledError:
            return True
        except BegunError:
            return False
        finally:
            set_trap("")
    raise AssertionError("neither killed nor begun")


def snapshots(monkeypatch: pytest.MonkeyPatch, whole: Path, tmp_path: Path, *, sync: bool) -> Iterator[Path]:
    """Yield what is left by a kill at each point on the way to the training loop."""
    for point in ("rename", "renamed", "aside"):
        for count in range(1, 99):
            place = tmp_path / f"{point}-{count}"
            shutil.copytree(whole / "run", place / "run")
            shutil.copytree(whole / "copy", place / "copy")
            if not is_killed(monkeypatch, place, f"{point}:{count}", sync=sync):
                assert count > 1
                break
            yield place


@pytest.mark.parametrize("sync", [False, True])
def test_killed_on_the_way_back_old_weights_never_stand_under_new_settings(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    back = weights(whole / "back")
    places = list(snapshots(monkeypatch, whole, tmp_path, sync=sync))
    assert len(places) > 6
    for place in places:
        shutil.copytree(place, place.with_name(f"{place.name}-same"))
        try:
            go_back(place, resume="auto", sync=sync)  # the plain command under the new settings
        except InputError as error:
            assert "other settings" in str(error)
        else:
            assert same(weights(place / "run"), back), place.name
        place = place.with_name(f"{place.name}-same")
        go_back(place, sync=sync)  # the same command
        assert same(weights(place / "run"), back), place.name
        if sync:
            assert same(weights(place / "copy"), back), place.name


def test_the_same_command_goes_on_from_the_newest_checkpoint(place: Path, whole: Path) -> None:
    with pytest.raises(ResumableStop):
        go_back(place, "stop_at=4")
    assert committed_steps(place / "run/checkpoints") == {3, 5}
    shutil.rmtree(place / "run/checkpoints/step_3")  # made room, as checkpoint.keep does
    with pytest.raises(ResumableStop):
        go_back(place, "stop_at=6")
    go_back(place)
    starts = json.loads((place / "run/environment.json").read_text())["starts"]
    assert [Path(start["resumed_from"] or "").name for start in starts[1:]] == ["step_3", "step_5", "step_7"]
    assert same(weights(place / "run"), weights(whole / "back"))
    go_back(place)
    assert committed_steps(place / "run/checkpoints") == {5, 6, 7, 8}


def test_another_change_goes_back_once_more(place: Path, whole: Path) -> None:
    go_back(place)
    go_back(place, "optimizer.lr=2e-3")
    assert not same(weights(place / "run"), weights(whole / "back"))
    go_back(place)
    assert same(weights(place / "run"), weights(whole / "back"))
    go_back(place, "optimizer.lr=2e-3", resume=str(place / "run/checkpoints/step_6"))
    go_back(place)
    assert same(weights(place / "run"), weights(whole / "back"))


def test_a_new_run_from_a_checkpoint_of_another_goes_on_too(place: Path, whole: Path) -> None:
    named = str(place / "run/checkpoints/step_3")

    def branch(*overrides: str, resume: str = named) -> None:
        train_toy(place / "new", toy_config(*BACK, *overrides), resume=resume)

    with pytest.raises(ResumableStop):
        branch("stop_at=4")
    shutil.rmtree(place / "run")  # it is not needed any more
    branch()
    starts = json.loads((place / "new/environment.json").read_text())["starts"]
    assert [Path(start["resumed_from"]).name for start in starts] == ["step_3", "step_5"]
    assert same(weights(place / "new"), weights(whole / "back"))
    with pytest.raises(InputError, match="does not exist"):
        branch(resume=str(place / "other/checkpoints/step_3"))


@pytest.mark.parametrize("resume", ["auto", "named"])
def test_a_new_run_that_has_no_checkpoint_yet_begins_where_it_was_told_to(
    place: Path, whole: Path, resume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = str(place / "run/checkpoints/step_3")

    def begun(*_: object, **__: object) -> None:
        raise BegunError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", begun)
        with pytest.raises(BegunError):
            train_toy(place / "new", toy_config(*BACK), resume=named)
    (place / "run").rename(place / "away")
    with pytest.raises(InputError, match="was to go on from .*step_3, which is gone, and has no checkpoint of its own"):
        train_toy(place / "new", toy_config(*BACK), resume=resume if resume == "auto" else named)
    (place / "away").rename(place / "run")
    train_toy(place / "new", toy_config(*BACK), resume=resume if resume == "auto" else named)
    assert same(weights(place / "new"), weights(whole / "back"))


def test_a_checkpoint_of_another_run_leaves_all_own_ones_behind(place: Path, whole: Path) -> None:
    shutil.copytree(place / "run", place / "old")
    with pytest.raises(ResumableStop):
        train_toy(place / "run", toy_config(*BACK, "stop_at=4"), resume=str(place / "old/checkpoints/step_3"))
    assert committed_steps(place / "run/checkpoints") == {5}


def test_a_machine_that_lost_the_run_goes_on_from_the_copy_by_the_same_command(place: Path, whole: Path) -> None:
    with pytest.raises(ResumableStop):
        go_back(place, "stop_at=4")
    shutil.rmtree(place / "run")
    go_back(place)
    assert same(weights(place / "run"), weights(whole / "back"))
    assert same(weights(place / "copy"), weights(whole / "back"))


def test_an_own_checkpoint_that_took_the_name_is_another_one(place: Path) -> None:
    go_back(place)
    assert run_dir._was_told_before(
        place / "run", f"{place}/run/checkpoints/step_3", toy_config(*BACK, f"run.sync_to={place}/copy"), ()
    )
    document = place / "run/origin.json"
    document.write_text(document.read_text().replace(json.loads(document.read_text())["commit"], "0" * 24))
    assert not run_dir._was_told_before(
        place / "run", f"{place}/run/checkpoints/step_3", toy_config(*BACK, f"run.sync_to={place}/copy"), ()
    )


@pytest.mark.parametrize("content", ["[]", "{}", '{"commit": 1, "step": 2, "named": "x"}', '{"step": 3', "null"])
def test_a_damaged_origin_is_one_line(place: Path, content: str) -> None:
    go_back(place)
    (place / "run/origin.json").write_text(content)
    with pytest.raises(InputError, match="origin.json"):
        go_back(place)
    os.unlink(place / "run/origin.json")
    go_back(place, resume="auto")
