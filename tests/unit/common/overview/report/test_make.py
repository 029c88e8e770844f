"""`beit report`: what may be named, where the page goes, and what another command is asked."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from beit.cli import beit
from beit.common.errors import InputError
from beit.common.overview.report.make import make_report
from beit.tests.report_runs import fine_tuned, pretraining, probed, write_json


def silent(_: str) -> None:
    pass


def asked(monkeypatch: pytest.MonkeyPatch, document: Any, error: str = "") -> list[list[str]]:
    """Answer for `beit compare`; returns the commands that are run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if document is not None:
            Path(command[-1]).write_text(json.dumps(document))
        return subprocess.CompletedProcess(command, 2, "", error)

    monkeypatch.setattr("beit.common.overview.report.asking.subprocess.run", run)
    return commands


def test_the_page_of_one_run_goes_into_the_run_and_no_other_command_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = asked(monkeypatch, None)
    run = pretraining(tmp_path / "run")
    result = CliRunner().invoke(beit, ["report", str(run)])
    assert result.exit_code == 0 and result.output == f"wrote {run / 'report.html'}\n" and not commands
    assert "Report on run" in (run / "report.html").read_text()


def test_a_run_at_work_is_read_after_its_pictures_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, None)
    run = pretraining(tmp_path / "run")

    def draw(*_: Any, **__: Any) -> dict[Path, dict[str, Path]]:  # takes a minute, in which the run goes on
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 777, "epoch": 9.0, "loss": 0.5}) + "\n")
        return {run: {}}

    monkeypatch.setattr("beit.common.overview.report.make.draw_missing", draw)
    assert "777" in make_report([str(run)], None, say=silent).read_text()


def test_runs_that_measured_the_same_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [fine_tuned(tmp_path / "a"), fine_tuned(tmp_path / "b"), probed(tmp_path / "c")]
    group = {"task": "classification", "metric": "top1", "mean": 0.775, "runs": [{"path": str(paths[0])}]}
    commands = asked(monkeypatch, {"groups": [group]})
    out = make_report([str(path) for path in paths], tmp_path / "all.html", say=silent)
    assert commands[0][3:6] == ["compare", str(paths[0]), str(paths[1])] and "77.5" in out.read_text()


def test_a_comparison_that_fails_is_a_sentence_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, None, error="beit compare: loading\nbeit: they measured on other images\n")
    paths = [str(fine_tuned(tmp_path / name)) for name in "ab"]
    page = make_report(paths, tmp_path / "all.html", say=silent).read_text()
    assert "could not be compared: they measured on other images" in page


def test_a_named_comparison_is_shown_and_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = asked(monkeypatch, None)
    paths = [str(fine_tuned(tmp_path / name)) for name in "ab"]
    group = {"task": "classification", "metric": "top1", "mean": 0.775}
    write_json(tmp_path / "c.json", {"format": "beit-comparison", "format_version": 1, "groups": [group]})
    out = make_report([*paths, str(tmp_path / "c.json")], tmp_path / "all.html", say=silent)
    assert "77.5" in out.read_text() and not commands


@pytest.mark.parametrize(
    ("named", "out", "words"),
    [
        (["RUN", "OTHER"], None, "2 runs need --out"),
        (["RUN"], "page.png", "must end in .html"),
        (["RUN"], "none/page.html", "does not exist"),
        (["RUN"], "run/encoder/page.html", "among the weights"),
        (["fitness.json"], "page.html", "name at least one run beside it"),
        (["RUN", "fitness.json"], "page.html", "fitness.json does not exist"),
        (["s3://bucket/run"], "page.html", "s3://bucket/run is an address"),
        ([" "], "page.html", "a name is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    named: list[str], out: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(pretraining(tmp_path / "run")), "OTHER": str(fine_tuned(tmp_path / "other"))}
    write_json(tmp_path / "run/encoder/model.safetensors", {})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=words):
        make_report([places.get(name, name) for name in named], None if out is None else Path(out), say=silent)
    assert sorted(tmp_path.rglob("*")) == before
