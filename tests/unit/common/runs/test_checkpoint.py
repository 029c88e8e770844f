"""Checkpoints are committed or absent, damage is found and the previous one used."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from beit.common.errors import InputError
from beit.common.runs import checkpoint, commits
from beit.common.runs.checkpoint import (
    PortableState,
    find_checkpoint,
    open_checkpoint,
    resolve_checkpoint,
    save_checkpoint,
    set_later_aside,
    way_of,
)
from beit.common.runs.commits import Way, committed_steps
from beit.common.storage.documents import Format


def save(root: Path, step: int, *, keep: int = 2, keep_every: int | None = None) -> Path:
    state = PortableState(
        model={"weight": torch.full((3, 2), float(step))}, optimizer={"step/weight": torch.tensor(float(step))}
    )
    rng = {"rank0/cpu": torch.arange(4, dtype=torch.uint8)}
    record = {"data": {"at": step}}
    return save_checkpoint(root, step=step, state=state, rng=rng, record=record, keep=keep, keep_every=keep_every)


def truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def flip_bit(path: Path) -> None:
    file = path / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def delete_file(path: Path) -> None:
    (path / "rng.safetensors").unlink()


def delete_commit(path: Path) -> None:
    (path / "COMMIT.json").unlink()


def cut_commit(path: Path) -> None:
    (path / "COMMIT.json").write_text('{"format": "beit-che')


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path, 5)
    found = find_checkpoint(tmp_path)
    assert found is not None and found.step == 5 and found.record == {"data": {"at": 5}}
    with found.reader("model") as reader:
        assert torch.equal(reader.get_tensor("weight"), torch.full((3, 2), 5.0))
    assert torch.equal(found.rng_states()["rank0/cpu"], torch.arange(4, dtype=torch.uint8))


def test_empty_directory_is_a_start_from_zero(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "none") is None
    (tmp_path / "step_3.tmp").mkdir()  # a killed save
    assert find_checkpoint(tmp_path) is None


def test_numbers_are_compared_as_numbers_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_10", "step_9"]
    found = find_checkpoint(tmp_path)
    assert found is not None and found.step == 10
    assert (tmp_path / "latest").read_text() == "step_10\n"


def test_milestones_are_kept_besides(tmp_path: Path) -> None:
    for step in (3, 9, 12, 18, 21, 33, 38, 40, 44):  # saved by the clock, so seldom at a multiple
        save(tmp_path, step, keep_every=10)
    assert sorted(committed_steps(tmp_path)) == [12, 21, 33, 40, 44]


def test_a_save_that_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=30))
    with pytest.raises(OSError, match="needs 1.2 times that"):
        save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1"]


@pytest.mark.parametrize("name", ["model.safetensors", "COMMIT.json", "latest"])
def test_a_file_system_that_takes_no_more_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not a stand-in for the error but the error: no file of this process may grow from here on."""
    save(tmp_path, 1)
    patched = {"model.safetensors": "_write_tensors", "COMMIT.json": "write_atomic", "latest": "write_atomic"}[name]
    real, limits = getattr(checkpoint, patched), resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(path: Path, *args: object) -> object:
        if Path(path).name == name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
        return real(path, *args)

    monkeypatch.setattr(checkpoint, patched, write)
    try:
        with pytest.raises(OSError):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = find_checkpoint(tmp_path)
    assert found is not None and found.step == (2 if name == "latest" else 1)  # it was committed by then
    assert open_checkpoint(tmp_path / "step_1").step == 1
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    assert (tmp_path / "latest").read_text() == "step_1\n"


@pytest.mark.parametrize("damage", [truncate, flip_bit, delete_file, delete_commit, cut_commit])
def test_damage_falls_back_to_the_previous_checkpoint(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    found = find_checkpoint(tmp_path)
    assert found is not None and found.step == 1
    assert str(tmp_path / "step_2") in caplog.text
    with pytest.raises(InputError, match="step_2"):
        open_checkpoint(tmp_path / "step_2")


def test_empty_latest_does_not_matter(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "latest").write_text("")
    found = find_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_only_damaged_checkpoints_refuse_to_start_from_zero(tmp_path: Path) -> None:
    truncate(save(tmp_path, 1))
    flip_bit(save(tmp_path, 2))
    with pytest.raises(InputError, match="2 checkpoints, none of them intact"):
        find_checkpoint(tmp_path)


def test_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    truncate(save(tmp_path, 2))
    save(tmp_path, 2)
    assert open_checkpoint(tmp_path / "step_2").step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_1", "step_2"]


def test_other_format_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "FORMAT", Format("beit-checkpoint", 99))
    save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="format_version 99, this beit reads version 1"):
        open_checkpoint(tmp_path / "step_1")


@pytest.mark.parametrize("name", ["model.safetensors", "COMMIT.json", "latest"])
def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save(tmp_path, 1)

    def fail(path: Path, *args: object, **kwargs: object) -> None:
        if Path(path).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original[id(patched)](path, *args, **kwargs)

    original: dict[int, Callable[..., object]] = {}
    patched = "_write_tensors" if name == "model.safetensors" else "write_atomic"
    original[id(patched)] = getattr(checkpoint, patched)
    monkeypatch.setattr(checkpoint, patched, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.tmp"))
    assert open_checkpoint(tmp_path / "step_1").step == 1


def test_safetensors_failure_counts_as_a_disk_failure(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.write_text("a file where the directory should be")
    with pytest.raises(OSError):
        save(tmp_path, 1)


def test_resume_path_may_be_run_checkpoints_or_one_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 1)
    save(tmp_path / "checkpoints", 2)
    assert resolve_checkpoint(tmp_path).step == 2
    assert resolve_checkpoint(tmp_path / "checkpoints").step == 2
    assert resolve_checkpoint(tmp_path / "checkpoints" / "step_1").step == 1
    with pytest.raises(InputError, match="holds no checkpoint"):
        resolve_checkpoint(tmp_path / "checkpoints" / "nothing")


def test_later_checkpoints_are_not_found_after_going_back(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    set_later_aside(tmp_path, 1)
    found = find_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_state_knows_nonfinite_weights() -> None:
    good = PortableState(model={"w": torch.ones(2), "n": torch.tensor(1)}, optimizer={})
    assert good.is_finite()
    assert not PortableState(model={"w": torch.tensor([1.0, float("inf")])}, optimizer={}).is_finite()


def edit_commit(path: Path, **changes: object) -> None:
    document = json.loads((path / "COMMIT.json").read_text()) | changes
    (path / "COMMIT.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "changes",
    [{"step": 7}, {"files": []}, {"record": {}}, {"record": {"half a character": "\ud800"}}, {"ancestors": {"3": "x"}}],
)
def test_an_edited_commit_record_is_found(tmp_path: Path, changes: dict[str, object]) -> None:
    edit_commit(save(tmp_path, 5), **changes)
    with pytest.raises(InputError, match="COMMIT.json is damaged: it is not as it was written"):
        open_checkpoint(tmp_path / "step_5")


FILES = [{"name": f"{name}.safetensors", "size": 1, "sha256": "0"} for name in ("model", "optimizer", "rng")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 7}, "is of step 7, its folder is of step 5"),
        ({"step": "5"}, "its step .'5'. is no number of steps"),
        ({"step": None}, "its step .None. is no number of steps"),
        ({"record": None}, "has no record"),
        ({"record": []}, "has no record"),
        ({"files": None}, "list of files is not one of names"),
        ({"files": {}}, "list of files is not one of names"),
        ({"files": FILES[:2]}, "does not list rng.safetensors"),
        ({"files": [{"name": "model.safetensors"}]}, "list of files is not one of names"),
        ({"files": [*FILES, {"name": "../x", "size": 1, "sha256": "0"}]}, "list of files is not one of names"),
        ({"files": [*FILES, None]}, "list of files is not one of names"),
    ],
)
def test_a_record_of_before_is_read_and_what_it_must_say_is_insisted_on(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = save(tmp_path, 5)
    commit = json.loads((path / "COMMIT.json").read_text())
    (path / "COMMIT.json").write_text(json.dumps({k: v for k, v in commit.items() if k not in ("sha256", "ancestors")}))
    assert open_checkpoint(path).step == 5
    edit_commit(path, **changes)
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)


def test_a_file_that_the_record_does_not_list_is_no_part_of_the_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    shutil.copy(path / "model.safetensors", path / "best.safetensors")
    with pytest.raises(InputError, match="does not list best.safetensors"):
        open_checkpoint(path)


def test_a_checkpoint_under_another_name_is_opened(tmp_path: Path) -> None:
    save(tmp_path, 5).rename(tmp_path / "the_good_one")
    assert open_checkpoint(tmp_path / "the_good_one").step == 5


def test_a_commit_knows_all_checkpoints_before_it_also_removed_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    way = way_of(tmp_path)
    assert sorted(way.identities) == [1, 2, 3, 4] and way.is_whole and way.newest == 4
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    save(tmp_path, 5)
    assert way.parting(way_of(tmp_path)) is None
    set_later_aside(tmp_path.with_name("copy"), 3)
    save(tmp_path.with_name("copy"), 5, keep=1)
    assert way_of(tmp_path).parting(way_of(tmp_path.with_name("copy"))) == 3
    assert way_of(tmp_path.with_name("copy")).parting(way) == 3
    assert Way().parting(way) is None


def test_ways_of_before_are_told_apart_by_common_steps(tmp_path: Path) -> None:
    one, other = Way(identities={1: "a", 2: "b"}), Way(identities={2: "c", 3: "d"})
    assert one.parting(other) == 0
    assert one.parting(Way(identities={2: "b", 3: "d"})) is None
    assert one.parting(Way(identities={4: "e"})) is None  # nobody knows
