"""Pictures of a report: sheets set anew, and how they came about."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from beit.common.overview.report import drawing
from beit.common.overview.report.drawing import draw_missing, missing
from beit.common.overview.report.pictures import picture_section, sheet_files
from beit.common.pages.pictures import picture_table, save_png, sheet
from beit.common.runs.metrics import MetricsLog


def run_in(path, **fields):
    return SimpleNamespace(path=path, name=path.name, place=0, **fields)


def cell(value):
    return np.full((4, 4, 3), value, np.uint8)


def pairs(step, *, titles=("image", "predicted"), rows=2):
    """Return a sheet whose second column changes from step to step."""
    table = picture_table([[cell(200), cell(step)] for _ in range(rows)], titles=titles, cell_px=40)
    return sheet([table], heading="Completed <b>", facts=f"step {step}", legend="How to read it.")


def keep(run, steps, draw=pairs, total=100):
    log = MetricsLog(run, 0, total_steps=total)
    for step in steps:
        log.picture("reconstruction", draw(step), step)
    log.close()


def html_of(*runs, drawn=None):
    return "\n".join(picture_section(runs, drawn).parts)


def test_what_changed_from_moment_to_moment_stands_once_each_and_what_did_not_once_in_all(tmp_path):
    keep(tmp_path, [10, 50, 100])
    html = html_of(run_in(tmp_path))
    assert re.findall('<th scope="col">(.*?)</th>', html) == ["image", "step 10", "step 50", "step 100"]
    assert html.count("<img") == 2 * 4
    assert "after 10, 50 and 100 steps" in html
    assert "Completed &lt;b&gt;, over time" in html
    assert "<b>" not in html


def test_pairs_beside_each_other_become_a_row_each(tmp_path):
    def draw(step):
        return sheet([picture_table([[cell(200), cell(step), cell(210), cell(step + 1)]])], heading="Pairs")

    keep(tmp_path, [10, 100], draw)
    html = html_of(run_in(tmp_path))
    assert html.count("<tr>") == 3  # titles, and one for each picture that changes
    assert html.count("<img") == 2 * 3


def test_one_moment_or_sheets_of_other_shapes_leave_the_newest(tmp_path):
    keep(tmp_path, [100])
    html = html_of(run_in(tmp_path))
    assert "over time" not in html
    assert html.count("<img") == 4
    (tmp_path / "reconstruction.png").unlink()
    keep(tmp_path, [10], lambda step: pairs(step, rows=3))
    assert "over time" not in html_of(run_in(tmp_path))


def test_a_sheet_of_before_is_shown_whole_and_what_is_no_picture_is_left_out(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "reconstruction.png")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/masks.png").write_bytes(b"no picture")
    html = html_of(run_in(tmp_path))
    assert html.count("<img") == 1
    assert 'width="60" height="40"' in html
    assert picture_section([run_in(tmp_path / "nowhere")]).parts == ()


def test_a_chart_keeps_its_letters_and_a_legend_becomes_a_list(tmp_path):
    from beit.finetune.evaluation.overlays import legend
    from beit.finetune.masks.classes import MaskClasses

    classes = MaskClasses(names=("road", "sky"), colours=((1, 2, 3), (4, 5, 6)))
    chart = Image.new("RGB", (300, 100))
    (tmp_path / "pictures").mkdir()
    body = sheet([picture_table([[cell(1)]]), legend(classes, [0, 1]), chart], heading="H")
    save_png(body, tmp_path / "pictures/predictions.png")
    html = html_of(run_in(tmp_path))
    assert re.findall("<span>(.*?)</span></li>", html) == ["road", "sky"]
    assert 'class="drawn chart"><img src="data:image/png' in html


def test_pictures_drawn_for_the_page_go_before_those_in_the_run(tmp_path):
    save_png(pairs(3), tmp_path / "reconstruction.png")
    save_png(pairs(5, rows=5), tmp_path / "drawn.png")
    run = run_in(tmp_path)
    assert html_of(run).count("<img") == 4
    assert html_of(run, drawn={tmp_path: {"reconstruction": tmp_path / "drawn.png"}}).count("<img") == 10


@pytest.mark.parametrize("document", ["[]", "{}", '{"rows": [["a", [[1]]]]}', "nonsense"])
def test_what_is_taken_for_what_is_shown_if_it_is_sound(tmp_path, document):
    (tmp_path / "pictures").mkdir()
    file = tmp_path / "pictures/confusion.json"
    file.write_text(document)
    assert html_of(run_in(tmp_path)) == ""
    rows = [["cat", [[3, 0.75], [1, 0.25]]], ["dog", [[0, 0.0], [4, 1.0]]]]
    file.write_text(json.dumps({"caption": "c", "corner": "true", "columns": ["cat", "dog"], "rows": rows}))
    assert "What is taken for what" in html_of(run_in(tmp_path))


def test_several_runs_are_named(tmp_path):
    runs = []
    for place, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        save_png(pairs(3), tmp_path / name / "reconstruction.png")
        runs.append(SimpleNamespace(path=tmp_path / name, name=f"run-{name}", place=place))
    html = html_of(*runs)
    assert html.index("run-a") < html.index("run-b")
    assert "var(--line1)" in html


# What is drawn for a report


def pretrained(tmp_path, **settings):
    store, run = tmp_path / "store", tmp_path / "run"
    (store / "images").mkdir(parents=True)
    (store / "store.json").write_text('{"image_root": "images"}')
    (run / "encoder").mkdir(parents=True)
    return run_in(run, kind="pre-training", data={"store": str(store)}, origin={"views": 2}, settings=settings, kept={})


def test_what_a_run_lacks_is_drawn_from_what_is_there(tmp_path):
    run = pretrained(tmp_path)
    store = str(tmp_path / "store")
    assert {name: words[:2] for name, words in missing(run, tmp_path)} == {
        "reconstruction": ["reconstruction", str(run.path)],
        "masks": ["masks", str(run.path)],
        "attention": ["attention", str(run.path)],
        "words": ["tokens", store],
    }
    (run.path / "pictures").mkdir()
    save_png(pairs(1), run.path / "pictures/masks.png")
    Image.new("RGB", (4, 4)).save(run.path / "reconstruction.png")  # of before
    assert [name for name, _ in missing(run, tmp_path)] == ["reconstruction", "attention", "words"]
    assert [name for name, _ in missing(pretrained(tmp_path / "other", **{"mask.mode": "none"}), tmp_path)] == [
        "reconstruction",
        "attention",
        "words",
    ]
    (tmp_path / "store/store.json").unlink()
    assert [*missing(run, tmp_path)] == []


def test_of_a_classifier_predictions_and_attention_are_drawn_unless_its_images_are_gone(tmp_path):
    (tmp_path / "run/model").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    kept = {"provenance": {"validation_data": str(tmp_path / "val")}}
    run = run_in(tmp_path / "run", kind="classification", origin={}, kept=kept)
    assert [name for name, _ in missing(run, tmp_path)] == ["predictions", "attention"]
    (tmp_path / "val").rmdir()
    assert [*missing(run, tmp_path)] == []
    assert [*missing(run_in(tmp_path / "run", kind="probe", origin={}, kept=kept), tmp_path)] == []


def test_what_cannot_be_drawn_is_said_and_the_others_are_drawn(tmp_path, monkeypatch):
    def ask(words):
        if words[1] == "masks":
            return "the store has moved"
        save_png(pairs(2), Path(words[words.index("--out") + 1]))
        return ""

    monkeypatch.setattr(drawing, "ask_beit", ask)
    said = []
    run = pretrained(tmp_path)
    drawn = draw_missing([run], tmp_path, say=said.append)[run.path]
    assert sorted(drawn) == ["attention", "reconstruction", "words"]
    assert f"no masks of {run.name}: the store has moved" in said
    assert re.fullmatch(r"drew 3 pictures in \d+ s; --no-pictures leaves them out", said[-1])
    assert sheet_files(run.path) == {}
