"""The command lines of segmentation: options become settings, --check trains nothing, names of tasks are understood."""

import pytest
from click.testing import CliRunner

from beit.common.errors import InputError
from beit.finetune import train_segmentation
from beit.finetune.commands import finetune_command
from beit.tests.unit.finetune.segmentation.scenes import write_scenes


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))


def invoke(*arguments):
    result = CliRunner().invoke(finetune_command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_options_become_settings(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(train_segmentation, "run", lambda config, **rest: seen.update(config=config, **rest))
    options = ["--encoder", "random", "--val", "v", "--recipe", "segmentation_small", "--set", "head.kind=fpn"]
    invoke("segmentation", "d", tmp_path / "run", *options)
    config = seen["config"]
    assert (config.encoder, config.data.val, config.head.kind, config.train.steps) == ("random", "v", "fpn", 1500)
    assert (seen["data"], seen["run_dir"], seen["resume"]) == ("d", tmp_path / "run", "auto")


def test_check_says_what_masks_hold_and_needs_no_run(tmp_path):
    write_scenes(tmp_path / "data", 4)
    result = invoke("segmentation", tmp_path / "data", "--check")
    assert result.exit_code == 0
    assert "3 classes" in result.stdout
    assert all(name in result.stdout for name in ("sky", "ground", "box", "255"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_check_ends_with_what_is_wrong(tmp_path):
    write_scenes(tmp_path / "data", 4)
    (tmp_path / "data/images/001.png").unlink()
    with pytest.raises(InputError, match="without an image"):
        invoke("segmentation", tmp_path / "data", "--check")


def test_without_run_nothing_is_trained():
    result = invoke("segmentation", "d")
    assert result.exit_code == 2
    assert "Missing argument 'RUN'" in result.stderr


def test_check_is_for_masks(tmp_path):
    with pytest.raises(InputError, match="--check looks at masks, which classification has none of"):
        invoke("classification", "d", tmp_path / "run", "--check")


@pytest.mark.parametrize("word", ["segment", "seg", "semantic", "semantic-segmentation", "segmentaton"])
def test_what_segmentation_is_called_elsewhere_is_understood(word, tmp_path):
    with pytest.raises(InputError, match=r"did you mean segmentation\?"):
        invoke(word, "d", tmp_path / "run")


def test_a_recipe_of_the_other_task_is_named_as_such(tmp_path):
    with pytest.raises(InputError, match="small_500 is a recipe of beit finetune classification, not of this command"):
        invoke("segmentation", "d", tmp_path / "run", "--recipe", "small_500")
    with pytest.raises(InputError, match="segmentation_small is a recipe of beit finetune segmentation"):
        invoke("classification", "d", tmp_path / "run", "--recipe", "segmentation_small")
