"""How numbers and names are written."""

from __future__ import annotations

import math

import pytest

from beit.common.pages.numbers import count, percent, percent_range, run_name, short_names


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.0 %"), (1, "100.0 %"), (0.383, "38.3 %"), (0.0471, "4.7 %"), (0.979, "97.9 %"), (0.0041, "0.41 %")]
    + [(0.9937, "99.37 %"), (0.00999, "1.0 %"), (0.00001, "below 0.01 %"), (0.99999, "above 99.99 %")]
    + [(math.nan, "-"), (-0.083, "-8.3 %")],
)
def test_shares_have_one_form_that_neither_reads_nothing_nor_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_intervals_counts_and_differences() -> None:
    assert percent_range(0.173, 0.288) == "17.3 to 28.8 %"
    assert percent(0.0041, signed=True) == "+0.4 %"
    assert (count(1, "image"), count(2400, "image"), count(2, "class", plural="classes")) == (
        "1 image",
        "2,400 images",
        "2 classes",
    )


def test_paths_are_as_short_as_they_can_be_told_apart() -> None:
    names = short_names(["/home/me/a/data/val", "/home/me/b/data/val", "/mnt/x/y/test", "photos", "/"])
    assert list(names.values()) == ["a/data/val", "b/data/val", "y/test", "photos", "/"]
    assert short_names(["https://host/x.tar?signature=1"]).popitem()[1] == "https://host/x.tar"


@pytest.mark.parametrize(
    ("path", "name"),
    [("runs/flowers/model", "flowers"), ("/a/b/flowers", "flowers"), ("model", "model"), ("../x/last/", "x")],
)
def test_what_lies_in_a_run_is_named_after_it(path: str, name: str) -> None:
    assert run_name(path) == name
