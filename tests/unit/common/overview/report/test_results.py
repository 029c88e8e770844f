"""What runs came to: values, how far they are known, and what they are held against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from beit.common.overview.report.documents import Documents, find_documents
from beit.common.overview.report.provenance import provenance_section
from beit.common.overview.report.results import Result, results, results_section
from beit.common.overview.report.run_files import read_run_files
from beit.common.pages.intervals import share_interval
from beit.common.pages.numbers import percent_range
from beit.common.storage.documents import read_json, write_json
from beit.tests.page_parts import PageParts
from beit.tests.report_runs import ALL, fine_tuned, pretraining, probed, segmented, tokenizer

NOTHING = Documents(verdicts={}, tokenizers={}, comparisons=[], runs={})


def of(path: Path) -> list[Result]:
    return results(read_run_files([path])[0])


def test_bits_have_their_spread_and_both_zero_lines(tmp_path: Path) -> None:
    bits, right = of(pretraining(tmp_path / "run"))
    assert (bits.value, bits.interval) == ("5.00", "4.80 to 5.20")
    assert bits.baseline == "unigram 8.00, neighbour 7.00" and bits.measured_on == "64 held-out images"
    assert (right.value, right.baseline) == ("20.0 %", "commonest word 5.0 %")


def test_a_share_has_wilsons_interval_and_what_guessing_gives(tmp_path: Path) -> None:
    found = of(fine_tuned(tmp_path / "run"))[0]
    assert found.interval == percent_range(*share_interval(0.8, 100)) and found.baseline == "guessing 25.0 %"
    assert found.measured_on == "100 images of there/test, by which the model was chosen"


def test_an_evaluation_goes_before_what_the_training_measured(tmp_path: Path) -> None:
    found = of(segmented(tmp_path / "run"))[0]
    assert (found.value, found.interval, found.baseline) == (
        "42.0 %",
        "39.0 % to 46.0 %".replace("39.0 %", "39.0"),
        "commonest class 3.0 %",
    )
    assert found.measured_on == "50 images of masks/test"


@pytest.mark.parametrize("make", [fine_tuned, probed, segmented])
def test_images_that_a_model_learned_from_measure_nothing(make: Callable[..., Path], tmp_path: Path) -> None:
    """It is said where the number stands, and on the way from images to model."""
    run = make(tmp_path / "run")
    for file in (*run.glob("*.json"), *run.glob("*/config.json")):
        document = read_json(file)
        for origin in (document, document.get("provenance", {})):
            origin |= {"source_sha256": "1" * 64, "validation_sha256": "1" * 64, "validation_data": "/there/labelled"}
        write_json(file, document)
    assert all(one.measured_on.endswith(", which it learned from") for one in of(run))
    found = read_run_files([run])
    way = PageParts(f"<main>{''.join(provenance_section(found, find_documents(found, ())).parts)}</main>").text
    assert "no measure" in way and "learned from these very images" in way


def test_an_evaluation_that_does_not_say_of_what_is_not_that_of_the_training(tmp_path: Path) -> None:
    run = segmented(tmp_path / "run")
    for file in run.glob("*/config.json"):
        document = read_json(file)
        document["provenance"] |= {"source_sha256": "1" * 64, "validation_sha256": "1" * 64}
        write_json(file, document)
    assert of(run)[0].measured_on == "50 images of masks/test"


def test_both_probes_name_their_block(tmp_path: Path) -> None:
    linear, neighbours = of(probed(tmp_path / "run"))
    assert linear.measure == "linear probe, top-1 (block 1)" and neighbours.measure == "k-NN, top-1 (block 1, k = 5)"
    assert linear.interval and linear.baseline == "guessing 25.0 %"


@pytest.mark.parametrize(("architecture", "value"), [("vqkd", "0.900"), ("kmeans", "25.00 dB")])
def test_a_tokenizer_is_held_against_what_needs_none(architecture: str, value: str, tmp_path: Path) -> None:
    found = of(tokenizer(tmp_path / "run", architecture))
    assert found[0].value == value and any("12 of 16" == one.value or "16 of 16" == one.value for one in found)


def test_the_same_measure_of_several_runs_stands_together(tmp_path: Path) -> None:
    runs = read_run_files([probed(tmp_path / "a", best=0.7), probed(tmp_path / "b")])
    shown = PageParts(f"<main>{results_section(runs, NOTHING).parts[0]}</main>").text.split()
    assert [word for word in shown if word in ("a", "b")] == ["a", "b", "a", "b"]


def test_columns_in_which_nothing_stands_are_left_out(tmp_path: Path) -> None:
    runs = read_run_files([tokenizer(tmp_path / "words", "kmeans")])
    shown = "".join(results_section(runs, NOTHING).parts)
    assert "without looking" in shown and "interval" not in shown


def test_a_run_without_results_has_no_such_section(tmp_path: Path) -> None:
    run = ALL["probe"](tmp_path / "run")
    for name in ("linear-probe.json", "knn.json"):
        (run / name).unlink()
    assert results_section(read_run_files([run]), NOTHING).parts == ()


def test_a_comparison_shows_means_over_seeds_and_differences_in_points(tmp_path: Path) -> None:
    runs = read_run_files([fine_tuned(tmp_path / "a"), fine_tuned(tmp_path / "b")])
    groups = [
        {
            "task": "classification",
            "metric": "top1",
            "mean": 0.8,
            "half_width": 0.02,
            "settings": {"encoder": "random"},
        },
        {"task": "classification", "metric": "top1", "mean": 0.7, "difference": -0.1, "difference_half_width": 0.05},
        {"task": "pretrain", "metric": "held_out_bits", "mean": 5.0},
    ]
    for group, path in zip(groups, [tmp_path / "a", tmp_path / "b", Path("/else/where/c")], strict=True):
        group["runs"] = [{"path": str(path)}]
    document = {"groups": groups, "notes": ["classification: measured on other images"]}
    found = Documents(verdicts={}, tokenizers={}, comparisons=[document], runs={}, notes=("One more.",))
    shown = PageParts(f"<main>{''.join(results_section(runs, found).parts)}</main>").text
    assert "80.0\u00a0% ± 2.0" in shown and "−10.0 ± 5.0" in shown and "5.000" in shown
    assert "where/c" in shown and "measured on other images" in shown and "One more." in shown
