import json
import logging
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError
from beit.common.sources.class_names import ClassNames
from beit.common.sources.index import INDEX_FORMAT
from beit.common.sources.index_build import build_index
from beit.tests.image_files import png, write_folder, write_parquet, write_tar


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", {"cat": 6, "dog": 3, "eel": 3})


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def all_refs(index):
    return [index.ref_at(position) for position in range(len(index))]


def test_folder_labels_come_from_its_sub_folders(folder, cache):
    index = build_index(folder, cache)
    assert index.class_names == ["cat", "dog", "eel"]
    assert index.class_counts().tolist() == [6, 3, 3]
    assert [ref.path.split("/")[0] for ref in all_refs(index)] == [index.class_names[label] for label in index.labels]


def test_split_divides_the_samples_and_their_labels(folder, cache):
    index = build_index(folder, cache)
    is_chosen = np.arange(len(index)) % 3 == 0
    chosen, others = index.split(is_chosen, change="every third")
    keys = list(index.keys())
    assert keys == [ref.key for ref in all_refs(index)]
    assert list(chosen.keys()) == keys[::3] == [ref.key for ref in all_refs(chosen)]
    assert set(others.keys()) == set(keys) - set(chosen.keys())
    assert chosen.labels.tolist() == index.labels[is_chosen].tolist()
    assert len({index.index_sha256, chosen.index_sha256, others.index_sha256}) == 3
    assert list(pickle.loads(pickle.dumps(others)).keys()) == list(others.keys())
    assert len(others.split(np.ones(len(others), dtype=bool), change="all")[1]) == 0


def test_tar_labels_come_from_cls_members(tmp_path, cache):
    index = build_index(write_tar(tmp_path / "a.tar", [1, 0, 2]), cache)
    assert index.labels.tolist() == [1, 0, 2]
    assert index.num_classes == 3
    assert all(ref.offset > 0 and ref.length > 0 for ref in all_refs(index))


def test_parquet_shards_are_row_groups(tmp_path, cache):
    index = build_index(write_parquet(tmp_path / "a.parquet", [0, 1] * 5, 4), cache)
    assert index.shard_sizes.tolist() == [4, 4, 2]
    assert [ref.offset for ref in all_refs(index)] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert index.info.shard_bytes > 0


def test_csv_labels_come_from_its_column(folder, cache):
    table = folder / "few.csv"
    table.write_text("path,label\ncat/0.png,tabby\neel/2.png,moray\n")
    index = build_index(table, cache)
    assert index.class_names == ["moray", "tabby"]
    assert index.labels.tolist() == [1, 0]


def test_second_opening_reads_the_cache(folder, cache, monkeypatch):
    first = build_index(folder, cache)
    monkeypatch.setattr("beit.common.sources.index_build._write", None)
    again = build_index(folder, cache)
    assert all_refs(again) == all_refs(first)
    assert again.index_sha256 == first.index_sha256


def test_changed_data_are_listed_again(folder, cache):
    first = build_index(folder, cache)
    (folder / "dog" / "9.png").write_bytes(png(9))
    again = build_index(folder, cache)
    assert len(again) == len(first) + 1
    assert again.index_sha256 != first.index_sha256


def test_touched_data_are_listed_again_but_stay_the_same_data(folder, cache):
    first = build_index(folder, cache)
    os.utime(folder / "dog" / "0.png", ns=(1, 1))
    assert build_index(folder, cache).index_sha256 == first.index_sha256
    assert len(list((cache / "indexes" / f"v{INDEX_FORMAT.version}").iterdir())) == 2


def test_a_copy_elsewhere_is_the_same_data(folder, cache, tmp_path):
    first = build_index(folder, cache)
    moved = shutil.copytree(folder, tmp_path / "copy")
    assert build_index(moved, cache).index_sha256 == first.index_sha256


def test_relabelled_data_are_other_data(tmp_path, cache):
    names = [write_tar(tmp_path / "a.tar", [0, 1]), write_tar(tmp_path / "b.tar", [1, 0])]
    hashes = set()
    for name in names:
        shutil.copy(name, tmp_path / "same.tar")
        hashes.add(build_index(tmp_path / "same.tar", cache).index_sha256)
    assert len(hashes) == 2


def test_interrupted_listing_leaves_no_index(folder, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("beit.common.sources.index_build.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(folder, cache)
    assert len(build_index(folder, cache)) == 12


def test_cache_folder_follows_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "elsewhere"))
    build_index(folder)
    assert list((tmp_path / "elsewhere" / "indexes" / f"v{INDEX_FORMAT.version}").glob("*/index.json"))


def test_unusable_cache_folder_is_an_input_error(folder, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot keep an index in .*BEIT_CACHE"):
        build_index(folder, tmp_path / "file")


def test_processes_that_index_at_once_agree(folder, cache):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(build_index, [(folder, cache)] * 3)
    assert len({index.index_sha256 for index in found}) == 1


def test_shards_of_one_name_get_different_ids(tmp_path, cache):
    for part in ("one", "two"):
        (tmp_path / "tars" / part).mkdir(parents=True)
        write_tar(tmp_path / "tars" / part / "a.tar", [0, 1])
    index = build_index(tmp_path / "tars", cache)
    assert index.info.shard_names == ("000000-a", "000001-a")


def test_pickled_index_holds_no_table(folder, cache):
    index = build_index(folder, cache)
    assert index.labels.size
    data = pickle.dumps(index)
    assert len(data) < 2000
    assert all_refs(pickle.loads(data)) == all_refs(index)


def test_missing_labels_are_named(tmp_path, cache):
    unlabelled = build_index(write_tar(tmp_path / "a.tar", [None, None]), cache)
    assert not unlabelled.has_labels
    assert unlabelled.num_classes == 0
    with pytest.raises(InputError, match=r"no labels found in \S*a\.tar; .*sub-folder per class"):
        unlabelled.require_labels()
    partly = build_index(write_tar(tmp_path / "b.tar", [0, None, 1]), cache)
    with pytest.raises(InputError, match=r"1 of 3 samples in .* have no label \(first: 0001.png\)"):
        partly.require_labels()


def test_fully_labelled_data_pass(folder, cache):
    build_index(folder, cache).require_labels()


@pytest.mark.parametrize("options", [{"num_labels": 4}, {"fraction": 1 / 3}])
def test_subset_keeps_the_proportions(folder, cache, options):
    index = build_index(folder, cache)
    subset = index.subset(**options, seed=1)
    assert len(subset) == 4
    assert subset.class_counts().tolist() == [2, 1, 1]
    assert subset.class_names == index.class_names
    whole = all_refs(index)
    assert all(ref in whole for ref in all_refs(subset))


def test_subset_over_several_shards_finds_its_rows(tmp_path, cache):
    index = build_index(write_parquet(tmp_path / "a.parquet", [0, 1] * 10, 3), cache)
    subset = index.subset(num_labels=7)
    assert subset.shard_sizes.sum() == 7
    refs = [subset.ref(shard, rank) for shard, size in enumerate(subset.shard_sizes) for rank in range(size)]
    assert refs == all_refs(subset)
    assert [ref.label for ref in refs] == subset.labels.tolist()
    whole = [int(ref.path.removesuffix(".png")) for ref in all_refs(index)]
    assert [int(ref.path.removesuffix(".png")) for ref in refs] == [whole[row] for row in subset._rows]


def test_subset_is_part_of_the_identity(folder, cache):
    index = build_index(folder, cache)
    hashes = [
        index.index_sha256,
        *(index.subset(num_labels=count, seed=seed).index_sha256 for count, seed in ((4, 0), (4, 1), (5, 0))),
    ]
    assert len(set(hashes)) == 4
    assert index.subset(fraction=1 / 3, seed=1).index_sha256 == hashes[2]
    assert index.subset(num_labels=12).index_sha256 == index.index_sha256


def test_subset_of_a_subset(folder, cache):
    outer = build_index(folder, cache).subset(num_labels=8)
    inner = outer.subset(num_labels=4)
    assert inner.class_counts().tolist() == [2, 1, 1]
    assert all(ref in all_refs(outer) for ref in all_refs(inner))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "either num_labels"),
        ({"num_labels": 3, "fraction": 0.5}, "either num_labels"),
        ({"num_labels": 13}, r"num_labels \(13\) must be in \[1, 12\]"),
        ({"num_labels": 0}, r"num_labels \(0\)"),
        ({"fraction": 0.0}, r"fraction \(0.0\)"),
        ({"fraction": 1.5}, r"fraction \(1.5\)"),
    ],
)
def test_impossible_subsets_are_refused(folder, cache, options, match):
    with pytest.raises(InputError, match=match):
        build_index(folder, cache).subset(**options)


def test_class_ids_follow_the_names_of_the_model(tmp_path, cache):
    index = build_index(write_folder(tmp_path / "val", {"dog": 2, "eel": 1}), cache)
    mapped = index.with_class_names(["cat", "dog", "eel"])
    assert index.labels.tolist() == [0, 0, 1]
    assert mapped.labels.tolist() == [1, 1, 2]
    assert [ref.label for ref in all_refs(mapped)] == [1, 1, 2]
    assert mapped.class_counts().tolist() == [0, 2, 1]
    assert mapped.index_sha256 != index.index_sha256
    again = mapped.subset(num_labels=2).with_class_names(["eel", "dog"])
    assert again.labels.tolist() == [1, 0]
    assert mapped.with_class_names(["cat", "dog", "eel"]) is mapped


def test_unknown_classes_are_named(folder, cache):
    with pytest.raises(InputError, match=r"classes that the model does not know \(cat\)"):
        build_index(folder, cache).with_class_names(["dog", "eel"])


def test_numbers_and_names_match_only_by_a_file(tmp_path, cache):
    numbered = build_index(write_tar(tmp_path / "a.tar", [2, 0]), cache)
    with pytest.raises(
        InputError, match=r"a.tar are numbers \(0, 2\), the model's are names \(a, b, c\); .*class-names"
    ):
        numbered.with_class_names(["a", "b", "c"])
    named = build_index(write_folder(tmp_path / "d", {"ant": 2, "bee": 1}), cache)
    with pytest.raises(
        InputError, match=r"d are names \(ant, bee\), the model's are numbers \(0, 1, 2\); .*class_names"
    ):
        named.with_class_names(["0", "1", "2"])
    names = ClassNames("names.json", {2: "ant", 0: "bee"})
    assert numbered.with_numbers_named(names).with_class_names(["ant", "bee"]).labels.tolist() == [0, 1]
    assert named.with_class_names(["0", "1", "2"], numbers=names).labels.tolist() == [2, 2, 0]
    assert named.with_numbers_named(names) is named
    with pytest.raises(InputError, match=r"names.json has no name for 0, of the classes of .*a.tar"):
        numbered.with_numbers_named(ClassNames("names.json", {2: "ant"}))


def test_what_a_file_of_names_says_is_logged_and_part_of_the_identity(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO)
    index = build_index(write_tar(tmp_path / "a.tar", [2, 0]), cache)
    first, second = (
        index.with_numbers_named(ClassNames("n.txt", names)) for names in ({0: "ant", 2: "bee"}, {0: "bee", 2: "ant"})
    )
    assert "a.tar: by n.txt, 0 is ant, 2 is bee" in caplog.text
    assert len({index.index_sha256, first.index_sha256, second.index_sha256}) == 3
    assert (first.class_names, first.labels.tolist()) == (["ant", "bee"], [1, 0])


def test_old_models_that_counted_up_to_the_largest_number_know_their_data(tmp_path, cache):
    index = build_index(write_tar(tmp_path / "a.tar", [5, 3]), cache)
    known = index.with_class_names([str(number) for number in range(6)])
    assert known.labels.tolist() == [5, 3]
    assert [ref.label for ref in all_refs(known)] == [5, 3]


IDS = [4006381333938, 4006381333931, 10**30, -7, 4006381333931]


def in_csv(folder, labels):
    write_folder(folder, {"pics": len(labels)})
    rows = [f"pics/{number}.png,{label}\n" for number, label in enumerate(labels)]
    (folder / "x.csv").write_text("path,label\n" + "".join(rows))
    return folder / "x.csv"


def in_json(folder, labels):
    return write_tar(folder / "j.tar", [f'{{"label": {label}}}' for label in labels], suffix="json")


@pytest.mark.parametrize(
    ("write", "ids"),
    [
        (in_csv, IDS),
        (lambda folder, ids: write_tar(folder / "a.tar", ids), IDS),
        (in_json, IDS),
        (lambda folder, ids: write_parquet(folder / "a.parquet", ids, 2), [7, 4006381333931, -7, 4006381333938]),
        (lambda folder, ids: write_parquet(folder / "a.parquet", pa.array(ids, pa.uint64()), 2), [2**64 - 1, 2**63, 7]),
        (lambda folder, ids: write_parquet(folder / "a.parquet", [float(x) for x in ids], 2), [4006381333931, 17, 3]),
        (lambda folder, ids: write_tar(folder / "a.tar", ids), [1203, 17]),
    ],
)
def test_numbers_that_occur_are_the_classes(tmp_path, cache, write, ids):
    index = build_index(write(tmp_path, ids), cache)
    assert index.class_names == [str(number) for number in sorted(set(ids))]
    assert [int(index.class_names[label]) for label in index.labels] == ids
    assert [ref.label for ref in all_refs(index)] == index.labels.tolist()
    again = pickle.loads(pickle.dumps(index.subset(num_labels=len(set(ids)))))
    assert all(again.class_names[ref.label] in map(str, ids) for ref in all_refs(again))
    assert index.class_counts().sum() == len(ids)


def test_numbers_match_their_texts_in_another_container(tmp_path, cache):
    numbers = build_index(write_tar(tmp_path / "a.tar", [3, 11, 5]), cache)
    texts = build_index(write_parquet(tmp_path / "b.parquet", ["11", "3"], 2), cache)
    padded = build_index(in_csv(tmp_path / "c", ["03", "011"]), cache)
    halves = build_index(in_csv(tmp_path / "d", ["3.0", "11.0"]), cache)
    assert numbers.class_names == ["3", "5", "11"]
    assert texts.with_class_names(numbers.class_names).labels.tolist() == [2, 0]
    assert numbers.with_class_names(["11", "3", "5"]).labels.tolist() == [1, 0, 2]
    for index in (padded, halves):
        assert index.with_class_names(numbers.class_names).labels.tolist() == [0, 2]


def test_numbers_up_to_the_number_of_classes_are_the_data_they_were(tmp_path, cache):
    """The hash that commit 365d2fa gave them: runs of that time go on."""
    assert build_index(write_tar(tmp_path / "a.tar", [1, 0, 2]), cache).index_sha256.startswith("4f7af0ff72ab")
    assert build_index(in_csv(tmp_path / "c", [1, 0, 2]), cache).index_sha256.startswith("a15966d4083d")
    assert build_index(write_tar(tmp_path / "b.tar", [1, 0, 5]), cache).index_sha256[:12] != "8093e9bd7682"


@pytest.mark.parametrize(
    ("write", "labels"),
    [
        (in_csv, ["01", "1", "2"]),
        (in_csv, ["3.0", "3"]),
        (in_csv, ["+3", "3"]),
        (lambda folder, labels: write_tar(folder / "a.tar", labels), ["1", "01"]),
        (lambda folder, labels: write_tar(folder / "a.tar", labels), ["01", "1"]),
        (lambda folder, labels: write_parquet(folder / "a.parquet", labels, 2), ["01", "1"]),
        (lambda folder, labels: write_folder(folder / "d", {label: 1 for label in labels}), ["01", "1"]),
    ],
)
def test_two_spellings_of_one_number_are_refused(tmp_path, cache, write, labels):
    index = build_index(write(tmp_path, labels), cache)
    assert len(index.class_names) == len(labels)
    for use in (
        index.require_one_class_each,
        lambda: index.with_numbers_named(ClassNames("n", {1: "a", 2: "b", 3: "c"})),
    ):
        with pytest.raises(InputError, match="which are one number; write them alike"):
            use()


def test_images_of_several_classes_are_refused_where_one_is_wanted(tmp_path, cache):
    index = build_index(in_csv(tmp_path / "c", ["cat|dog", "cat"]), cache)
    with pytest.raises(InputError, match=r"several classes \(cat\|dog\).*with classifier.multi_label=true"):
        index.require_one_class_each()


def test_minus_one_is_no_label_in_containers_and_a_doubtful_class_in_a_table(tmp_path, cache, caplog):
    index = build_index(write_tar(tmp_path / "a.tar", [-1, 0, 1]), cache)
    with pytest.raises(InputError, match=r"1 of 3 samples .*the number -1 stands for none"):
        index.require_labels()
    build_index(in_csv(tmp_path / "c", [-1, 1]), cache).require_one_class_each()
    assert "has a class -1" in caplog.text


def test_class_names_have_one_unicode_form(tmp_path, cache, caplog):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    one = build_index(write_folder(tmp_path / "one", {decomposed: 2, "dog": 1}), cache)
    assert one.class_names == [composed, "dog"]
    assert one.with_class_names(["dog", decomposed]).labels.tolist() == [1, 1, 0]
    assert not caplog.text
    both = build_index(write_folder(tmp_path / "both", {composed: 1, decomposed: 2, "dog": 1}), cache)
    assert sorted(both.class_names) == [composed, "dog"]
    assert sorted(both.class_counts().tolist()) == [1, 3]
    assert "same class name in two Unicode forms" in caplog.text


def test_two_classes_of_one_name_are_refused(tmp_path, cache):
    path = write_parquet(tmp_path / "x.parquet", [0, 1, 2], 2)
    features = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog", "cat"]}}}}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    with pytest.raises(InputError, match="calls the classes 0, 2 all 'cat'; give each a name of its own"):
        build_index(path, cache)


def test_tables_without_labels_name_their_columns(tmp_path, cache):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [{"bytes": png(0), "path": "0.png"}], "note": ["a"], "score": [0.5]}), path)
    with pytest.raises(
        InputError, match=r"its columns are image \(struct\), note \(string\), score \(double\).*label_column"
    ):
        build_index(path, cache).require_labels()
    assert build_index(path, cache, label_column="note").class_names == ["a"]
    assert build_index(path, cache).class_names is None


def test_labels_are_int64(folder, cache):
    assert build_index(folder, cache).labels.dtype == np.int64


def test_an_empty_text_is_no_class(tmp_path, cache):
    index = build_index(write_parquet(tmp_path / "a.parquet", ["", "cat"], 2), cache)
    with pytest.raises(InputError, match="samples whose label is an empty text"):
        index.require_one_class_each()


@pytest.mark.parametrize("name", ["samples.arrow", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone", "list"])
def test_a_damaged_index_is_made_again(folder, cache, name, damage, caplog):
    first = build_index(folder, cache)
    refs, labels = all_refs(first), first.labels.tolist()
    file = first.folder / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = data.index(b"dog") if b"dog" in data else data.index(b"shard_names")
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "flipped": flipped, "list": b"[]"}[damage])
    again = build_index(folder, cache)
    assert (all_refs(again), again.labels.tolist()) == (refs, labels)
    assert "is damaged" in caplog.text or (name, damage) == ("index.json", "gone")


def test_an_index_of_before_is_used(folder, cache, monkeypatch):
    first = build_index(folder, cache)
    (first.folder / "index.sha256").unlink()
    monkeypatch.setattr("beit.common.sources.index_build._write", None)
    assert all_refs(build_index(folder, cache)) == all_refs(first)
