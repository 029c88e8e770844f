"""Run directories are created, resumed or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from beit.common.config import load_config
from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.changes import check_changes, find_changes
from beit.common.runs.environment import redact
from beit.common.runs.run_dir import RunDirectory, begin_run, open_run
from beit.common.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    train: TrainConfig = TrainConfig()
    depth: int = 2
    name: str | None = None


WORLD = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def open_it(path: Path, config: Settings, resume: str = "auto", free_keys: tuple[str, ...] = ()) -> RunDirectory:
    run = open_run(path, config, world=WORLD, resume=resume, free_keys=free_keys)
    begin_run(run, config, world=WORLD)
    return run


def test_new_run_gets_a_recipe_and_an_environment(tmp_path: Path) -> None:
    config = Settings(depth=3)
    run = open_it(tmp_path / "a" / "run", config)
    assert run.checkpoint is None
    assert load_config(Settings, recipe=run.path / "config.toml", overrides=(), recipe_dir=tmp_path) == config
    start = json.loads((run.path / "environment.json").read_text())["starts"][0]
    assert start["world_size"] == 1 and "torch" in start["packages"] and start["command"]


def test_same_settings_continue_and_are_recorded_again(tmp_path: Path) -> None:
    open_it(tmp_path, Settings())
    open_it(tmp_path, Settings())
    assert len(json.loads((tmp_path / "environment.json").read_text())["starts"]) == 2


def test_what_killed_processes_left_of_their_writing_goes_at_the_next_start(tmp_path: Path) -> None:
    run = open_it(tmp_path, Settings())
    left = [
        "metrics.jsonl.tmp.999999999",
        "encoder/model.safetensors.tmp.999999999.0123abcd",
        "last/config.json.tmp.999999999",
    ]
    for name in [*left, "checkpoints/step_3.tmp/model.safetensors", "encoder/model.safetensors", "notes.tmp.txt"]:
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).touch()
    open_it(tmp_path, Settings())
    kept = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert kept == {"config.toml", "environment.json", "encoder/model.safetensors", "notes.tmp.txt"}
    assert not (run.path / "checkpoints/step_3.tmp").exists()


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    open_it(tmp_path, Settings())
    before = (tmp_path / "config.toml").read_bytes()
    with pytest.raises(InputError, match="depth was 2, is 3; name was None, is x"):
        open_it(tmp_path, Settings(depth=3, name="x"))
    assert (tmp_path / "config.toml").read_bytes() == before


def test_settings_of_rhythm_may_change(tmp_path: Path) -> None:
    open_it(tmp_path, Settings())
    open_it(tmp_path, Settings(train=TrainConfig(log_interval_steps=7)))
    open_it(tmp_path, Settings(train=TrainConfig(log_interval_steps=7), depth=4), free_keys=("depth",))


def test_what_a_change_needs_depends_on_the_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    open_it(tmp_path, Settings())
    open_it(tmp_path, Settings(train=TrainConfig(log_interval_steps=7)))
    assert "settings changed since: train.log_interval_steps was 50, is 7" in caplog.text
    with pytest.raises(InputError, match="depth was 2, is 3.*continue on purpose with --resume"):
        open_it(tmp_path, Settings(depth=3))
    seed = Settings(train=TrainConfig(seed=1))
    with pytest.raises(
        InputError, match="depend on .train.seed was 0, is 1.; use the same .--recipe .*config.toml has them., or start"
    ):
        open_it(tmp_path, seed)
    with pytest.raises(InputError, match="checkpoints depend on"):  # nor on purpose
        check_changes(find_changes(tmp_path / "config.toml", seed), tmp_path, is_on_purpose=True, free_keys=())
    starts = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert [start["changed"] for start in starts] == [{}, {"train.log_interval_steps": [50, 7]}]


def test_settings_that_an_earlier_version_did_not_have_have_their_defaults(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    open_it(tmp_path, Settings())
    config.write_text(config.read_text().replace("depth = 2\n", ""))
    open_it(tmp_path, Settings())
    config.write_text(config.read_text().replace("depth = 2\n", "width = 4\n"))
    with pytest.raises(InputError, match="depth was None, is 2; width was 4, is None"):
        open_it(tmp_path, Settings())


def test_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match="not empty and not a run"):
        open_it(tmp_path, Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        open_it(tmp_path / "file", Settings())


def test_never_refuses_an_existing_run(tmp_path: Path) -> None:
    open_it(tmp_path, Settings(), resume="never")
    with pytest.raises(InputError, match="already holds a run"):
        open_it(tmp_path, Settings(), resume="never")


def test_missing_resume_path_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_it(tmp_path / "run", Settings(), resume=str(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("wandb.api_key=abc123", "wandb.api_key=***"),
        ("https://h/x?X-Amz-Signature=ff&n=1", "https://h/x?X-Amz-Signature=***&n=1"),
        ("train.steps=8", "train.steps=8"),
    ],
)
def test_secrets_are_blanked(argument: str, shown: str) -> None:
    assert redact(argument) == shown
