"""W&B gets what metrics.jsonl gets, under one id per run; tested against a stand-in for the package."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from beit.common.errors import InputError, ResumableStop
from beit.common.runs.metrics import open_metrics, read_metrics
from beit.common.runs.wandb_log import WandbLog, require_wandb
from beit.common.storage.documents import read_json
from beit.tests.toy_training import toy_config, train_toy

STAND_IN = '''
"""As much of wandb as is used; writes every call to calls.jsonl beside this file."""
import json
from pathlib import Path

CALLS = Path(__file__).with_name("calls.jsonl")
FAIL_AT = Path(__file__).with_name("fail_at")


class Error(Exception):
    pass


class Image:
    def __init__(self, image):
        self.size = image.size


def note(kind, values):
    with CALLS.open("a") as file:
        file.write(json.dumps([kind, values], default=lambda image: ["image", *image.size]) + "\\n")
    if FAIL_AT.exists() and FAIL_AT.read_text() == kind:
        raise Error("no API key\\n  configured")


class Run:
    def define_metric(self, name, step_metric=None):
        note("define_metric", [name, step_metric])

    def log(self, values):
        note("log", values)

    def finish(self):
        note("finish", None)


def init(**settings):
    note("init", settings)
    return Run()
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    yield folder
    sys.modules.pop("wandb", None)


def calls(package: Path, kind: str) -> list[object]:
    lines = [json.loads(line) for line in (package / "calls.jsonl").read_text().splitlines()]
    return [values for name, values in lines if name == kind]


def begun_run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    (run / "environment.json").write_text('{"run_id": "0123456789abcdef", "starts": []}')
    (run / "config.toml").write_text('[run]\nwandb = "beit"\n')
    return run


def test_records_and_pictures_reach_wandb_beside_the_files(package: Path, tmp_path: Path) -> None:
    run = begun_run(tmp_path)
    log = open_metrics(run, 0, total_steps=10, wandb_project="beit")
    log.write({"step": 1, "loss": 2.5})
    log.picture("sheet", Image.new("RGB", (5, 4)), 1)
    log.close()
    (started,) = calls(package, "init")
    assert started == {
        "project": "beit",
        "id": "0123456789abcdef",
        "name": "run",
        "dir": str(run),
        "config": {"run": {"wandb": "beit"}},
        "resume": "allow",
    }
    assert ["*", "step"] in calls(package, "define_metric")
    assert calls(package, "log") == [{"step": 1, "loss": 2.5}, {"step": 1, "sheet": ["image", 5, 4]}]
    assert len(calls(package, "finish")) == 1
    assert read_metrics(run / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]
    assert (run / "sheet.png").is_file()


def test_a_run_that_goes_on_keeps_its_id_and_sends_what_metrics_jsonl_has(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "run", toy_config("run.wandb=beit", "stop_at=3"))
    train_toy(tmp_path / "run", toy_config("run.wandb=beit"))
    ids = [started["id"] for started in calls(package, "init")]  # type: ignore[index]
    assert ids == [read_json(tmp_path / "run/environment.json")["run_id"]] * 2
    assert calls(package, "log") == read_metrics(tmp_path / "run/metrics.jsonl")
    assert len(calls(package, "finish")) == 2


def test_a_login_that_is_missing_is_one_line(package: Path, tmp_path: Path) -> None:
    (package / "fail_at").write_text("init")
    with pytest.raises(InputError, match=r"^W&B does not start \(no API key configured\); log in with `wandb login`"):
        train_toy(tmp_path / "run", toy_config("run.wandb=beit"))


def test_what_fails_later_does_not_end_the_training(
    package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (package / "fail_at").write_text("log")
    with caplog.at_level(logging.WARNING):
        result, _ = train_toy(tmp_path / "run", toy_config("run.wandb=beit"))
    assert result.step == 8
    assert len(calls(package, "log")) == 1
    assert [record.message for record in caplog.records if "W&B" in record.message] == [
        "nothing more is sent to W&B (no API key configured); the training goes on"
    ]


def test_a_missing_package_is_one_line_even_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb/latest-run").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    require_wandb(None)
    with pytest.raises(InputError, match=r"run.wandb \(beit\) needs the package wandb.*pip install wandb"):
        require_wandb("beit")


def test_a_closed_log_takes_no_more(package: Path, tmp_path: Path) -> None:
    log = WandbLog(begun_run(tmp_path), "beit")
    log.close()
    log.close()
    log.write({"step": 2})
    assert calls(package, "log") == []
    assert len(calls(package, "finish")) == 1
