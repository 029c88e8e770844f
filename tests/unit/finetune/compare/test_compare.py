"""Runs in one table: what counts as a repetition, what is compared, what is said beside it."""

import csv
import json

import pytest
import scipy.stats

from beit.common.errors import InputError
from beit.common.storage.documents import write_json
from beit.finetune.compare.compare import best_labels, compare_runs, is_lower_better
from beit.finetune.compare.report import as_text, check_comparison_output, write_comparison
from beit.finetune.compare.runs import read_runs
from beit.finetune.config import FinetuneConfig
from beit.finetune.probe.run import run_probe
from beit.tests.unit.finetune.colours import finetune_config

ARCHITECTURE = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def write_model(folder, task, provenance):
    document = {"format": "beit-encoder", "format_version": 1, "architecture": ARCHITECTURE, "task": task}
    document |= {"normalization": {"mean": [0.5] * 3, "std": [0.5] * 3}, "provenance": provenance}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", document)


def write_run(path, *, top1, seed=0, encoder="ours", step=10, batch=8, val="val", total=10, extra="", **settings):
    """Write what `beit finetune classification` leaves, as far as comparing reads it."""
    lines = [f'encoder = "{encoder}"', *(f"{name} = {value}" for name, value in settings.items())]
    lines += ["[train]", f"global_batch_size = {batch}", f"seed = {seed}", "log_interval_steps = 5", extra]
    path.mkdir()
    (path / "config.toml").write_text("\n".join(lines))
    metrics = {"top1": top1, "top5": 1.0, "loss": 1 - top1, "num_images": 100}
    origin = {"step": step, "total_steps": total, "data": "train", "num_labels": 50, "validation_data": val}
    for name in ("model", "last"):
        write_model(path / name, "classification", origin | {"metrics": metrics})
    records = [{"step": done, "images_per_second": 4.0} for done in range(5, step + 1, 5)]
    records += [{"step": step, "val_top1": top1}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_json(path / "environment.json", {"starts": [{"world_size": 2}]})
    return path


@pytest.fixture
def six(tmp_path):
    """Three seeds of two encoders."""
    scores = {"ours": (0.6, 0.64, 0.65), "random": (0.5, 0.51, 0.58)}
    return [
        write_run(tmp_path / f"{encoder}-{seed}", top1=top1, seed=seed, encoder=encoder)
        for encoder, values in scores.items()
        for seed, top1 in enumerate(values)
    ]


def test_what_earlier_runs_did_without_recording_it_is_no_difference(tmp_path):
    old = write_run(tmp_path / "old", top1=0.5)
    new = write_run(tmp_path / "new", top1=0.6, seed=1, extra="[source]\nmax_megapixels = 64.0")
    other = write_run(tmp_path / "other", top1=0.6, extra="[source]\nmax_megapixels = 100.0")
    assert len(compare_runs([old, new]).groups) == 1
    assert len(compare_runs([old, other]).groups) == 2


def test_runs_that_differ_by_seed_are_one_row_with_students_interval(six):
    ours, random = compare_runs(six).groups
    assert ours.differing == {"encoder": "ours"} and random.differing == {"encoder": "random"}
    low, high = scipy.stats.t.interval(0.95, 2, loc=ours.interval.mean, scale=scipy.stats.sem([0.6, 0.64, 0.65]))
    assert ours.interval.mean - ours.interval.half_width == pytest.approx(low)
    assert ours.interval.mean + ours.interval.half_width == pytest.approx(high)
    assert ours.difference is None
    pairs = [-0.1, -0.13, -0.07]
    assert random.difference.mean == pytest.approx(-0.1)
    assert random.difference.half_width == pytest.approx(scipy.stats.sem(pairs) * scipy.stats.t.ppf(0.975, 2))
    assert best_labels([ours, random]) == {"A"}


def test_budget_counts_images_and_device_seconds_of_all_ranks(six):
    (record,) = read_runs(six[0])
    # 10 steps of 8 images at 4 images/s, on two ranks
    assert (record.budget.steps, record.budget.images, record.budget.device_seconds) == (10, 80, 40.0)


def test_settings_that_a_run_of_before_did_not_have_are_their_defaults(tmp_path):
    default = FinetuneConfig()
    first = write_run(tmp_path / "a", top1=0.5)
    extra = f"[source]\nmax_megapixels = {default.source.max_megapixels}"
    second = write_run(tmp_path / "b", top1=0.6, seed=1, extra=extra)
    third = write_run(tmp_path / "c", top1=0.6, seed=2, layer_decay=default.layer_decay)
    (group,) = compare_runs([first, second, third]).groups
    assert len(group.runs) == 3


def test_speed_settings_do_not_tell_runs_apart_and_others_do(tmp_path):
    first = write_run(tmp_path / "a", top1=0.5)
    second = write_run(tmp_path / "b", top1=0.6, seed=1, extra="micro_batch_size = 2")
    third = write_run(tmp_path / "c", top1=0.7, seed=2, layer_decay=0.9)
    groups = compare_runs([first, second, third]).groups
    assert [len(group.runs) for group in groups] == [2, 1]
    assert [group.differing for group in groups] == [
        {"layer_decay": FinetuneConfig().layer_decay},
        {"layer_decay": 0.9},
    ]


@pytest.mark.parametrize(
    "changed", ["eval_interval_steps = 3", "[speed]\ncompile = true", '[profile]\nsteps = "2:4"', "[probe]\nl2 = 1.0"]
)
def test_seeds_are_one_row_also_if_one_was_compiled_profiled_or_evaluated_at_another_rhythm(tmp_path, changed):
    extras = ("", "", changed)
    runs = [write_run(tmp_path / f"{seed}", top1=0.5, seed=seed, extra=extra) for seed, extra in enumerate(extras)]
    (group,) = compare_runs(runs).groups
    assert [run.seed for run in group.runs] == [(0, 0), (1, 0), (2, 0)]


def test_when_a_run_gives_up_decides_it(tmp_path):
    runs = [write_run(tmp_path / "a", top1=0.5), write_run(tmp_path / "b", top1=0.5, extra="early_stop_evals = 2")]
    assert [group.differing for group in compare_runs(runs).groups] == [
        {"train.early_stop_evals": None},
        {"train.early_stop_evals": 2},
    ]


def test_how_features_are_probed_decides_a_probe(finished, tmp_path):
    for name, l2 in (("a", 1e-3), ("b", 1e-2)):
        config = finetune_config(f"data.val={finished.val}", f"probe.l2={l2}")
        run_probe("linear-probe", config, data=str(finished.train), run_dir=tmp_path / name)
    groups = compare_runs([tmp_path / "a", tmp_path / "b"]).groups
    assert [group.differing for group in groups] == [{"probe.l2": 0.001}, {"probe.l2": 0.01}]


def test_other_budgets_images_and_unfinished_runs_are_said_in_one_line_each(tmp_path):
    runs = [
        write_run(tmp_path / "a", top1=0.5),
        write_run(tmp_path / "b", top1=0.6, encoder="random", step=20, total=20),
        write_run(tmp_path / "c", top1=0.6, encoder="third", val="other"),
        write_run(tmp_path / "d", top1=0.6, seed=3, step=5),
    ]
    comparison = compare_runs(runs)
    assert [group.label for group in comparison.groups] == ["A", "B", "C"]
    left, budget, images = comparison.notes
    assert left == f"left out, because it is not finished: {runs[3]} (5 steps to go)"
    assert budget == "classification: budgets differ, 80 to 160 images seen"
    assert "different images" in images and "100 images of val" in images and "100 images of other" in images
    with pytest.raises(InputError, match="no run is finished"):
        compare_runs(runs[3:])


def test_a_run_that_stopped_early_is_finished(tmp_path):
    run = write_run(tmp_path / "a", top1=0.5, step=5, extra="early_stop_evals = 2")
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": 5, "val_top1": value}) + "\n" for value in (0.4, 0.5))
    assert read_runs(run)[0].missing_steps == 0


def test_the_same_seed_twice_is_said(tmp_path):
    runs = [write_run(tmp_path / name, top1=0.5) for name in "ab"]
    assert any("several runs of one seed" in note for note in compare_runs(runs).notes)


def test_numbers_of_evaluate_go_before_those_of_the_run(six):
    write_json(six[0] / "evaluation.json", {"top1": 0.7, "macro_f1": 0.69, "num_images": 1000, "data": "test"})
    (record,) = read_runs(six[0])
    assert record.metrics["top1"] == 0.7 and record.measured_on == "1000 images of test"


def test_every_format_has_the_same_numbers(six, tmp_path):
    comparison = compare_runs(six, metric="loss")
    for ending in ("json", "csv", "md", "html"):
        write_comparison(comparison, tmp_path / f"c.{ending}")
    groups = json.loads((tmp_path / "c.json").read_text())["groups"]
    assert groups[1]["difference"] == pytest.approx(0.1) and len(groups[0]["runs"]) == 3
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert [row["encoder"] for row in rows] == ["ours", "random"]
    assert float(rows[1]["mean"]) == groups[1]["mean"]
    shown = "0.3700 +- 0.0657"
    assert shown in as_text(comparison)
    assert shown.replace("+-", "±") in (tmp_path / "c.md").read_text()
    page = (tmp_path / "c.html").read_text()
    assert shown.replace("+-", "±") in page and "encoder=ours" in page and "://" not in page
    assert best_labels(comparison.groups) == {"A"}, "less loss is better"


def test_there_is_no_verdict_without_an_interval(six):
    one_each = as_text(compare_runs([six[0], six[3]]))
    table = one_each.split("\n\n")[0]
    assert "*" not in table and "-10.0" not in table and "one pair" in table
    one_beside_three = compare_runs([*six[:3], six[3]])
    assert best_labels(one_beside_three.groups) == set()
    table = as_text(compare_runs(six)).split("\n\n")[0]
    assert "*" in table and "-10.0 +- " in table


def test_shape_and_pixels_are_those_of_the_model_whatever_an_earlier_run_recorded(tmp_path):
    earlier = write_run(tmp_path / "earlier", top1=0.5, extra='[model]\nsize = "base"\n[image]\nmean = [0.5, 0.5, 0.5]')
    shape = "embed_dim = 24\ndepth = 2\nnum_heads = 2"
    now = write_run(tmp_path / "now", top1=0.6, seed=1, extra=f"[model]\n{shape}\n[image]\nimg_size = 16")
    (record,) = read_runs(earlier)
    found = {name: record.settings[f"model.{name}"] for name in ("size", "embed_dim", "depth", "num_heads")}
    assert found == {"size": None, "embed_dim": 24, "depth": 2, "num_heads": 2}
    assert record.settings["image.img_size"] == 16
    (group,) = compare_runs([earlier, now]).groups
    assert group.interval.num_values == 2, "the same experiment, recorded in two ways"


def test_probes_of_one_directory_are_two_rows(finished, tmp_path):
    for seed in (0, 1):
        config = finetune_config(f"data.val={finished.val}", f"train.seed={seed}")
        for task in ("linear-probe", "knn"):
            run_probe(task, config, data=str(finished.train), run_dir=tmp_path / f"run{seed}")
    groups = compare_runs([tmp_path / "run0", tmp_path / "run1", finished.run]).groups
    assert [(group.task, len(group.runs)) for group in groups] == [
        ("linear-probe", 2),
        ("knn", 2),
        ("classification", 1),
    ]
    assert groups[0].runs[0].budget.images == 36


def test_pretraining_is_compared_by_held_out_bits(tmp_path):
    for name, bits in (("a", 7.5), ("b", 7.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(f"[train]\nglobal_batch_size = 4\n[mask]\nmin_patches = {bits}\n")
        metrics = {"held_out_bits": bits, "held_out_images": 64.0}
        origin = {"step": 3, "total_steps": 3, "store": "store", "metrics": metrics}
        write_model(tmp_path / name / "encoder", "pretrain", origin)
    groups = compare_runs([tmp_path / "a", tmp_path / "b"]).groups
    assert groups[1].difference.mean == -0.25 and groups[0].metric == "held_out_bits"
    assert best_labels(groups) == set(), "one run each says nothing about which is better"
    assert is_lower_better("held_out_bits") and not is_lower_better("probe_knn/3")


def test_wrong_input_is_one_clear_line(six, tmp_path):
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([tmp_path / "empty"], "is not a run directory"),
        ([tmp_path / "gone"], "is not a run directory"),
        ([six[0], six[0]], "is given twice"),
    ):
        with pytest.raises(InputError, match=message):
            compare_runs(paths)
    for word, meant in (("accuracy", "top1"), ("top-5", "top5"), ("losss", "loss")):
        with pytest.raises(InputError, match=f"has no metric '{word}' .did you mean {meant}?"):
            compare_runs([six[0]], metric=word)
    with pytest.raises(InputError, match="has no metric 'auc'; it has loss, num_images, top1, top5"):
        compare_runs(six, metric="auc")
    with pytest.raises(InputError, match=r"must end in .json, .csv, .md, .html"):
        check_comparison_output(tmp_path / "c.xlsx")
