import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from beit.common.reading.bad_samples import BadSampleReport
from beit.tests.fitness_examples import example_report, good_fitness
from beit.tokenize.fitness.page import CURVE_POINTS, even_curve, map_pixels, map_range, page
from beit.tokenize.fitness.rows import ROWS, text_table

EVIL = "<script>alert(1)</script>\"'&`<b>`"
VOID = {"meta", "img", "wbr"}


class Checker(HTMLParser):
    """Collects what a page refers to, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


@pytest.mark.parametrize("names", [("mini",), ("mini", "mine"), tuple("abcdefg")])
def test_page_is_whole_and_needs_nothing_else(names: tuple[str, ...]) -> None:
    html = page(example_report(*names))
    found = check(html)
    assert found.references and all(value.startswith("data:image/png;base64,") for value in found.references)
    assert not found.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert "url(" not in html and "@import" not in html and "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html


@pytest.mark.parametrize("names", [(EVIL,), (EVIL, "mine")])
def test_page_escapes_names_paths_and_reasons(names: tuple[str, ...]) -> None:
    bad = (BadSampleReport(EVIL, EVIL, EVIL),)
    html = page(example_report(*names, source=EVIL, bad=bad))
    found = check(html)
    assert "script" not in found.tags and "b" in found.tags
    assert not found.handlers
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "`<b>`" not in html


def test_page_quotes_cannot_leave_an_attribute() -> None:
    found = check(page(example_report("mini", source='" onerror="alert(1)')))
    assert not found.handlers


def test_page_of_a_tokenizer_without_decoder_says_so() -> None:
    report = example_report("blind")
    report = replace(report, fitness=[good_fitness(reconstruction=None)], sheet=[])
    html = page(report)
    check(html)
    assert "no pictures to show" in html and "PSNR" not in html


def test_averages_are_said_to_be_averages() -> None:
    averages = replace(good_fitness().tokenizer, paints_averages=True)
    report = example_report("a", "b")
    assert "average of the squares" not in page(report) + report.as_text()
    report = replace(report, fitness=[report.fitness[0], good_fitness("b", tokenizer=averages)])
    for text in (page(report), " ".join(report.as_text().split())):
        assert "b: a word is painted as the average of the squares that had it" in text


def test_views_of_several_sides_are_named_and_their_pixels_not_ranked() -> None:
    better = replace(good_fitness().reconstruction, psnr=25.0)
    large = good_fitness("large", view_size=64, reconstruction=better)
    report = example_report("small", "large")
    report = replace(report, fitness=[report.fitness[0], large])
    assert "one view of 32 x 32 px for small, 64 x 64 px for large, 4 x 4 words each, drawn" in report.describe()
    assert report.as_json()["settings"]["view_size"] is None
    lines = {line.split("  ")[1]: line for line in report.as_text().splitlines() if line.startswith("  ")}
    assert "*" not in lines["PSNR"] and "*" not in lines["shift 1 px"]
    check(page(report))


def test_same_report_same_page() -> None:
    assert page(example_report("a", "b")) == page(example_report("a", "b"))


def test_table_is_aligned_and_marks_the_best_where_one_is_better() -> None:
    better = good_fitness(reconstruction=replace(good_fitness().reconstruction, psnr=25.0))
    lines = text_table([good_fitness(), better], ["a", "b"]).splitlines()
    psnr = next(line for line in lines if line.startswith("  PSNR "))
    assert re.fullmatch(r"  PSNR +23\.00 dB +25\.00 dB \*", psnr)
    vocabulary = next(line for line in lines if line.startswith("  vocabulary"))
    assert "*" not in vocabulary
    assert "*" not in text_table([better], ["b"])
    values = [line for line in text_table([better], ["b"]).splitlines() if line.startswith("  ")]
    assert len({len(line) for line in values}) == 1


def test_equal_values_have_no_best() -> None:
    assert all(not row.best([good_fitness("a"), good_fitness("b")]) for row in ROWS)


def test_rows_without_a_number_show_a_dash() -> None:
    lines = text_table([good_fitness(), good_fitness(reconstruction=None)], ["a", "b"]).splitlines()
    psnr = next(line for line in lines if line.startswith("  PSNR "))
    assert psnr.endswith(" -") and "*" not in psnr


def test_even_curve_is_flat_on_average_and_falls() -> None:
    for tokens_per_word in (0.5, 3.0, 50.0, 1e6):
        curve = even_curve(tokens_per_word)
        assert len(curve) == CURVE_POINTS and curve == sorted(curve, reverse=True)
        assert abs(float(np.mean(curve)) - 1.0) < 0.02
    assert even_curve(0.5)[-1] == 0.0  # six words in ten do not occur at all


def test_small_differences_do_not_fill_the_colours_of_the_map() -> None:
    assert map_range([[[5.0, 5.1]]]) == (pytest.approx(4.1), 5.1)
    assert map_range([[[1.0, 2.0]], [[0.0, 5.0]]]) == (0.0, 5.0)
    pixels = map_pixels([[0.0, 5.0]], 0.0, 5.0)
    assert pixels.shape == (1, 2, 3) and pixels[0, 0].sum() < pixels[0, 1].sum()
