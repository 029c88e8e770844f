"""Parquet files as other programs write them."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError
from beit.common.sources.opening import open_source
from beit.common.sources.parquet_layout import plain_type
from beit.common.sources.types import SampleRef, Source

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])
ROWS = [{"bytes": b"img%d" % number, "path": f"a/{number}.jpg"} for number in range(4)]


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=4)  # pyarrow cannot slice structs of views
    return path


def read(source: Source) -> list[tuple[SampleRef, bytes]]:
    found = []
    for shard in source.shards:
        with shard.open() as reader:
            found += [(ref, reader.read(ref)) for ref in shard.refs()]
    return found


def streamed(source: Source) -> list[bytes]:
    refs = [ref for shard in source.shards for ref in shard.refs()]
    readers = [rows for shard in source.shards for rows in shard.stream() for _ in range(len(rows))]  # type: ignore[attr-defined]
    return [reader.read(ref) for reader, ref in zip(readers, refs, strict=True)]


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_views_read_as_the_types_they_are_views_of(tmp_path: Path, kind: str) -> None:
    plain, views = (STRUCT, VIEWS) if kind == "struct" else (pa.binary(), pa.binary_view())
    values = ROWS if kind == "struct" else [row["bytes"] for row in ROWS]
    sources = []
    for name, image_type, label_type in (("plain", plain, pa.string()), ("views", views, pa.string_view())):
        (tmp_path / name).mkdir()
        labels = pa.array(["cat", "dog", "cat", None], pa.string()).cast(label_type)
        path = write(tmp_path / name / "x.parquet", image=pa.array(values, plain).cast(image_type), label=labels)
        sources.append(open_source(path))
    assert pq.ParquetFile(tmp_path / "views/x.parquet").schema_arrow.field("image").type == views
    expected, found = map(read, sources)
    assert found == expected and [data for _, data in found] == [b"img0", b"img1", b"img2", b"img3"]
    assert sources[1].class_names == sources[0].class_names == ("cat", "dog")
    assert streamed(sources[1]) == [data for _, data in found]


@pytest.mark.parametrize("values", [[b"a/0.jpg", b"\xff"], [7, 8]])
def test_paths_that_are_no_text_name_nothing(tmp_path: Path, values: list[Any]) -> None:
    images = [{"bytes": row["bytes"], "path": value} for row, value in zip(ROWS, values, strict=False)]
    found = read(open_source(write(tmp_path / "x.parquet", image=pa.array(images))))
    assert [ref.key for ref, _ in found] == ["x-00000000", "x-00000001"]
    assert [data for _, data in found] == [b"img0", b"img1"]


def test_views_are_plain_at_any_depth() -> None:
    nested = pa.list_(pa.struct([("a", pa.large_list(pa.string_view())), ("b", pa.int8())]))
    expected = pa.list_(pa.struct([("a", pa.large_list(pa.large_string())), ("b", pa.int8())]))
    assert plain_type(nested) == expected
    assert plain_type(pa.dictionary(pa.int8(), pa.string_view())) == pa.dictionary(pa.int8(), pa.large_string())
    assert plain_type(STRUCT) == STRUCT


def test_a_row_group_too_large_for_one_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write(tmp_path / "x.parquet", image=pa.array(ROWS, STRUCT)))
    whole = pq.ParquetFile.read_row_group

    def refuse(parquet: pq.ParquetFile, *arguments: Any, columns: list[str], **options: Any) -> pa.Table:
        if "image.bytes" in columns:  # as of more than 2 GiB in a struct
            raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
        return whole(parquet, *arguments, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", refuse)
    assert [data for _, data in read(source)] == [b"img0", b"img1", b"img2", b"img3"]


@pytest.mark.parametrize("path", ["/data/cat/1.jpg", "cat/1.jpg"])
def test_a_table_of_paths_only_says_so_at_once(tmp_path: Path, path: str) -> None:
    rows = [{"bytes": None, "path": path}] * 3
    with pytest.raises(InputError, match=rf"holds paths of images, such as {path}, and no images; give the folder"):
        open_source(write(tmp_path / "x.parquet", image=pa.array(rows, STRUCT)))


@pytest.mark.parametrize("rows", [[{"bytes": None, "path": None}] * 3, [{"bytes": None, "path": "1.jpg"}, *ROWS]])
def test_rows_without_images_are_counted_when_they_are_read(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source = open_source(write(tmp_path / "x.parquet", image=pa.array(rows, STRUCT)))
    assert sum(len(shard.refs()) for shard in source.shards) == len(rows)


@pytest.mark.parametrize("inner", [STRUCT, pa.binary()])
def test_lists_of_images_are_refused_or_named(
    tmp_path: Path, inner: pa.DataType, caplog: pytest.LogCaptureFixture
) -> None:
    value = b"img" if inner == pa.binary() else {"bytes": b"img", "path": None}
    lists = pa.array([[value], [value, value]], pa.list_(inner))
    with pytest.raises(InputError, match="lists of images in the column images; write one row for each image"):
        open_source(write(tmp_path / "lists.parquet", images=lists))
    caplog.set_level(logging.INFO)
    source = open_source(write(tmp_path / "both.parquet", image=pa.array(ROWS[:2], STRUCT), images=lists))
    assert [data for _, data in read(source)] == [b"img0", b"img1"]
    assert "the images of images are left out" in caplog.text


def test_lists_of_one_length_are_lists(tmp_path: Path) -> None:
    labels = pa.array([[3, 4], [4, 5]], pa.list_(pa.int64(), 2))
    source = open_source(write(tmp_path / "labels.parquet", image=pa.array(ROWS[:2], STRUCT), labels=labels))
    assert source.class_names == ("3|4", "4|5")
    images = pa.array([[{"bytes": b"img", "path": None}]], pa.list_(STRUCT, 1))
    with pytest.raises(InputError, match="lists of images in the column images"):
        open_source(write(tmp_path / "images.parquet", images=images))


def test_lists_of_declared_classes_have_their_names_in_every_spelling_of_datasets(tmp_path: Path) -> None:
    declared = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    rows = pa.table({"image": pa.array(ROWS[:2], STRUCT), "labels": [[0, 1], [1]]})
    for number, feature in enumerate(([declared], {"_type": "List", "feature": declared})):
        features = {"info": {"features": {"image": {"_type": "Image"}, "labels": feature}}}
        path = tmp_path / f"{number}.parquet"
        pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
        assert open_source(path).class_names == ("cat|dog", "dog")


def test_a_text_has_no_blanks_around_it(tmp_path: Path) -> None:
    rows = write(tmp_path / "x.parquet", image=pa.array(ROWS[:2], STRUCT), label=["cat ", " cat"])
    assert [ref.label for ref, _ in read(open_source(rows))] == [0, 0]


def test_a_column_of_splits_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_source(write(tmp_path / "x.parquet", image=pa.array(ROWS[:2], STRUCT), split=["train", "test"]))
    assert "mixes the splits ['test', 'train'] in its column split" in caplog.text


def test_a_column_of_paths_is_named_with_its_type(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image column \(columns: image, id\), image is string; call"):
        open_source(write(tmp_path / "x.parquet", image=["1.jpg"], id=[1]))


def test_the_image_column_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", left=pa.array(ROWS, STRUCT), right=pa.array(ROWS[::-1], STRUCT))
    with pytest.raises(InputError, match="more than one possible image column.*source.image_member"):
        open_source(path)
    source = open_source(path, image_member="right")
    assert [data for _, data in read(source)] == [b"img3", b"img2", b"img1", b"img0"]
    with pytest.raises(InputError, match=r"no column top with images .*left, right"):
        open_source(path, image_member="top")
