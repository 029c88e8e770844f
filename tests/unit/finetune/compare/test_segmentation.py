"""Segmentation runs in one table: by mIoU, with the interval of their images, and one against another over these."""

from __future__ import annotations

import json
import re

import pytest

from beit.common.errors import InputError
from beit.common.storage.documents import json_bytes, write_json
from beit.finetune.compare.compare import compare_runs, readings
from beit.finetune.compare.report import as_text, write_comparison
from beit.tests.page_parts import PageParts
from beit.tests.unit.finetune.compare.test_compare import write_model, write_run
from beit.tests.unit.finetune.evaluation.scenes import mask_report


def write_scene_run(path, *, miou, seed=0, encoder="ours", head="linear", extra="", evaluation=None):
    """Write what `beit finetune segmentation` leaves, as far as comparing reads it."""
    path.mkdir()
    lines = [f'encoder = "{encoder}"', "[head]", f'kind = "{head}"', "[train]", f"seed = {seed}", "steps = 10"]
    (path / "config.toml").write_text("\n".join([*lines, "global_batch_size = 8", extra]))
    metrics = {"miou": miou, "miou_all_classes": miou / 2, "pixel_accuracy": 0.9, "num_images": 20}
    origin = {"step": 10, "total_steps": 10, "data": "train", "num_labels": 50, "validation_data": "val"}
    for name in ("model", "last"):
        write_model(path / name, "segmentation", origin | {"metrics": metrics})
        document = json.loads((path / name / "config.json").read_text())
        write_json(path / name / "config.json", document | {"segmentation": {}})
    (path / "metrics.jsonl").write_text(json.dumps({"step": 10, "val_miou": miou}) + "\n")
    write_json(path / "environment.json", {"starts": [{"world_size": 1}]})
    if evaluation is not None:
        (path / "evaluation.json").write_bytes(json_bytes(evaluation.as_json()))
    return path


@pytest.fixture
def six(tmp_path):
    """Three seeds of two encoders."""
    scores = {"ours": (0.6, 0.64, 0.65), "random": (0.5, 0.51, 0.58)}
    return [
        write_scene_run(tmp_path / f"{encoder}-{seed}", miou=miou, seed=seed, encoder=encoder)
        for encoder, values in scores.items()
        for seed, miou in enumerate(values)
    ]


def test_seeds_are_one_row_by_miou(six):
    ours, random = compare_runs(six).groups
    assert (ours.task, ours.metric) == ("segmentation", "miou")
    assert ours.interval.mean == pytest.approx(0.63) and random.difference.mean == pytest.approx(-0.1)
    text = as_text(compare_runs(six))
    assert "segmentation, mIoU" in text and "63.0 +- 6.6 %*" in text
    assert "mIoU of all classes" in as_text(compare_runs(six, metric="miou_all_classes"))


def test_settings_of_segmentation_are_told_apart(tmp_path):
    linear = write_scene_run(tmp_path / "a", miou=0.5)
    fpn = write_scene_run(tmp_path / "b", miou=0.6, head="fpn")
    same = write_scene_run(tmp_path / "c", miou=0.7, seed=1, extra="[evaluation]\nscales = [1.0]")
    groups = compare_runs([linear, fpn, same]).groups
    assert [group.differing for group in groups] == [{"head.kind": "linear"}, {"head.kind": "fpn"}]
    assert [len(group.runs) for group in groups] == [2, 1]


def test_how_an_evaluation_looked_at_images_is_a_setting(tmp_path):
    report, _ = mask_report(12)
    mirrored, _ = mask_report(12, flip=True, scales=(0.5, 1.0))
    runs = [
        write_scene_run(tmp_path / "a", miou=0.1, evaluation=report),
        write_scene_run(tmp_path / "b", miou=0.1, evaluation=mirrored),
    ]
    groups = compare_runs(runs).groups
    assert [group.differing for group in groups] == [
        {"evaluation.flip": False, "evaluation.scales": [1.0]},
        {"evaluation.flip": True, "evaluation.scales": [0.5, 1.0]},
    ]
    assert groups[0].interval.mean == report.metrics.miou, "the evaluation goes before what the run measured"


def test_what_an_evaluation_left_out_is_not_what_the_run_set(tmp_path):
    report, _ = mask_report(12)
    smaller, _ = mask_report(12, short_side=48)
    own = "[evaluation]\nshort_side = 48"
    runs = [
        write_scene_run(tmp_path / "a", miou=0.1, extra=own, evaluation=smaller),
        write_scene_run(tmp_path / "b", miou=0.1, extra=own, evaluation=report),
        write_scene_run(tmp_path / "c", miou=0.1, seed=1, evaluation=report),
    ]
    groups = compare_runs(runs).groups
    assert [group.differing for group in groups] == [{"evaluation.short_side": 48}, {"evaluation.short_side": None}]
    assert [len(group.runs) for group in groups] == [1, 2]


def test_micro_batches_count_where_norms_have_statistics_of_a_batch(tmp_path):
    runs = [
        write_scene_run(
            tmp_path / f"{norm}-{size}", miou=0.1, head=f'fpn"\nnorm = "{norm}', extra=f"micro_batch_size = {size}"
        )
        for norm in ("batch", "group")
        for size in (2, 4)
    ]
    assert [len(group.runs) for group in compare_runs(runs).groups] == [1, 1, 2]


def test_what_an_evaluation_repeats_is_no_setting(tmp_path):
    report, _ = mask_report(12)
    without = write_scene_run(tmp_path / "a", miou=0.1)
    evaluated = write_scene_run(tmp_path / "b", miou=0.1, seed=1, evaluation=report)
    assert len(compare_runs([without, evaluated]).groups) == 1


def test_single_runs_are_told_apart_over_their_images(tmp_path):
    worse, _ = mask_report(30)
    better, _ = mask_report(30)
    half = better.outcomes
    for name in ("right", "said"):  # all errors gone
        getattr(half, name)[:] = half.true
    runs = [
        write_scene_run(tmp_path / "a", miou=0.1, evaluation=worse),
        write_scene_run(tmp_path / "b", miou=0.1, encoder="other", evaluation=better),
    ]
    comparison = compare_runs(runs)
    low, high = worse.interval
    lines = readings(comparison.groups)
    alone = f"30 images alone let mIoU be {100 * low:.1f} to {100 * high:.1f} % (95 %, bootstrap)"
    assert any(alone in line for line in lines)
    assert any("chance (always saying the commonest class)" in line for line in lines)
    (paired,) = [line for line in lines if line.startswith("B - A")]
    first, second = map(float, re.findall(r"[+-]\d+\.\d", paired))
    assert 0 < first < second
    write_comparison(comparison, tmp_path / "c.html")
    page = PageParts((tmp_path / "c.html").read_text())
    page.check()
    assert "B - A:" in page.text and "Segmentation: mIoU" in page.text


def test_other_images_are_not_paired(tmp_path):
    one, _ = mask_report(30)
    other, _ = mask_report(29)
    renamed, _ = mask_report(30, names=("sky", "street", "tree"))
    for number, report in enumerate((other, renamed)):
        runs = [
            write_scene_run(tmp_path / f"a{number}", miou=0.1, evaluation=one),
            write_scene_run(tmp_path / f"b{number}", miou=0.1, encoder="other", evaluation=report),
        ]
        assert not any(line.startswith("B - A") for line in readings(compare_runs(runs).groups))


def test_segmenters_among_classifiers_are_refused(tmp_path, six):
    classifier = write_run(tmp_path / "flowers", top1=0.5)
    with pytest.raises(InputError, match="of segmentation and .*flowers of classification, which have no number in"):
        compare_runs([*six, classifier])


def test_other_names_of_metrics_lead_to_ours(six):
    for word, meant in (("iou", "miou"), ("mean_iou", "miou"), ("aAcc", "pixel_accuracy")):
        with pytest.raises(InputError, match=f"did you mean {meant}"):
            compare_runs(six, metric=word)


def test_a_damaged_evaluation_is_one_line(tmp_path):
    report, _ = mask_report(5)
    run = write_scene_run(tmp_path / "a", miou=0.1, evaluation=report)
    document = json.loads((run / "evaluation.json").read_text())
    for changes in ({"counts": {"data": "AAAA", "shape": [3, 5, 3]}}, {"per_class": 3}, {"miou_interval": ["x"]}):
        write_json(run / "evaluation.json", document | changes)
        with pytest.raises(InputError, match=r"evaluation\.json is damaged") as caught:
            compare_runs([run])
        assert "\n" not in str(caught.value)
    write_json(run / "evaluation.json", {name: value for name, value in document.items() if name != "miou"})
    with pytest.raises(InputError, match="no miou among what was measured"):
        compare_runs([run])
