"""What is read of a run: its kind, what it is called, and what is missing of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.overview.report.page import report_page
from beit.common.overview.report.run_files import MOST_RUNS, read_run_files
from beit.tests.report_runs import ALL, earlier_run, fine_tuned, pretraining, probed, tokenizer

DAMAGED = {
    "empty": b"",
    "cut": b'{"a": ',
    "no text": b"\xff\x00{[",
    "a list": b"[1, 2]",
    "null": b"null",
    "other values": b'{"starts": 3, "provenance": "x", "training": [1], "blocks": 5, "metrics": 2, "top1": "x"}',
    "metrics that are none": b'{"provenance": {"metrics": {"top1": "x", "bits": []}}, "format": "beit-tokenizer"}',
}


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_is_told_by_its_files(kind: str, tmp_path: Path) -> None:
    run = read_run_files([ALL[kind](tmp_path / "run")])[0]
    assert (run.kind, run.name, run.gaps) == (kind, "run", ())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pretrain-run", "pre-training"), ("finetune-run", "classification"), ("tokenizer-run", "tokenizer")],
)
def test_runs_of_earlier_versions_are_read(name: str, kind: str, tmp_path: Path) -> None:
    run = read_run_files([earlier_run(tmp_path, name)])[0]
    assert run.kind == kind and not run.gaps and run.step > 0


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "run")
    for name in ("encoder", "metrics.jsonl", "data.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = read_run_files([run])
    assert found[0].kind == "pre-training" and "nothing recorded yet" in report_page(found)


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    paths = [pretraining(tmp_path / name) for name in ("one/run", "two/run", "other")]
    assert [run.name for run in read_run_files(paths)] == ["one/run", "two/run", f"{tmp_path.name}/other"]
    assert [run.place for run in read_run_files(paths)] == [0, 1, 2]
    assert [run.name for run in read_run_files(paths[:2])] == ["one", "two"]


def test_what_is_no_run_is_refused_with_what_to_name(tmp_path: Path) -> None:
    run = pretraining(tmp_path / "runs/one")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    refused = {
        run / "encoder": f"is part of the run {run}; name that",
        run / "metrics.jsonl": f"is part of the run {run}",
        tmp_path / "store": "is a token store",
        tmp_path / "runs": f"holds runs: name {run}",
        tmp_path / "empty": "name the RUN of a training or a probe",
        tmp_path / "none": "does not exist",
    }
    for path, words in refused.items():
        with pytest.raises(InputError) as error:
            read_run_files([path])
        assert words in str(error.value) and str(path) in str(error.value)


def test_too_many_runs_and_the_same_one_twice_are_refused(tmp_path: Path) -> None:
    run = fine_tuned(tmp_path / "run")
    with pytest.raises(InputError, match="named twice"):
        read_run_files([run, tmp_path / "run/../run"])
    with pytest.raises(InputError, match=f"9 runs are too many .* {MOST_RUNS}"):
        read_run_files([tmp_path / str(number) for number in range(9)])


@pytest.mark.parametrize("kind", ALL)
def test_no_damage_to_a_document_costs_the_page(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beit.common.overview.report.curves.line_svg", lambda *_, **__: "<svg></svg>")
    monkeypatch.setattr("beit.common.overview.report.run_files._PATIENCE_SECONDS", 0.0)
    whole = ALL[kind](tmp_path / "whole")
    files = [path for path in whole.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".toml")]
    for file in files:
        for how, content in DAMAGED.items():
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(whole, run)
            (run / file.relative_to(whole)).write_bytes(content)
            runs = read_run_files([run])
            assert "</html>" in report_page(runs), (file, how)
            if how in ("cut", "no text"):
                assert any(file.name in gap for gap in runs[0].gaps), (file, how)


def test_a_run_that_is_being_written_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pretraining(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 40, "loss": 0.')  # half a line
    description = run / "encoder/config.json"
    content = description.read_bytes()

    def is_there(seconds: float) -> None:
        description.write_bytes(content)

    description.write_bytes(content[:20])  # as where a folder is about to be put in another's place
    monkeypatch.setattr("beit.common.overview.report.run_files.time.sleep", is_there)
    (found,) = read_run_files([run])
    assert not found.gaps and found.made["format"] == "beit-encoder" and found.step == 30
    assert "0.<" not in report_page([found])


def test_gaps_do_not_name_folders(tmp_path: Path) -> None:
    run = probed(tmp_path / "run")
    (run / "knn.json").write_text("{")
    found = read_run_files([run])
    assert "run/knn.json is not valid JSON" in found[0].gaps[0] and str(tmp_path) not in report_page(found)


def test_a_finished_clustering_is_finished_without_records(tmp_path: Path) -> None:
    page = report_page(read_run_files([tokenizer(tmp_path / "words", "kmeans")]))
    assert "Training of a tokenizer, finished" in page and "25.00 dB" in page
