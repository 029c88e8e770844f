"""What `beit demo` decides itself; the commands it runs are tested where they are."""

import csv
import json
import signal

import pytest
from click.testing import CliRunner

from beit import demo
from beit.common.errors import EXIT_RESUMABLE, InputError, ResumableStop, RunFailed
from beit.tests.support import write_images


def rows_of(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_labelled_images_are_divided_once_and_by_class(tmp_path):
    write_images(tmp_path / "mine", 40, size=16, classes=("a", "b"))
    found = demo.split_labelled(str(tmp_path / "mine"), tmp_path / "out", seed=0)
    train, test = rows_of(found.train), rows_of(found.test)
    assert (found.num_train, found.num_test, found.num_classes) == (12, 28, 2) == (len(train), len(test), 2)
    assert [sum(row["label"] == name for row in train) for name in ("a", "b")] == [6, 6]  # a third of 20
    assert not {row["path"] for row in train} & {row["path"] for row in test}
    before = found.train.read_bytes()
    demo.split_labelled(str(tmp_path / "mine"), tmp_path / "out", seed=0)
    assert found.train.read_bytes() == before
    demo.split_labelled(str(tmp_path / "mine"), tmp_path / "out", seed=1)
    assert found.train.read_bytes() != before


@pytest.mark.parametrize(
    ("classes", "count", "message"),
    [
        (("a",), 6, "1 classes"),
        (("a", "b"), 4, "class a has 2 images"),
        (None, 4, "one sub-folder of images per class"),
    ],
)
def test_labelled_images_that_cannot_be_compared_on_are_refused(tmp_path, classes, count, message):
    write_images(tmp_path / "mine", count, size=16, **({} if classes is None else {"classes": classes}))
    with pytest.raises(InputError, match=message):
        demo.split_labelled(str(tmp_path / "mine"), tmp_path / "out", seed=0)


def test_a_folder_is_taken_again_for_the_same_demo_only(tmp_path):
    asked = {"seed": 0, "data": None, "labelled": None}
    demo.refuse_other_use(tmp_path / "d", asked)
    demo.claim(tmp_path / "d", asked)
    demo.refuse_other_use(tmp_path / "d", asked)
    for other, message in (({"seed": 1}, "--seed 0, not --seed 1"), ({"data": "x"}, "no --data, not --data x")):
        with pytest.raises(InputError, match=message):
            demo.refuse_other_use(tmp_path / "d", asked | other)
    (tmp_path / "d/demo.json").write_text('{"seed": 0}\n')  # as earlier versions wrote it
    demo.refuse_other_use(tmp_path / "d", asked)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InputError, match="was not made by beit demo"):
        demo.refuse_other_use(tmp_path / "other", asked)


def test_one_place_may_be_written_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {"seed": 0, "labelled": None}
    demo.claim(tmp_path / "d", asked | {"data": "photos/"})
    for same in ("photos", "./photos", str(tmp_path / "photos")):
        demo.refuse_other_use(tmp_path / "d", asked | {"data": same})
    with pytest.raises(InputError, match="--data photos/, not --data other"):
        demo.refuse_other_use(tmp_path / "d", asked | {"data": "other"})


def test_images_that_are_refused_leave_the_folder_free(tmp_path):
    write_images(tmp_path / "few", 4, size=16)
    with pytest.raises(InputError, match="4 images; the demo needs at least 5"):
        CliRunner().invoke(
            demo.demo_command, [str(tmp_path / "d"), "--data", str(tmp_path / "few")], catch_exceptions=False
        )
    with pytest.raises(InputError, match="mistyped"):
        CliRunner().invoke(
            demo.demo_command, [str(tmp_path / "d"), "--data", str(tmp_path / "mistyped")], catch_exceptions=False
        )
    assert not (tmp_path / "d").exists()


def test_a_demo_inside_the_images_is_refused(tmp_path, monkeypatch):
    write_images(tmp_path / "mine", 4, size=16)
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(InputError, match="must not lie inside --data"):
        CliRunner().invoke(demo.demo_command, ["--data", "."], catch_exceptions=False)
    assert not (tmp_path / "mine/demo").exists()


def test_the_table_has_an_interval(tmp_path):
    labels = demo.Labels(train=tmp_path, test=tmp_path, num_train=100, num_test=1000, num_classes=10)
    ours, random = dict.fromkeys(demo.MEASURES, 0.5), dict.fromkeys(demo.MEASURES, 0.2)
    shown = demo.table(labels, {"pretrained": ours, "random": random})
    assert "100 labelled images, 10 classes (chance 10.0 %), on 1000 others" in shown
    # 1.96 sqrt(0.25 / 1000 + 0.16 / 1000)
    assert [line.split() for line in shown.splitlines() if line.startswith("k-NN")] == [
        ["k-NN", "50.0", "%", "20.0", "%", "+30.0", "±", "4.0"]
    ]


@pytest.mark.parametrize(("count", "views"), [(5, 32), (1000, 10), (100_000, 4)])
def test_few_images_get_more_views(tmp_path, monkeypatch, capsys, count, views):
    class Opened:
        kind, class_names = "parquet", None

    monkeypatch.setattr("beit.common.sources.opening.open_source", lambda *_: Opened())
    monkeypatch.setattr("beit.common.sources.opening.list_samples", lambda _: [[None] * count])
    assert demo.own_images(tmp_path, "mine", None, 0) == ("mine", None, views)
    said = capsys.readouterr().out
    assert f"{count} images, {views} views of each" in said and "Without labels nothing is compared" in said


@pytest.mark.parametrize("words", [[], ["--data", "mine"], ["--data", "mine", "--labelled", "labelled"]])
def test_the_commands_of_each_demo(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "mine", 5, size=16)
    write_images(tmp_path / "labelled", 12, size=16, classes=("a", "b"))
    for name, number in {"UNLABELLED": 3, "LABELLED": 3, "TEST": 3}.items():
        monkeypatch.setattr(demo, name, number)
    ran = []
    monkeypatch.setattr(demo, "_beit", lambda *given: ran.append([str(word) for word in given]))
    monkeypatch.setattr(demo, "scores", lambda *_: dict.fromkeys(demo.MEASURES, 0.5))
    result = CliRunner().invoke(demo.demo_command, ["d", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    compared = words == [] or "--labelled" in words
    measured = [["finetune", task] for task in demo.MEASURES] * 2 if compared else []
    assert [line[:1] if line[0] in ("tokenize", "pretrain") else line[:2] for line in ran] == [
        ["tokenize"],
        ["pretrain"],
        *measured,
        ["show", "reconstruction"],
        ["show", "neighbours"],
    ]
    assert ("chance" in result.output) == compared and "is finished" not in result.output
    for name in ("reconstruction", "neighbours"):
        (tmp_path / f"d/{name}.png").touch()
    again = CliRunner().invoke(demo.demo_command, ["d", *words], catch_exceptions=False)
    assert again.output.startswith("the demo in d is finished")
    assert json.loads((tmp_path / "d/demo.json").read_text())["data"] == (None if not words else "mine")


def test_sub_folders_of_ones_own_images_are_classes(tmp_path, capsys):
    write_images(tmp_path / "mine", 12, size=16, classes=("a", "b"))
    _, labels, _ = demo.own_images(tmp_path / "d", str(tmp_path / "mine"), None, 0)
    assert labels.num_classes == 2
    assert "sub-folders are taken as classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "classes", [tuple(f"2021-{month}" for month in range(10)), ("train/a", "train/b", "test/a", "test/b")]
)
def test_sub_folders_that_cannot_be_classes_are_not_compared_on(tmp_path, capsys, classes):
    write_images(tmp_path / "mine", 12, size=16, classes=classes)
    assert demo.own_images(tmp_path / "d", str(tmp_path / "mine"), None, 0)[1] is None
    said = capsys.readouterr().out
    assert "sub-folders are not taken as classes" in said and "Without labels nothing is compared" in said


@pytest.mark.parametrize(
    ("signum", "ends_with", "error"),
    [(signal.SIGTERM, EXIT_RESUMABLE, ResumableStop), (signal.SIGINT, 0, ResumableStop), (None, -9, RunFailed)],
)
def test_a_signal_is_passed_on_and_its_effect_waited_for(tmp_path, monkeypatch, capsys, signum, ends_with, error):
    heard = []

    class Process:
        def __init__(self, *_, **options):
            assert options["start_new_session"]  # else Ctrl-C in a terminal would reach it twice

        def send_signal(self, given):
            heard.append(given)

        def wait(self):
            if signum is not None:
                signal.raise_signal(signum)
            return ends_with

    monkeypatch.setattr(demo.subprocess, "Popen", Process)
    with pytest.raises(error, match="the same demo command goes on"):
        demo._beit("tokenize", "photos")
    assert heard == ([] if signum is None else [signum])


def test_labels_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs --data"):
        CliRunner().invoke(demo.demo_command, [str(tmp_path / "d"), "--labelled", "x"], catch_exceptions=False)
    assert not (tmp_path / "d").exists()
