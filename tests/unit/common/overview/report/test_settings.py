"""What a run was asked for, and in what several differ."""

from __future__ import annotations

from pathlib import Path

from beit.common.overview.report.run_files import read_run_files
from beit.common.overview.report.settings import asked, recipe_text, settings_section, value_text
from beit.tests.page_parts import PageParts
from beit.tests.report_runs import fine_tuned, pretraining, start


def test_recipe_and_settings_are_read_from_the_command_however_they_were_typed() -> None:
    words = ["--recipe=demo", "--set", "train.seed=1", "--set=optimizer.lr=0.1", "--set", "train.seed=2", "--set"]
    found = asked(start("pretrain", "store", "run", *words))
    assert found.recipe == "demo" and found.settings == (("optimizer.lr", "0.1"), ("train.seed", "2"))
    assert asked({}).settings == () and asked({"command": None}).recipe == ""


def test_secrets_and_folders_are_not_shown() -> None:
    found = asked(start("pretrain", "--set", "run.sync_to=s3://user:word@place/x", "--recipe", "/home/me/mine/r.toml"))
    assert "word" not in found.settings[0][1] and found.recipe == "mine/r.toml"
    assert value_text("/home/me/runs/one/encoder") == "one/encoder" and value_text(None) == "left out"
    assert value_text(True) == "true" and value_text(1e-05) == "1e-05"


def test_only_runs_of_one_kind_are_held_against_each_other_and_speed_is_left_out(tmp_path: Path) -> None:
    paths = [pretraining(tmp_path / "a"), pretraining(tmp_path / "b", seed=1), fine_tuned(tmp_path / "c")]
    for path, line in ((paths[1], "[speed]\ncompile = true\n"), (paths[0], "[speed]\ncompile = false\n")):
        (path / "config.toml").write_text((path / "config.toml").read_text() + line)
    runs = read_run_files(paths)
    parts = settings_section(runs).parts
    differences = next(str(part) for part in parts if "In what the runs differ" in str(part)).replace("<wbr>", "")
    assert "train.seed" in differences and "speed.compile" not in differences and "encoder" not in differences
    shown = PageParts(f"<main>{''.join(parts)}</main>").text
    assert "All settings of c" in shown and "train.seed=1" in shown and recipe_text(runs[2]) == "no recipe"


def test_runs_with_the_same_settings_say_so(tmp_path: Path) -> None:
    runs = read_run_files([fine_tuned(tmp_path / "a"), fine_tuned(tmp_path / "b")])
    assert "are the same" in "".join(settings_section(runs).parts)
