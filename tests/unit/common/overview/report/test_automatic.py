"""The report that a run writes of itself."""

import logging

import numpy as np
import pytest

from beit.common.errors import BadSample, ResumableStop
from beit.common.overview.report import automatic
from beit.common.overview.report.automatic import write_report
from beit.common.pages.pictures import picture_table, sheet
from beit.common.training.judge import Diverged
from beit.tests.toy_training import ToyTask, toy_config, train_toy


def drawn():
    return sheet([picture_table([[np.zeros((4, 4, 3), np.uint8)]], titles=["image"])], heading="Masks")


def failing(error):
    def draw():
        raise error

    return draw


@pytest.fixture
def run(tmp_path, with_reports):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.toml").write_text("seed = 0\n")
    return tmp_path / "run"


def test_pictures_are_drawn_and_one_that_fails_costs_itself_only(run, caplog):
    draw = {
        "attention": failing(BadSample("no image can be read")),
        "words": failing(ZeroDivisionError("a bug")),
        "mistakes": lambda: None,
        "masks": drawn,
    }
    with caplog.at_level(logging.INFO):
        write_report(run, draw=draw)
    assert [file.name for file in (run / "pictures").iterdir()] == ["masks.png"]
    assert "Masks" in (run / "report.html").read_text()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "no picture of the words was drawn (ZeroDivisionError: a bug)"
    ]


def test_a_report_that_cannot_be_written_is_one_warning_with_the_way_out(run, caplog, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(automatic, "write_atomic", full)
    with caplog.at_level(logging.INFO):
        write_report(run)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "report.html was not written ([Errno 28] No space left on device); beit report" in record.getMessage()
    assert "run.report=false leaves it out" in record.getMessage()


@pytest.fixture
def reports(monkeypatch):
    """Give the toy a report, and return what was asked of it."""
    asked = []

    def report(self, run, *, is_over):
        asked.append((is_over, (run / "checkpoints/latest").is_file()))
        (run / "report.html").write_text(f"report {len(asked)}")

    # A class of its own: isinstance remembers which classes have a method, even after it was taken away.
    monkeypatch.setattr("beit.tests.toy_training.ToyTask", type("ReportingTask", (ToyTask,), {"report": report}))
    return asked


def test_a_training_reports_at_its_stop_and_at_its_end_after_the_last_save(tmp_path, reports):
    copy = tmp_path / "copy"
    with pytest.raises(ResumableStop):
        train_toy(tmp_path / "run", toy_config(f"run.sync_to={copy}", "stop_at=2"))
    assert reports == [(False, True)]
    assert (copy / "report.html").read_text() == "report 1"
    train_toy(tmp_path / "run", toy_config(f"run.sync_to={copy}"))
    assert reports == [(False, True), (True, True)]
    assert (copy / "report.html").read_text() == "report 2"
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"step_6", "step_8"}


def test_a_training_that_diverges_reports_as_at_a_stop(tmp_path, reports):
    with pytest.raises(Diverged):
        train_toy(tmp_path / "run", toy_config("bad_steps=[3, 4, 5, 6]"))
    assert reports == [(False, True)] and (tmp_path / "run/report.html").read_text() == "report 1"


def test_a_finished_run_keeps_its_report_and_gets_one_that_is_missing(tmp_path, reports):
    train_toy(tmp_path / "run", toy_config())
    train_toy(tmp_path / "run", toy_config())
    assert len(reports) == 1
    (tmp_path / "run/report.html").unlink()
    train_toy(tmp_path / "run", toy_config())
    assert len(reports) == 2


def test_a_setting_leaves_the_report_out(tmp_path, reports):
    train_toy(tmp_path / "run", toy_config("run.report=false"))
    assert not reports
    train_toy(tmp_path / "run", toy_config())  # may be changed when the run goes on
    assert len(reports) == 1
