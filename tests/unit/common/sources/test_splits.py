import logging
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.sources.opening import open_source
from beit.common.sources.splits import (
    container_parts,
    refuse_splits_as_classes,
    warn_of_split_containers,
    warn_of_split_folders,
    warn_of_split_rows,
)
from beit.common.sources.types import Source

CLASSES = ("cat", "dog")


def tree(*folders: str, classes: tuple[str, ...] = CLASSES) -> list[str]:
    return [f"{folder}/{name}/1.jpg" if folder else f"{name}/1.jpg" for folder in folders for name in classes]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (tree("train", "valid", "test"), ("/d/test and /d/valid", "such as /d/train")),
        (tree("Training", "TEST"), ("/d/TEST", "such as /d/Training")),
        (tree("x/train2017", "x/val2017"), ("/d/x/val2017", "such as /d/x/train2017")),
        (["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/1.jpg"], ("/d/cat/test", "/d/cat/train")),
        (["images/training/1.jpg", "images/validation/1.jpg"], ("/d/images/validation",)),
        (["train/1.jpg", "test/1.jpg"], ("/d/test",)),
        (["val/1.jpg", "testing/1.jpg"], ("/d/testing", "such as /d/val")),
        (["trainA/1.jpg", "testA/1.jpg", "unlabeled/1.jpg"], ("the images of /d/testA are used", "such as /d/trainA")),
    ],
)
def test_folders_of_several_splits_are_pointed_out(
    paths: list[str], words: tuple[str, ...], said: pytest.LogCaptureFixture
) -> None:
    warn_of_split_folders("/d", paths)
    assert len(said.messages) == 1 and "mixes the splits" in said.text
    assert all(word in said.text for word in words)


@pytest.mark.parametrize(
    "paths",
    [
        tree("train"),
        tree("", classes=("train", "bus", "ship")),
        tree("", classes=("test tube", "train")),
        ["test_1.jpg", "train_1.jpg"],
        tree("val", "valid"),
        tree("train", "unlabelled"),
        tree("", classes=("bullet train", "pregnancy test")),
    ],
)
def test_one_split_or_a_class_of_such_a_name_is_not(paths: list[str], said: pytest.LogCaptureFixture) -> None:
    warn_of_split_folders("/d", paths)
    assert not said.messages


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["train-000.tar", "train-001.tar", "test-000.tar"], ("'/d/train*.tar'",)),
        (["train/000.tar", "val/000.tar"], ("'/d/train'",)),
        (["imagenet-train-000.tar", "imagenet-validation-000.tar"], ("'/d/imagenet-train*.tar'",)),
        (["eval-0.tar", "TrainSet-0.tar"], ("'/d/Train*.tar'",)),
        (["seg_train/0.tar", "seg_test/0.tar"], ("'/d/seg_train'",)),
        (["data/Train.00.parquet", "data/Dev.00.parquet"], ("'/d/data/Train*.parquet'",)),
    ],
)
def test_containers_of_several_splits_are_pointed_out(
    paths: list[str], words: tuple[str, ...], said: pytest.LogCaptureFixture
) -> None:
    warn_of_split_containers("/d", paths)
    assert len(said.messages) == 1 and "mixes the splits" in said.text
    assert all(word in said.text for word in words)


@pytest.mark.parametrize("paths", [["train-0.tar", "train-1.tar"], ["0.tar"], ["train-test-split-0.tar", "a.tar"], []])
def test_containers_of_one_split_are_not(paths: list[str], said: pytest.LogCaptureFixture) -> None:
    warn_of_split_containers("/d", paths)
    assert not said.messages


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (tree("train", "valid", "test"), ("/d/train to train on", "/d/valid to measure on (--val)", "/d/test")),
        (tree("TRAIN", "Validation"), ("/d/TRAIN", "/d/Validation")),
        (tree("train"), ("the split train only", "give /d/train")),
        (tree("pets/train", "pets/val"), ("/d/pets/train", "/d/pets/val")),
        ([*tree("train"), "test/1.jpg"], ("/d/train",)),
        ([*tree("train", "test"), "unlabelled/1.jpg"], ("/d/train",)),
        (tree("test", "testing"), ("/d/test",)),
        (tree("trainval", "test"), ("/d/trainval to train on", "/d/test")),
        (tree("train", "eval"), ("/d/eval to measure on",)),
        (tree("Trainset", "TestData"), ("/d/Trainset", "/d/TestData")),
        (tree("train", "unlabeled"), ("/d/train", "/d/unlabeled to pre-train on")),
        (["seg_train/seg_train/a/1.jpg", "seg_test/seg_test/a/1.jpg"], ("/d/seg_train to train on", "/d/seg_test")),
        (tree("Training", "PublicTest"), ("/d/Training", "/d/PublicTest")),
    ],
)
def test_splits_are_refused_as_classes(paths: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        refuse_splits_as_classes("/d", paths)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "paths",
    [
        tree(""),
        tree("", classes=("train", "test")),
        tree("", classes=("train", "bus")),
        [*tree("bus", "car", classes=("red", "blue")), *tree("train", classes=("red", "blue"))],
        tree("animals"),
    ],
)
def test_classes_of_such_names_are_not_refused(paths: list[str]) -> None:
    refuse_splits_as_classes("/d", paths)


@pytest.mark.parametrize(
    ("values", "is_said"),
    [(("train", "test", "train"), True), (("TRAIN", " val ", ""), True), (("train", "unlabelled"), False),
     (("train", "bus", "test"), False), (("train", "seg_test"), False), (("train",), False), ((), False)],
)  # fmt: skip
def test_a_column_of_splits_is_pointed_out(
    values: tuple[str, ...], is_said: bool, said: pytest.LogCaptureFixture
) -> None:
    warn_of_split_rows("/d/x.csv", "split", values)
    assert ("/d/x.csv mixes the splits" in said.text) == is_said == ("in its column split" in said.text)


def test_only_who_wants_classes_is_refused(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    for path in tree("train", "test"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert isinstance(open_source(tmp_path), Source)
    assert "mixes the splits" in said.text
    with pytest.raises(InputError, match="the classes are below them"):
        open_source(tmp_path, for_classes=True)
    assert open_source(tmp_path / "train", for_classes=True).class_names == CLASSES


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train-0.tar", "train-1.tar", "val-0.tar"], {"train": "train*.tar", "validation": "val*.tar"}),
        (["a/train/0.tar", "a/test/0.tar"], {"train": "a/train", "test": "a/test"}),
        (["d/train-0.parquet", "d/dev-0.parquet"], {"train": "d/train*.parquet", "validation": "d/dev*.parquet"}),
        (["train-0.tar", "train-1.tar"], {}),
        (["train-0.tar", "val-0.tar", "x.tar"], {}),
        (["0.tar", "1.tar"], {}),
    ],
)
def test_containers_of_parts_are_told_apart(paths, expected):
    assert container_parts(paths) == expected
