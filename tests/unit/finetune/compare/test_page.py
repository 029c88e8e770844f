"""The page of a comparison: one run and twelve, several tasks, names, and what it says of chance and origin."""

from __future__ import annotations

from beit.common.storage.documents import write_json
from beit.finetune.compare.compare import compare_runs
from beit.finetune.compare.report import as_html, as_text
from beit.tests.page_parts import PageParts
from beit.tests.unit.finetune.compare.test_compare import write_run


def page_of(runs, folder):
    page = PageParts(as_html(compare_runs(runs)).decode())
    page.check(hidden=str(folder))
    page.text = " ".join(page.text.split())
    return page


def test_one_run_has_the_interval_of_its_images(tmp_path):
    page = page_of([write_run(tmp_path / "only", top1=0.5)], tmp_path)
    assert "Comparison of only" in page.text and "its images alone: 40.4 to 59.6 %" in page.text
    assert not page.of("svg")


def test_twelve_runs_of_three_experiments_are_drawn_and_listed(tmp_path):
    runs = [
        write_run(tmp_path / f"run{place}-{seed}", top1=0.5 + 0.01 * seed + 0.1 * place, seed=seed, encoder=encoder)
        for place, encoder in enumerate(("random", str(tmp_path / "pretrain/encoder"), "飛行機"))
        for seed in range(4)
    ]
    page = page_of(runs, tmp_path)
    assert "Comparison of 12 runs" in page.text and len(page.of("svg")) == 1
    assert all(f"run{place}-{seed}" in page.text for place in range(3) for seed in range(4))
    assert "pretrain/encoder" in page.text and "top-1" in page.text and "top1" not in page.text


def test_chance_is_said_where_it_is_known(tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", top1=0.6, seed=seed) for seed in range(2)]
    for run in runs:
        found = {"top1": 0.7, "num_images": 1000, "data": "test", "chance": 0.25, "top1_interval": [0.6, 0.8]}
        write_json(run / "evaluation.json", found)
    assert "Chance (always saying the commonest class) is 25.0 %." in page_of(runs, tmp_path).text
    assert "chance (always saying the commonest class) is 25.0 %" in as_text(compare_runs(runs))


def test_an_evaluation_on_images_of_one_class_is_held_against_guessing(tmp_path):
    run = write_run(tmp_path / "a", top1=0.6)
    per_class = [{"name": "a", "num_images": 1000}, {"name": "b", "num_images": 0}]
    for chance in (1.0, 0.5):  # as earlier versions wrote it, and as it is written now
        found = {"top1": 0.7, "num_images": 1000, "data": "test", "chance": chance, "per_class": per_class}
        write_json(run / "evaluation.json", found)
        assert "chance (guessing one of 2 classes) is 50.0 %" in as_text(compare_runs([run]))


def test_commands_are_shown_without_the_folders_of_a_machine(tmp_path):
    run = write_run(tmp_path / "a", top1=0.6)
    command = ["/opt/bin/beit", "finetune", "classification", str(tmp_path / "deep/down/data"), "--set", "a.b=x y"]
    start = {"world_size": 1, "command": command, "time": "2026-11-29T10:20:30+0000", "beit": "0.1.0"}
    write_json(run / "environment.json", {"starts": [start]})
    text = page_of([run], tmp_path).text
    assert "beit finetune classification …/down/data --set 'a.b=x y'" in text
    assert "2026-11-29 10:20, beit 0.1.0" in text


def test_the_table_on_the_terminal_fits_80_columns(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [
        write_run(tmp_path / f"{name}{seed}", top1=0.5 + seed / 9, seed=seed, encoder=name)
        for name in "ab"
        for seed in range(3)
    ]
    lines = as_text(compare_runs(runs)).splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == "classification, top-1"
