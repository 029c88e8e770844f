import copy
import json
from pathlib import Path

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.tests.support import VOCAB_SIZE, write_images, write_tokenizer
from beit.tokenize.fitness.report import FitnessReport, ReportSettings
from beit.tokenize.fitness.run import choose_view_sizes, report_tokenizers, short_labels
from beit.tokenize.fitness.sheet import GROUPS, choose

SETTINGS = ReportSettings(num_images=10, view_size=32, seed=0)


@pytest.fixture(autouse=True)
def no_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are not looked at, so they need not be taken nine times."""
    monkeypatch.setattr("beit.tokenize.fitness.measure._MIN_REPEATS", 1)
    monkeypatch.setattr("beit.tokenize.fitness.measure._MAX_REPEATS", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fitness")
    write_images(root / "images", 12, size=40)
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BEIT_CACHE", str(place / "cache"))

    def run(*names: str, settings: ReportSettings = SETTINGS, **files: Path) -> FitnessReport:
        paths = [str(place / name) if name == "tokenizer" else name for name in names]
        return report_tokenizers(paths, str(place / "images"), settings, **files)

    return run


def without_speed(document: dict) -> dict:
    document = copy.deepcopy(document)
    for tokenizer in document["tokenizers"]:
        del tokenizer["speed"]
    return document


def test_report_is_written_as_documented(run, tmp_path: Path) -> None:
    report = run("tokenizer", out=tmp_path / "r.json", html=tmp_path / "r.html")
    document = json.loads((tmp_path / "r.json").read_text())
    assert document == json.loads(json.dumps(report.as_json()))
    assert set(document) == {"format", "format_version", "beit_version", "settings", "images", "tokenizers"}
    assert (document["format"], document["format_version"]) == ("beit-tokenizer-report", 1)
    assert document["settings"] == {"num_images": 10, "view_size": 32, "seed": 0}
    assert set(document["images"]) == {"source", "in_source", "drawn", "measured", "unusable", "verdict"}
    assert document["images"]["unusable"] == {"count": 0, "by_reason": {}, "first": []}
    (one,) = document["tokenizers"]
    assert set(one) == {
        *("tokenizer", "num_views", "view_size", "grid_size", "bits_per_pixel", "tokens", "agreement"),
        *("num_labelled", "classes", "reconstruction", "stability", "speed", "verdicts"),
    }
    assert set(one["tokens"]) == {"words", "positions", "neighbours", "context"}
    assert set(one["verdicts"][0]) == {"key", "title", "level", "text", "advice", "rule"}
    assert set(one["agreement"]) == {
        *("num_views", "shift_px", "chance", "equal_shares", "above_chance", "kept_bits"),
    }
    assert one["agreement"]["num_views"] == 10 and one["num_labelled"] == 0 and one["classes"] is None
    assert (
        one["tokenizer"]["vocab_size"] == VOCAB_SIZE
        and one["grid_size"] == 4
        and one["view_size"] == 32
        and one["num_views"] == 10
    )
    assert one["tokens"]["words"]["num_tokens"] == 160
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]


def test_same_seed_same_report_apart_from_speed(run) -> None:
    first, second = run("tokenizer"), run("tokenizer")
    assert without_speed(first.as_json()) == without_speed(second.as_json())
    assert [row.name for row in first.sheet] == [row.name for row in second.sheet]
    other = run("tokenizer", settings=ReportSettings(num_images=10, view_size=32, seed=1))
    assert without_speed(first.as_json()) != without_speed(other.as_json())


def test_compared_tokenizers_get_the_numbers_of_their_own_reports(run) -> None:
    both = without_speed(run("tokenizer", "mini").as_json())["tokenizers"]
    alone = [without_speed(run(name).as_json())["tokenizers"][0] for name in ("tokenizer", "mini")]
    assert both == alone


def test_text_has_the_numbers_and_the_verdicts(run) -> None:
    report = run("tokenizer", "mini")
    text = report.as_text()
    assert all(len(line) <= 110 for line in text.splitlines())
    assert "words used" in text and "mini: " in text and "->" in text


def test_sheet_shows_every_view_once(run) -> None:
    sheet = run("tokenizer", "mini").sheet
    assert [row.group for row in sheet] == [group for group in GROUPS for _ in range(3)]
    assert len({row.name for row in sheet}) == 9
    assert all(row.original.shape == (32, 32, 3) and len(row.pictures) == 2 for row in sheet)
    means = [np.mean([picture.psnr for picture in row.pictures]) for row in sheet]
    assert means[0] == max(means) and means[6] == min(means)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 100])
def test_chosen_views_are_different_and_ordered(count: int) -> None:
    psnr = np.random.default_rng(count).random(count)
    chosen = choose(psnr)
    places = [place for group in GROUPS for place in chosen[group]]
    assert len(set(places)) == len(places) and places
    assert chosen[GROUPS[0]][0] == psnr.argmax()


def test_a_source_smaller_than_asked_for_is_measured_whole(run) -> None:
    report = run("tokenizer", settings=ReportSettings(num_images=5000, view_size=32))
    assert (report.num_drawn, report.num_measured, report.num_in_source) == (12, 12, 12)


@pytest.mark.parametrize("size", [30, 24, 0, -32])
def test_view_size_must_divide_and_an_allowed_one_is_named(run, size: int) -> None:
    with pytest.raises(InputError, match=rf"--view-size \({size}\).*--view-size 32 suits"):
        run("tokenizer", settings=ReportSettings(num_images=4, view_size=size))


class Fixed:
    """A tokenizer with positions: takes views of one side."""

    def __init__(self, name: str, downsampling: int, img_size: int | None) -> None:
        self.name, self.downsampling, self.img_size = name, downsampling, img_size


A, B, FREE, COARSE = Fixed("a", 16, 224), Fixed("b", 4, 32), Fixed("free", 8, None), Fixed("coarse", 16, None)


@pytest.mark.parametrize(
    ("tokenizers", "view_size", "sizes"),
    [
        ([A], None, [224]),
        ([A], 224, [224]),
        ([B, FREE], None, [32, 64]),
        ([FREE, A, COARSE], None, [112, 224, 224]),
        ([A, FREE], 224, [224, 224]),
        ([FREE, COARSE], None, [112, 112]),
        ([FREE], 32, [32]),
        ([Fixed("odd", 5, None), FREE], None, [120, 120]),
    ],
)
def test_every_tokenizer_sees_views_of_the_side_it_needs(tokenizers, view_size, sizes) -> None:
    assert choose_view_sizes(tokenizers, view_size) == sizes


@pytest.mark.parametrize(
    ("tokenizers", "view_size", "message"),
    [
        ([A, FREE], 112, r"--view-size \(112\) is not 224, the one side that a takes; leave --view-size out"),
        ([A, B], None, r"b is made for 8 x 8 words of 32 px and a for 14 x 14 of 224 px.*beit tokenizer report b"),
        ([Fixed("big", 16, 32)], None, r"views of 32 px, 2 x 2 words, are all that big allows.* 4 x 4 words"),
        ([Fixed("pixel", 1, 8)], None, r"views of 8 px.*16 px at least"),
    ],
)
def test_views_that_do_not_suit_are_one_line_with_the_way_out(tokenizers, view_size, message) -> None:
    with pytest.raises(InputError, match=message):
        choose_view_sizes(tokenizers, view_size)


def test_labelled_images_show_what_words_say_about_classes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(place / "cache"))
    for number in range(2):
        write_images(place / "classes" / f"class{number}", 24, size=40)
    settings = ReportSettings(num_images=48, view_size=32)
    (found,) = report_tokenizers([str(place / "tokenizer")], str(place / "classes"), settings).fitness
    assert found.num_labelled == 48 and found.classes.num_images == 48 and found.classes.num_classes == 2
    assert found.classes.commonest_share == 0.5


def test_nothing_is_measured_when_a_file_cannot_be_written(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("beit.tokenize.fitness.run.load_tokenizer", lambda *args, **kwargs: pytest.fail("too late"))
    for files, message in (
        ({"out": tmp_path}, "is a folder"),
        ({"html": tmp_path / "missing" / "r.html"}, "--html .*does not exist"),
        ({"out": tmp_path / "r", "html": tmp_path / "r"}, "same file"),
    ):
        with pytest.raises(InputError, match=message):
            run("tokenizer", **files)


def test_labels_are_short_where_that_is_enough() -> None:
    assert short_labels(["mini", "runs/a/tokenizer"]) == ["mini", "tokenizer"]
    assert short_labels(["a/tok", "b/tok"]) == ["a/tok", "b/tok"]
