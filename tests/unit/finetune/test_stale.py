"""Nothing is kept, continued or compared over images that were edited meanwhile."""

import json
import shutil
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.reading import contents
from beit.common.storage.documents import read_json, write_json
from beit.common.vit.description import read_encoder_config
from beit.finetune.compare.compare import compare_runs
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.probe.run import run_probe
from beit.finetune.train import run
from beit.tests.unit.finetune.colours import finetune_config, noisy_png, write_images

SETTINGS = ("train.steps=6", "train.eval_interval_steps=3")


def edit(folder: Path) -> None:
    """Swap two images of two classes, as somebody who corrects labels; sizes of files stay as they are."""
    one, other = (sorted((folder / name).iterdir())[0] for name in ("blue", "red"))
    size = max(one.stat().st_size, other.stat().st_size)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second.ljust(size, b"\0"))
    other.write_bytes(first.ljust(size, b"\0"))


def pad(folder: Path) -> None:
    """Make all files equally long, so that an edit need not change a size."""
    files = list(folder.rglob("*.png"))
    size = max(file.stat().st_size for file in files)
    for file in files:
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))


@pytest.fixture
def data(tmp_path):
    for name, start in (("train", 0), ("val", 100)):
        pad(write_images(tmp_path / name, ("blue", "red"), 12 if name == "train" else 4, start=start))
    return tmp_path


@pytest.fixture
def stopped(data):
    """A run of 3 of 6 steps."""
    train(data, "train.steps=3", "optimizer.warmup_steps=2")
    return data


def train(data, *overrides, resume="auto", val="val"):
    config = finetune_config(f"data.val={data / val}", *SETTINGS, *overrides)
    run(config, data=str(data / "train"), run_dir=data / "run", resume=resume)


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def go_on(data, *overrides, val="val"):
    return train(data, *overrides, resume=str(data / "run"), val=val)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_run_does_not_go_on_over_edited_images_unless_told_to(stopped, part, caplog):
    edit(stopped / part)
    before = files_of(stopped / "run")
    name = {"train": "training", "val": "validation"}[part]
    with pytest.raises(InputError, match=rf"\({name} images: edited images\); restore .*run.allow_data_change=true"):
        go_on(stopped)
    assert files_of(stopped / "run") == before
    caplog.set_level("INFO")
    go_on(stopped, "run.allow_data_change=true")
    assert f"({name} images: edited images); going on with the present ones" in caplog.text
    starts = read_json(stopped / "run/environment.json")["starts"]
    assert starts[-1]["changed"]["run.allow_data_change"] == [False, True]
    train(stopped)  # what was accepted once is the data of the run


def test_a_run_goes_on_over_a_copy_of_its_images(stopped):
    for part in ("train", "val"):
        (stopped / part).rename(stopped / "old")
        shutil.copytree(stopped / "old", stopped / part, copy_function=shutil.copyfile)
        shutil.rmtree(stopped / "old")
    go_on(stopped)


def test_a_copy_of_many_images_needs_a_word_of_its_user(data, monkeypatch):
    monkeypatch.setattr(contents, "MAX_IMAGES", 3)
    train(data, "train.steps=3")
    for file in (data / "train").rglob("*.png"):
        file.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="training images: other times of files, as after edits or a copy without"):
        go_on(data)
    go_on(data, "run.allow_data_change=true")


def test_a_run_of_before_goes_on_and_says_what_is_not_known(stopped, caplog):
    commit = next((stopped / "run/checkpoints").glob("step_3/COMMIT.json"))
    document = read_json(commit)
    del document["record"]["data"]["contents"]
    document.pop("sha256", None)
    write_json(commit, document)
    edit(stopped / "train")
    caplog.set_level("INFO")
    go_on(stopped)
    assert "the checkpoint says nothing of the contents of training images and validation images" in caplog.text


def test_the_best_model_is_chosen_on_one_set_of_images(stopped, caplog):
    model = stopped / "run/model"
    provenance = read_encoder_config(model).provenance
    document = json.loads((model / "config.json").read_text())
    document["provenance"]["metrics"]["top1"] = 2.0  # never to be reached again
    write_json(model / "config.json", document)
    for file in (stopped / "val/red").iterdir():
        file.unlink()
    (stopped / "val/red/7.png").write_bytes(noisy_png("red", 7))
    with pytest.raises(InputError, match="validation images: other images, names or labels"):
        go_on(stopped)
    caplog.set_level("INFO")
    go_on(stopped, "run.allow_data_change=true")
    assert "the best evaluation so far was on other images" in caplog.text
    kept = read_encoder_config(model).provenance
    assert kept["validation_sha256"] != provenance["validation_sha256"]
    assert kept["step"] == 6 and kept["metrics"]["num_images"] == 5


def test_other_validation_images_on_purpose_need_no_second_word(stopped):
    write_images(stopped / "other", ("blue", "red"), 3, start=200)
    with pytest.raises(InputError, match="data.val was"):
        train(stopped, val="other")
    go_on(stopped, val="other")
    assert read_encoder_config(stopped / "run/model").provenance["step"] == 6


def test_a_model_of_steps_that_were_left_behind_is_not_the_best_of_the_run(data):
    train(data, "checkpoint.keep=9")
    document = json.loads((data / "run/model/config.json").read_text())
    document["provenance"] |= {"step": 6, "metrics": document["provenance"]["metrics"] | {"top1": 2.0}}
    write_json(data / "run/model/config.json", document)
    train(data, "optimizer.lr=1e-3", "checkpoint.keep=9", resume=str(data / "run/checkpoints/step_3"))
    assert read_encoder_config(data / "run/model").provenance["metrics"]["top1"] <= 1


@pytest.mark.parametrize("part", ["train", "val"])
def test_features_of_edited_images_are_computed_again_and_those_of_a_copy_are_kept(data, part, caplog):
    def probe(task):
        config = finetune_config(f"data.val={data / 'val'}")
        run_probe(task, config, data=str(data / "train"), run_dir=data / "probe")
        return caplog.text.count("kept from an earlier run")

    caplog.set_level("INFO")
    assert probe("linear-probe") == 0
    for file in (data / part).rglob("*.png"):
        file.write_bytes(file.read_bytes())
    assert probe("linear-probe") == 2
    edit(data / part)
    assert probe("linear-probe") == 3


def test_compare_refuses_an_evaluation_of_weights_that_were_replaced(data):
    train(data)
    out = data / "run/evaluation.json"
    evaluate_model(data / "run/model", str(data / "val"), out=out)
    assert compare_runs([data / "run"]).groups[0].metric == "top1"
    evaluate_model(data / "run/last", str(data / "val"), out=out)
    compare_runs([data / "run"])
    train(data, "train.steps=9", resume=str(data / "run"))
    with pytest.raises(InputError, match="evaluation.json is of other weights than .*run/model and .*run/last; delete"):
        compare_runs([data / "run"])


def test_compare_says_that_images_were_edited_between_runs(data):
    def probe(name, seed):
        config = finetune_config(f"data.val={data / 'val'}", f"train.seed={seed}")
        run_probe("knn", config, data=str(data / "train"), run_dir=data / name)

    probe("one", 0)
    probe("two", 1)
    assert "edited" not in " ".join(compare_runs([data / "one", data / "two"]).notes)
    edit(data / "train")
    edit(data / "val")
    probe("three", 2)
    notes = " ".join(compare_runs([data / "one", data / "two", data / "three"]).notes)
    assert "k-NN: measured images were edited between the runs" in notes
    assert "k-NN: training images were edited between the runs" in notes
