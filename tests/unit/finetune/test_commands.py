"""The command lines: options become settings, wrong ones one clear line."""

import re

import pytest
from click.testing import CliRunner

from beit.common.errors import InputError
from beit.finetune import train
from beit.finetune.commands import evaluate_command, finetune_command, predict_command
from beit.tests.unit.finetune.colours import TINY


def invoke(command, *arguments):
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_options_become_settings_and_set_has_the_last_word(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(train, "run", lambda config, **rest: seen.update(config=config, **rest))
    options = ["--encoder", "random", "--val", "v", "--recipe", "demo", "--set", "train.seed=4", "--resume", "never"]
    invoke(finetune_command, "classification", "d", tmp_path / "run", *options)
    config = seen["config"]
    assert (config.encoder, config.data.val, config.train.seed) == ("random", "v", 4)
    assert config.image.patch_size == 8  # of the recipe
    assert (seen["data"], seen["run_dir"], seen["resume"]) == ("d", tmp_path / "run", "never")


def test_unknown_task_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"TASK \(detection\)"):
        invoke(finetune_command, "detection", "d", tmp_path / "run", "--encoder", "random")


@pytest.mark.parametrize("task", ["linear-probe", "knn"])
def test_probes_print_their_table(finished, tmp_path, task):
    settings = [word for setting in TINY for word in ("--set", setting)]
    options = [*settings, "--encoder", finished.run / "model", "--val", finished.val]
    result = invoke(finetune_command, task, finished.train, tmp_path / "run", *options)
    assert "best" in result.stdout
    assert (tmp_path / "run" / f"{task}.json").is_file()
    names = [f"{task}.json", *["model"] * (task == "linear-probe"), "features"]
    assert result.stdout.splitlines()[-len(names) :] == [f"wrote {tmp_path / 'run' / name}" for name in names]


def test_probes_run_in_one_process(tmp_path):
    with pytest.raises(InputError, match="knn runs in one process"):
        invoke(finetune_command, "knn", "d", tmp_path / "run", "--gpus", 2)


def test_probes_name_the_launcher_that_says_they_are_one_of_several(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(InputError, match="unset SLURM_PROCID"):
        invoke(finetune_command, "knn", "d", tmp_path / "run")


def test_encoder_is_required(tmp_path):
    with pytest.raises(InputError, match="--encoder is missing"):
        invoke(finetune_command, "classification", "d", tmp_path / "run")


def test_evaluate_prints_a_table(finished):
    result = invoke(evaluate_command, finished.run / "model", finished.val)
    first = result.stdout.splitlines()
    assert first[0].split() == ["top-1", "top-5", "macro-F1", "calibration", "error", "loss", "images"]
    shown = first[1].replace(" %", "%").split()
    assert [shown[place] for place in (0, 1, 2, 5)] == ["100.0%", "100.0%", "100.0%", "20"]
    assert first[2] == "top-1, 95 % interval: 83.9 to 100.0 %; chance (always saying blue): 50.0 %"
    assert first[-1].replace(" %", "%").split() == ["red", "10", "100.0%", "100.0%", "100.0%"]


def test_numbers_are_evaluated_by_a_file_of_names_and_from_the_column_that_is_named(finished, tmp_path):
    numbers = {"blue": 1, "red": 0}
    images = sorted(finished.val.rglob("*.png"))
    rows = [f"{path},{numbers[path.parent.name]},9" for path in images]
    (tmp_path / "v.csv").write_text("\n".join(["path,colour,label", *rows]))
    (tmp_path / "names.txt").write_text("red\nblue\n")
    words = (finished.run / "model", tmp_path / "v.csv", "--label-column", "colour")
    with pytest.raises(
        InputError, match=r"are numbers \(0, 1\), the model's are names \(blue, red\).*--class-names FILE"
    ):
        invoke(evaluate_command, *words)
    result = invoke(evaluate_command, *words, "--class-names", tmp_path / "names.txt")
    assert result.stdout.splitlines()[1].startswith("100.0 %")


def test_predict_prints_csv_or_writes_it(finished, tmp_path):
    printed = invoke(predict_command, finished.run / "model", finished.val).stdout
    invoke(predict_command, finished.run / "model", finished.val, "--out", tmp_path / "labels.csv")
    assert printed == (tmp_path / "labels.csv").read_text()
    assert printed.startswith("key,label,probability,")


@pytest.mark.parametrize("command", [finetune_command, evaluate_command, predict_command])
def test_help_has_an_example(command):
    assert re.search(r"^  Examples?:$", invoke(command, "--help").output, re.MULTILINE)
