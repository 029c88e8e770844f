"""Where a run is, whether it goes on, and what of it is damaged; on runs that an earlier version wrote."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from beit.common.overview.doctor.findings import guarded
from beit.common.overview.doctor.health.subjects import find_subject
from beit.common.overview.doctor.machine import space
from beit.common.storage.locks import sole_use

WRITTEN = Path(__file__).parents[5] / "golden/written_at_365d2fa"
RUNS = ("pretrain-run", "finetune-run", "tokenizer-run")


@pytest.fixture(autouse=True)
def written(tmp_path, monkeypatch):
    shutil.copytree(WRITTEN, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "copy")
    data = json.loads(Path("pretrain-run/data.json").read_text())
    Path("pretrain-run/data.json").write_text(json.dumps(data | {"store": str(tmp_path / "copy/over-tars")}))
    return tmp_path / "copy"


def look(name):
    subject = find_subject(name)
    assert subject.kind == "run"
    found = list(guarded(subject.kind, subject.check, subject.mend))
    assert not any("\n" in finding.as_text() for finding in found)
    return found


def wrong(name):
    (finding,) = (finding for finding in look(name) if finding.level != "ok")
    assert finding.mend
    return finding


def checkpoint(name):
    (folder,) = Path(name, "checkpoints").glob("step_*")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_stopped_is_well_and_says_what_goes_on(name):
    found = look(name)
    assert {finding.level for finding in found} == {"ok"}
    assert (
        f"of 16; to go on: beit {'tokenizer train' if name.startswith('tok') else name.split('-')[0]}" in found[0].what
    )
    assert [finding.topic for finding in found[:2]] == ["run", "checkpoint"]


def test_a_run_at_its_last_step_is_finished():
    text = Path("pretrain-run/config.toml").read_text()
    Path("pretrain-run/config.toml").write_text(text.replace("steps = 16", "steps = 2"))
    assert look("pretrain-run")[0].what == "pretrain-run is finished (step 2 of 2)"


@pytest.mark.parametrize(("epochs", "is_finished"), [(1, True), (8, False)])
def test_the_end_of_an_earlier_run_that_counts_epochs_is_worked_out(epochs, is_finished):
    text = Path("pretrain-run/config.toml").read_text()
    text = text.replace("steps = 16\n", "", 1).replace("epochs = 800.0", f"epochs = {epochs}.0")
    Path("pretrain-run/config.toml").write_text(text)
    assert ("is finished" in look("pretrain-run")[0].what) == is_finished


def test_the_end_that_a_start_noted_counts():
    text = Path("pretrain-run/config.toml").read_text()
    Path("pretrain-run/config.toml").write_text(text.replace("steps = 16\n", "", 1))
    environment = json.loads(Path("pretrain-run/environment.json").read_text())
    environment["starts"][-1]["total_steps"] = 77
    Path("pretrain-run/environment.json").write_text(json.dumps(environment))
    assert "step 2 of 77" in look("pretrain-run")[0].what


def test_a_run_in_which_a_process_is_at_work_says_so():
    with sole_use(Path("pretrain-run")):
        assert "a process is at work in it" in look("pretrain-run")[0].what


def test_a_run_without_a_checkpoint_begins_again():
    shutil.rmtree("finetune-run/checkpoints")
    found = look("finetune-run")
    assert "has saved nothing yet; to begin: beit finetune" in found[0].what


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "uncommitted", "commit"])
def test_a_damaged_checkpoint_is_a_fault(damage):
    folder = checkpoint("pretrain-run")
    weights = folder / "model.safetensors"
    if damage == "cut":
        os.truncate(weights, 50)
    elif damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif damage == "gone":
        weights.unlink()
    elif damage == "uncommitted":
        (folder / "COMMIT.json").unlink()
    else:
        (folder / "COMMIT.json").write_text("{}")
    finding = wrong("pretrain-run")
    assert finding.level == "fault" and "cannot go on" in finding.what and "rm -r" in finding.mend


def test_of_a_newer_damaged_checkpoint_it_is_said_where_the_run_would_go_on():
    shutil.copytree(checkpoint("pretrain-run"), "pretrain-run/checkpoints/step_9")
    finding = wrong("pretrain-run")
    assert finding.level == "fault" and "would go back to step 2" in finding.what
    assert finding.mend == "rm -r pretrain-run/checkpoints/step_9"


def test_an_older_damaged_checkpoint_is_a_warning():
    Path("pretrain-run/checkpoints/step_1").mkdir()
    finding = wrong("pretrain-run")
    assert finding.level == "warning" and "a newer one is intact" in finding.what


@pytest.mark.parametrize("file", ["config.toml", "environment.json"])
def test_documents_that_are_damaged_are_a_fault(file):
    Path("pretrain-run", file).write_text("x")
    finding = wrong("pretrain-run")
    assert finding.level == "fault" and file in finding.what


def test_a_loss_that_is_not_finite_is_a_fault():
    with Path("pretrain-run/metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": null}\n')
    finding = wrong("pretrain-run")
    assert finding.level == "fault" and "step 3 is not finite" in finding.what


@pytest.mark.parametrize("waits", [0.9, 0.1])
def test_waiting_for_data_is_a_warning(waits):
    with Path("pretrain-run/metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {step}, "loss": 1.0, "data_wait": {waits}}}\n' for step in range(3, 14))
    found = [finding for finding in look("pretrain-run") if finding.level != "ok"]
    assert [finding.level for finding in found] == (["warning"] if waits > 0.5 else [])


def test_a_disk_too_full_for_the_next_checkpoint_is_a_fault(monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: Usage(1e12, 1e12, 1e4))
    finding = wrong("pretrain-run")
    assert finding.level == "fault" and "needed" in finding.what


def test_a_store_that_has_moved_is_a_warning():
    shutil.move("over-tars", "elsewhere")
    finding = wrong("pretrain-run")
    assert finding.level == "warning" and "over-tars" in finding.what


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pretrain-run", "encoder/model.safetensors"),
        ("finetune-run", "model/model.safetensors"),
        ("tokenizer-run", "model.safetensors"),
    ],
)
def test_weights_in_a_run_are_looked_at(name, file):
    os.truncate(Path(name, file), 99)
    finding = wrong(name)
    assert finding.level == "fault" and name in finding.what


def test_a_probe_is_finished_when_it_has_measured(tmp_path):
    run = tmp_path / "probe"
    run.mkdir()
    (run / "config.toml").write_text("[train]\nepochs = 10\n")
    assert "has saved nothing yet" in look(str(run))[0].what
    (run / "linear-probe.json").write_text("{}")
    assert look(str(run))[0].what == f"{run} is finished"


def test_words_by_kmeans_are_finished_when_they_are_there():
    shutil.copytree("tokenizer-run", "kmeans")
    shutil.rmtree("kmeans/checkpoints")
    Path("kmeans/config.toml").write_text("[data]\nview_size = 16\n")
    assert "is finished" in look("kmeans")[0].what
