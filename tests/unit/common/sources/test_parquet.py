import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import BadSample, InputError
from beit.common.sources.opening import open_source

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, rows: int = 4) -> Path:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return path


def images(count: int, paths: list[str | None] | None = None) -> Any:
    names = paths or [f"pic.v{number}.jpg" for number in range(count)]
    return pa.array([{"bytes": b"img%d" % number, "path": name} for number, name in enumerate(names)], type=IMAGE)


def huggingface(path: Path, count: int = 10, paths: list[str | None] | None = None, **options: int) -> Path:
    names = ["cat", "dog", "newt"]
    columns = {"image": images(count, paths), "label": [number % 4 - 1 for number in range(count)]}
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return write(path, columns, features, **options)


def test_row_groups_are_shards_and_read_back(tmp_path: Path) -> None:
    source = open_source(huggingface(tmp_path / "train.parquet"))
    assert (source.kind, source.class_names) == ("parquet", ("cat", "dog", "newt"))
    shards = pickle.loads(pickle.dumps(source.shards))
    assert [(shard.name, shard.row_group) for shard in shards] == [(f"train-rg{n:05d}", n) for n in range(3)]
    refs = [shard.refs() for shard in shards]
    assert [len(group) for group in refs] == [4, 4, 2]
    assert [ref.offset for ref in refs[1]] == [0, 1, 2, 3] and refs[0][0].length == 0
    assert [ref.label for ref in refs[0]] == [None, 0, 1, 2]  # -1 means unlabelled
    with shards[1].open() as reader:
        assert [reader.read(ref) for ref in refs[1]] == [b"img4", b"img5", b"img6", b"img7"]
        assert reader.nbytes >= 16


def test_keys_come_from_unique_paths_without_dots_and_independent_of_the_folder(tmp_path: Path) -> None:
    first = open_source(huggingface(tmp_path / "a" / "train.parquet"))
    keys = [ref.key for shard in first.shards for ref in shard.refs()]
    assert len(set(keys)) == 10 and keys[0].startswith("pic%2Ev0-") and "." not in "".join(keys)
    assert first.shards[0].refs()[0].path == "pic.v0.jpg"
    second = open_source(huggingface(tmp_path / "b" / "train.parquet", rows=5))
    assert [ref.key for shard in second.shards for ref in shard.refs()] == keys


@pytest.mark.parametrize("paths", [[None] * 6, ["same.jpg"] * 6, ["a", "b", "c", None, "d", "e"]])
def test_keys_come_from_rows_where_paths_do_not_identify(tmp_path: Path, paths: list[str | None]) -> None:
    source = open_source(huggingface(tmp_path / "my.train.parquet", 6, paths))
    keys = [ref.key for shard in source.shards for ref in shard.refs()]
    assert keys == [f"my%2Etrain-{row:08d}" for row in range(6)]


def test_files_of_one_name_in_two_folders_keep_their_keys_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        huggingface(tmp_path / folder / "0.parquet", 3)
        huggingface(tmp_path / folder / "1.parquet", 3, [None] * 3)
    source = open_source(tmp_path)
    keys = [ref.key for shard in source.shards for ref in shard.refs()]
    assert len(set(keys)) == len(keys) == 12


def test_plain_binary_column_and_text_labels(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"jpg": [b"a", None], "label": ["dog", "cat"]})
    write(tmp_path / "1.parquet", {"jpg": [b"c", b"d"], "label": ["ant", None]})
    source = open_source(tmp_path)
    assert source.class_names == ("ant", "cat", "dog")
    refs = [ref for shard in source.shards for ref in shard.refs()]
    assert [ref.label for ref in refs] == [2, 1, 0, None]
    with source.shards[0].open() as reader:
        assert reader.read(refs[0]) == b"a"
        with pytest.raises(BadSample, match="empty"):
            reader.read(refs[1])


def test_no_labels(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", {"img": images(3), "note": ["a", "b", "c"]}))
    assert source.class_names is None
    assert [ref.label for ref in source.shards[0].refs()] == [None] * 3


def test_no_or_several_image_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image column \(columns: label\)"):
        open_source(write(tmp_path / "x.parquet", {"label": [1]}))
    with pytest.raises(InputError, match="more than one possible image column"):
        open_source(write(tmp_path / "y.parquet", {"left": [b"1"], "right": [b"2"]}))


def test_declared_image_feature_wins(tmp_path: Path) -> None:
    columns = {"photo": images(2), "blob": [b"1", b"2"]}
    source = open_source(write(tmp_path / "x.parquet", columns, {"photo": {"_type": "Image"}}))
    with source.shards[0].open() as reader:
        assert reader.read(source.shards[0].refs()[1]) == b"img1"


def test_damage_names_the_file(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "x.parquet")
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"not parquet", b""):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"x\.parquet is not readable as Parquet"):
            open_source(path)


def test_damaged_pages_name_the_file(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "x.parquet")
    source = open_source(path)
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.parquet is not readable as Parquet"), source.shards[0].open() as reader:
        reader.read(source.shards[0].refs()[0])


def not_utf8(count: int) -> Any:
    texts = pa.array([b"a\xe5\xff", *[b"b%d" % number for number in range(1, count)]], pa.binary())
    return pa.Array.from_buffers(pa.string(), count, texts.buffers())


def test_texts_that_are_not_utf8_name_the_file(tmp_path: Path) -> None:
    data = pa.array([b"1", b"2"], pa.binary())
    columns = {
        "path": {"image": pa.StructArray.from_arrays([data, not_utf8(2)], ["bytes", "path"])},
        "label": {"image": images(2), "label": not_utf8(2)},
    }
    for name, values in columns.items():
        path = write(tmp_path / f"{name}.parquet", values)
        with pytest.raises(InputError, match=rf"{name}\.parquet is not readable as Parquet .*UTF8"):
            open_source(path)


def test_names_of_columns_that_are_not_utf8_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": images(2), "note": [1, 2]})
    path.write_bytes(path.read_bytes().replace(b"note", b"n\xe5te"))
    with pytest.raises(InputError, match=r"x\.parquet is not readable as Parquet .*utf-8"):
        open_source(path)


def test_label_out_of_range_and_disagreeing_files_are_refused(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["a"]}}
    path = write(tmp_path / "x.parquet", {"image": images(2), "label": [0, 1]}, features)
    with pytest.raises(InputError, match="row 1 has label 1"):
        open_source(path).shards[0].refs()
    write(tmp_path / "y.parquet", {"image": images(2), "label": [0, 1]})
    with pytest.raises(InputError, match="differ in their labels"):
        open_source(tmp_path)


def test_mixed_splits_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        huggingface(tmp_path / f"{name}.parquet")
    open_source(tmp_path)
    assert "mixes the splits ['test', 'train']" in caplog.text


def test_remote_parquet(tmp_path: Path) -> None:
    path = huggingface(tmp_path / "x.parquet")
    fsspec.filesystem("memory").pipe("/tables/x.parquet", path.read_bytes())
    source = open_source("memory://tables/x.parquet")
    with source.shards[0].open() as reader:
        assert reader.read(source.shards[0].refs()[3]) == b"img3"


def test_a_row_group_larger_than_memory_is_read_in_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = [rng.bytes(200_000) for _ in range(300)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"jpg": cells}), path, row_group_size=300, write_batch_size=4)  # pages of 1 MB
    (shard,) = open_source(path).shards
    refs = shard.refs()
    before, peak, rows = pa.total_allocated_bytes(), 0, []
    for reader in shard.stream():
        peak = max(peak, pa.total_allocated_bytes() - before)
        rows += [reader.read(ref) for ref in refs[len(rows) : len(rows) + len(reader)]]
    assert rows == cells
    assert path.stat().st_size > 60_000_000 and peak < 24_000_000


def test_row_groups_stream_as_they_read(tmp_path: Path) -> None:
    source = open_source(huggingface(tmp_path / "x.parquet", 40, rows=33))
    for shard in source.shards:
        refs = shard.refs()
        with shard.open() as whole:
            pieces = list(shard.stream())
            assert [len(piece) for piece in pieces] == ([16, 16, 1] if len(refs) == 33 else [7])
            for piece in pieces:
                taken, refs = refs[: len(piece)], refs[len(piece) :]
                assert [piece.read(ref) for ref in taken] == [whole.read(ref) for ref in taken]


def test_labels_that_are_pandas_categories(tmp_path: Path) -> None:
    labels = pa.array(["dog", "cat", None, "dog"]).dictionary_encode()
    source = open_source(write(tmp_path / "x.parquet", {"image": images(4), "label": labels}))
    assert source.class_names == ("cat", "dog")
    assert [ref.label for ref in source.shards[0].refs()] == [1, 0, None, 1]


@pytest.mark.parametrize("kind", ["text", "numbers", "class labels"])
def test_lists_of_labels_are_one_label_in_any_order(tmp_path: Path, kind: str) -> None:
    lists: list[Any] = [[1, 0], [0, 1, 1], [], [1], None, [0]]
    features = None
    if kind == "text":
        lists = [None if row is None else [("beach", "sunset")[item] for item in row] for row in lists]
    if kind == "class labels":
        features = {"labels": {"feature": {"names": ["beach", "sunset"], "_type": "ClassLabel"}, "_type": "List"}}
    source = open_source(write(tmp_path / "a.parquet", {"image": images(6), "labels": lists}, features, rows=6))
    names = ["0", "0|1", "1"] if kind == "numbers" else ["beach", "beach|sunset", "sunset"]
    assert source.class_names == (names and tuple(names))
    assert [ref.label for shard in source.shards for ref in shard.refs()] == [1, 1, None, 2, None, 0]


def test_a_list_of_labels_outside_the_names_is_refused(tmp_path: Path) -> None:
    features = {"labels": {"feature": {"names": ["beach"], "_type": "ClassLabel"}, "_type": "List"}}
    path = write(tmp_path / "a.parquet", {"image": images(1), "labels": [[1]]}, features, rows=1)
    with pytest.raises(InputError, match=r"a.parquet has labels \[1\], but 1 class names"):
        open_source(path)


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (pa.array([3.0, None, float("nan"), 5.0]), None, [3, None, None, 5]),
        (pa.array([3.0, 5.0], pa.float16()), None, [3, 5]),
        (pa.array([Decimal("3.0"), Decimal("5.0")], pa.decimal128(3, 1)), None, [3, 5]),
        (pa.array([True, False, None]), ("False", "True"), [1, 0, None]),
        (pa.array(["dog", "cat", None], pa.string_view()), ("cat", "dog"), [1, 0, None]),
        (pa.array(["dog", "cat", None], pa.large_string()), ("cat", "dog"), [1, 0, None]),
        (pa.array(["dog", "cat", None]).dictionary_encode(), ("cat", "dog"), [1, 0, None]),
        (pa.array([7, 5, None]).dictionary_encode(), None, [7, 5, None]),
        (pa.array([2**64 - 1, 0], pa.uint64()), None, [2**64 - 1, 0]),
        (pa.array([-1, -7]), None, [None, -7]),
        (pa.array([["dog"], [], None], pa.list_view(pa.string_view())), ("dog",), [0, None, None]),
    ],
)
def test_labels_of_every_type(
    tmp_path: Path, labels: Any, names: tuple[str, ...] | None, ids: list[int | None]
) -> None:
    source = open_source(write(tmp_path / "x.parquet", {"image": images(len(labels)), "Label": labels}))
    assert source.class_names == names
    assert [ref.label for ref in source.shards[0].refs()] == ids


@pytest.mark.parametrize("odd", [0.5, float("inf"), 1e300])
def test_fractions_are_no_classes(tmp_path: Path, odd: float) -> None:
    write(tmp_path / "0.parquet", {"image": images(2), "label": [1.0, 2.0]})
    write(tmp_path / "1.parquet", {"image": images(2), "label": [1.0, odd]})
    source = open_source(tmp_path)
    assert [ref.label for shard in source.shards for ref in shard.refs()] == [None] * 4
    assert source.columns == ("image (struct)", "label (double)")
    (note,) = source.label_notes
    assert f"1.parquet: column label holds {odd}; numbers of classes must be whole" in note
    with pytest.raises(InputError, match=r"1.parquet: column label holds"):
        open_source(tmp_path, label_column="label")


def test_whole_fractions_and_numbers_are_one_data_set(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", {"image": images(2), "label": [1, 2]})
    write(tmp_path / "1.parquet", {"image": images(2), "label": [2.0, None]})
    assert [ref.label for shard in open_source(tmp_path).shards for ref in shard.refs()] == [1, 2, 2, None]
    write(tmp_path / "2.parquet", {"image": images(1), "label": ["cat"]})
    with pytest.raises(InputError, match=r"\(texts in column label; numbers in column label\); give files of one"):
        open_source(tmp_path)


def test_several_class_columns_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    features = {name: {"_type": "ClassLabel", "names": [f"{name} a", f"{name} b"]} for name in ("make", "colour")}
    path = write(tmp_path / "x.parquet", {"image": images(2), "make": [0, 1], "colour": [1, 0]}, features)
    source = open_source(path)
    assert source.class_names is None
    assert source.columns == ("image (struct)", "make (ClassLabel, int64)", "colour (ClassLabel, int64)")
    chosen = open_source(path, label_column="colour")
    assert chosen.class_names == ("colour a", "colour b")
    assert [ref.label for ref in chosen.shards[0].refs()] == [1, 0]
    assert len({source.digest, chosen.digest, open_source(path, label_column="make").digest}) == 3
    with pytest.raises(InputError, match=r"no column 'image' that can hold classes"):
        open_source(path, label_column="image")
    features |= {"fine_label": features["make"]}
    path = write(
        tmp_path / "y.parquet", {"image": images(2), "fine_label": [0, 1], "make": [0, 1], "colour": [1, 0]}, features
    )
    (note,) = open_source(path).label_notes
    assert "classes are taken from column fine_label, not make, colour; data.label_column=NAME chooses" in note


@pytest.mark.parametrize(
    ("lists", "are_flags"),
    [
        ([[0, 1, 0], [1, 0, 0]], True),
        ([[0, 1], [1, 1]], True),
        ([[0, 1], [1, 0]], False),
        ([[0, 1, 0], [1]], False),
        ([[0], [1]], False),
        ([[0, 2, 0], [1, 0, 0]], False),
    ],
)
def test_a_zero_or_one_for_every_class_is_no_list_of_classes(
    tmp_path: Path, lists: list[list[int]], are_flags: bool
) -> None:
    source = open_source(write(tmp_path / "x.parquet", {"image": images(2), "labels": lists}))
    assert bool(source.label_notes) == are_flags == ("0 or 1 for every class" in "".join(source.label_notes))
    assert (source.class_names is None) == are_flags


def test_an_image_column_beside_one_called_as_masks_are_is_taken_and_the_masks_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "0.parquet", {"pixel_values": images(2), "label": images(2, ["m0.png", "m1.png"])})
    with caplog.at_level("INFO"):
        source = open_source(path)
    assert [ref.path for ref in source.shards[0].refs()] == ["pic.v0.jpg", "pic.v1.jpg"]
    assert source.label_notes == ("its column label holds masks, from which beit finetune segmentation learns",)
    assert source.class_names is None and f"{tmp_path}: the images of label are left out" in caplog.messages
    write(path, {"left": images(2), "right": images(2), "mask": images(2)})
    with pytest.raises(InputError, match="more than one possible image column"):
        open_source(path)
