"""Which images a run uses, and every way they can be wrong."""

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.sources.class_names import read_class_names
from beit.finetune.config import DataConfig
from beit.finetune.data import label_table, open_evaluation_data, open_training_data
from beit.tests.image_files import write_folder, write_parquet, write_tar


def test_classes_are_the_sub_folders(tmp_path):
    data = open_training_data(str(write_folder(tmp_path / "d", {"cat": 3, "ant": 2})), DataConfig())
    assert data.class_names == ("ant", "cat")
    assert data.val is None
    assert np.bincount(data.train.labels).tolist() == [2, 3]


def test_numbers_name_the_classes_of_data_without_names(tmp_path):
    data = open_training_data(str(write_tar(tmp_path / "a.tar", [0, 2, 2, 1])), DataConfig())
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("settings", [DataConfig(num_labels=8), DataConfig(label_fraction=0.2)])
def test_subset_keeps_the_class_proportions_and_is_the_same_every_time(tmp_path, settings):
    folder = str(write_folder(tmp_path / "d", {"a": 20, "b": 20}))
    first, second = (open_training_data(folder, settings).train for _ in range(2))
    assert np.bincount(first.labels).tolist() == [4, 4]
    assert [first.ref_at(place).path for place in range(8)] == [second.ref_at(place).path for place in range(8)]


def test_subset_has_every_class(tmp_path):
    folder = str(write_folder(tmp_path / "d", {"a": 90, "b": 2}))
    assert np.bincount(open_training_data(folder, DataConfig(label_fraction=0.01)).train.labels).tolist() == [1, 1]


def test_another_subset_seed_keeps_other_images(tmp_path):
    folder = str(write_folder(tmp_path / "d", {"a": 40, "b": 40}))
    chosen = [
        {index.ref_at(place).path for place in range(10)}
        for index in (
            open_training_data(folder, DataConfig(num_labels=10, subset_seed=seed)).train for seed in range(2)
        )
    ]
    assert chosen[0] != chosen[1]


def test_some_of_the_validation_images_are_the_same_every_time(tmp_path):
    folder = str(write_folder(tmp_path / "d", {"a": 20, "b": 20}))
    first, second = (open_training_data(folder, DataConfig(val=folder, num_val_images=8)).val for _ in range(2))
    assert np.bincount(first.labels).tolist() == [4, 4]
    assert [first.ref_at(place).path for place in range(8)] == [second.ref_at(place).path for place in range(8)]
    with pytest.raises(InputError, match=r"data.num_val_images \(41\) must not exceed the 40 images"):
        open_training_data(folder, DataConfig(val=folder, num_val_images=41))
    with pytest.raises(InputError, match="give --val"):
        open_training_data(folder, DataConfig(num_val_images=4))


def test_validation_classes_are_matched_by_name(tmp_path):
    train = write_folder(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2})
    val = write_folder(tmp_path / "val", {"cat": 1, "bee": 2})
    data = open_training_data(str(train), DataConfig(val=str(val)))
    assert data.val is not None
    assert sorted(data.val.labels.tolist()) == [1, 1, 2]


def make_one_class(path):
    write_folder(path, {"cat": 3})


def make_flat(path):
    write_folder(path.parent, {path.name: 3})


def make_notes(path):
    path.mkdir()
    (path / "notes.md").write_text("no images")


def make_half_labelled(path):
    path.mkdir()
    write_tar(path / "a.tar", [0, None, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is empty"),
        (make_notes, "holds no images"),
        (make_flat, "no labels found"),
        (make_one_class, r"one class only \(cat\)"),
        (make_half_labelled, "1 of 3 samples .* have no label"),
    ],
)
def test_unusable_data_is_one_clear_line(tmp_path, make, message):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=message) as caught:
        open_training_data(str(tmp_path / "data"), DataConfig())
    assert "\n" not in str(caught.value)


def test_validation_class_that_training_lacks_is_one_clear_line(tmp_path):
    train, val = write_folder(tmp_path / "t", {"a": 2, "b": 2}), write_folder(tmp_path / "v", {"a": 1, "dog": 1})
    with pytest.raises(InputError, match="dog"):
        open_training_data(str(train), DataConfig(val=str(val)))


def test_more_numbered_classes_than_the_model_has_is_one_clear_line(tmp_path):
    path = write_parquet(tmp_path / "v.parquet", [0, 1, 5], 10)
    with pytest.raises(InputError, match=r"classes that the model does not know \(5\)"):
        open_evaluation_data(str(path), ("0", "1"))


def test_numbers_of_either_side_are_named_by_a_file(tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"0": "dog", "1": "cat"}')
    folder, table = str(write_folder(tmp_path / "d", {"cat": 2, "dog": 1})), write_csv(tmp_path / "t.csv", [1, 0, 1])
    with pytest.raises(InputError, match=r"t.csv are numbers \(0, 1\), the model's are names \(cat, dog\)"):
        open_training_data(folder, DataConfig(val=str(table)))
    with pytest.raises(InputError, match=r"d are names \(cat, dog\), the model's are numbers \(0, 1\)"):
        open_training_data(str(table), DataConfig(val=folder))
    data = open_training_data(folder, DataConfig(val=str(table), class_names=str(names)))
    assert [data.class_names[label] for label in data.val.labels] == ["cat", "dog", "cat"]
    data = open_training_data(str(table), DataConfig(val=folder, class_names=str(names)))
    assert data.class_names == ("dog", "cat")
    assert [data.class_names[label] for label in data.val.labels] == ["cat", "cat", "dog"]


def test_numbers_of_several_classes_are_named_by_a_file(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n")
    train, val = write_csv(tmp_path / "t.csv", ["0|2", "1", ""]), write_csv(tmp_path / "v.csv", ["cat|bee", "ant"])
    with pytest.raises(InputError, match=r"v.csv are names \(ant, bee, cat\), the model's are numbers \(0, 1, 2\)"):
        open_training_data(str(train), DataConfig(val=str(val)), multi_label=True)
    data = open_training_data(str(train), DataConfig(val=str(val), class_names=str(names)), multi_label=True)
    assert data.class_names == ("ant", "bee", "cat")
    assert targets(data, data.train) == {"t/0.png": {"ant", "cat"}, "t/1.png": {"bee"}, "t/2.png": set()}
    assert targets(data, data.val) == {"v/0.png": {"bee", "cat"}, "v/1.png": {"ant"}}
    numbers = read_class_names(str(names))
    index = open_evaluation_data(str(val), ("0", "1", "2"), multi_label=True, numbers=numbers)
    table = label_table(index, ("0", "1", "2"), numbers=numbers)
    assert [np.flatnonzero(table[label]).tolist() for label in index.labels] == [[1, 2], [0]]


def test_several_numbers_per_image(tmp_path):
    data = open_training_data(str(write_csv(tmp_path / "t.csv", ["17|3", "1203", ""])), DataConfig(), multi_label=True)
    assert sorted(data.class_names) == ["1203", "17", "3"]
    data = open_training_data(str(write_csv(tmp_path / "u.csv", [17, 1203, ""])), DataConfig(), multi_label=True)
    assert sorted(data.class_names) == ["1203", "17"]
    with pytest.raises(InputError, match="which are one number"):
        open_training_data(str(write_csv(tmp_path / "w.csv", ["1|2", "01"])), DataConfig(), multi_label=True)


def test_tables_of_one_folder_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path, {"cat": 1, "dog": 1}))
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\n")
    data = open_training_data("a.csv", DataConfig(val=str(tmp_path / "b.csv")))
    assert (data.train.location, data.val.location) == (f"{tmp_path}/a.csv", f"{tmp_path}/b.csv")
    assert open_training_data(".", DataConfig()).train.location == str(tmp_path)


def test_a_column_of_classes_is_chosen_for_training_and_validation(tmp_path, caplog):
    for name in ("t", "v"):
        write_folder(tmp_path, {name: 2})
        (tmp_path / f"{name}.csv").write_text(f"path,kind,label\n{name}/0.png,pug,dog\n{name}/1.png,tabby,cat\n")
    settings = DataConfig(val=str(tmp_path / "v.csv"), label_column="kind")
    data = open_training_data(str(tmp_path / "t.csv"), settings)
    assert data.class_names == ("pug", "tabby") and data.val.labels.tolist() == [0, 1]
    open_training_data(str(write_folder(tmp_path / "d", {"a": 1, "b": 1})), DataConfig(label_column="kind"))
    assert "d is neither Parquet nor CSV, so it has no column kind" in caplog.text


def test_validation_images_that_are_trained_on_are_told(tmp_path, caplog):
    train = write_folder(tmp_path / "d", {"a": 3, "b": 3})
    open_training_data(str(train), DataConfig(val=str(train)))
    assert f"{train} holds the same images as {train}" in caplog.text


@pytest.mark.parametrize("num_labels", [1, 9])
def test_subset_outside_the_data_is_one_clear_line(tmp_path, num_labels):
    folder = str(write_folder(tmp_path / "d", {"a": 4, "b": 4}))
    with pytest.raises(InputError, match=rf"num_labels \({num_labels}\) must be between"):
        open_training_data(folder, DataConfig(num_labels=num_labels))


def write_csv(path, labels):
    write_folder(path.parent, {path.stem: len(labels)})
    rows = [f"{path.stem}/{number}.png,{label}\n" for number, label in enumerate(labels)]
    path.write_text("path,label\n" + "".join(rows))
    return path


def targets(data, index):
    return {
        index.ref_at(place).path: {data.class_names[c] for c in np.flatnonzero(data.label_table(index)[label])}
        for place, label in enumerate(index.labels)
    }


def test_several_labels_per_image_are_joined_by_a_bar(tmp_path):
    train = write_csv(tmp_path / "t.csv", ["cat|dog", "dog", "", "ant | cat"])
    val = write_csv(tmp_path / "v.csv", ["dog|ant", "cat"])
    data = open_training_data(str(train), DataConfig(val=str(val)), multi_label=True)
    assert data.class_names == ("ant", "cat", "dog")
    found = targets(data, data.train)
    assert [found[f"t/{number}.png"] for number in range(4)] == [{"cat", "dog"}, {"dog"}, set(), {"ant", "cat"}]
    found = targets(data, data.val)
    assert [found[f"v/{number}.png"] for number in range(2)] == [{"ant", "dog"}, {"cat"}]


def test_lists_joined_by_something_else_are_told(tmp_path, caplog):
    for name, labels, is_told in (("a", ["cat,dog", "cat"], True), ("b", ["cat, big|dog", "cat"], False)):
        open_training_data(str(write_parquet(tmp_path / f"{name}.parquet", labels, 2)), DataConfig(), multi_label=True)
        assert ("'cat,dog' is taken as the name of one; classes are joined by |" in caplog.text) == is_told
        caplog.clear()


def test_multi_label_validation_with_classes_of_its_own_is_one_clear_line(tmp_path):
    train, val = write_csv(tmp_path / "t.csv", ["cat|dog", "dog"]), write_csv(tmp_path / "v.csv", ["dog|emu"])
    with pytest.raises(InputError, match=r"does not know \(emu\)"):
        open_training_data(str(train), DataConfig(val=str(val)), multi_label=True)


def test_multi_label_data_without_any_label_is_one_clear_line(tmp_path):
    path = write_csv(tmp_path / "t.csv", ["", ""])
    with pytest.raises(InputError, match=r"no labels found in \S*t\.csv;"):
        open_training_data(str(path), DataConfig(), multi_label=True)
