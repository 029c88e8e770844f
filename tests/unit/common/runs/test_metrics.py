"""metrics.jsonl: one record per step, whatever happened in between."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from PIL import Image

from beit.common.runs.metrics import MetricsLog, read_metrics, truncate_metrics


def test_records_reach_file_and_tensorboard(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, total_steps=10)
    log.write({"step": 1, "loss": 2.5, "grad_norm": float("nan")})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.5, "grad_norm": null}\n'
    assert list((tmp_path / "tensorboard").iterdir())


def test_pictures_reach_a_file_and_tensorboard(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, total_steps=10)
    for step in (1, 2):
        log.picture("sheet", Image.new("RGB", (5, 4), (step, 0, 0)), step)
    log.close()
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.getpixel((0, 0)) == (2, 0, 0)
    assert any(b"sheet" in path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


def test_resume_removes_lost_work_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    truncate_metrics(path, 2)
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    assert path.read_text().endswith("\n")


def test_missing_file_has_no_records(tmp_path: Path) -> None:
    truncate_metrics(tmp_path / "metrics.jsonl", 3)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_file_that_takes_no_more_costs_records_and_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricsLog(tmp_path, 0, total_steps=10)
    log.write({"step": 1, "loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 3, limits[1]))
    try:
        for step in range(2, 5):
            log.write({"step": step, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write({"step": 5, "loss": 1.0})
    log.close()
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert caplog.text.count("metrics are not written any more") == 1


@pytest.mark.parametrize(
    "line", ['{"step": null}', "[1]", "null", '{"step": "3"}', '{"step": true}', '{"ste', "9" * 5000]
)
def test_a_record_that_is_none_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2.0, "name": "x", "mfu": null}}\n{line}\n{{"step": 2}}\n')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0, "mfu": None}, {"step": 2}]
    truncate_metrics(path, 1)
    assert [record["step"] for record in read_metrics(path)] == [1]
