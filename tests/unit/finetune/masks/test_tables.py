import json
import logging
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.sources.config import SourceConfig
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.tables import looks_like_tables, open_table_pairs
from beit.tests.file_server import FileServer, serve
from beit.tests.unit.finetune.masks.paired import encoded, ids_of, mask, pairs_of, photo

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cells(values, suffix):
    rows = [None if value is None else {"bytes": value, "path": f"{n}.{suffix}"} for n, value in enumerate(values)]
    return pa.array(rows, IMAGE)


def write(path, columns, features=None, rows=2):
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)
    return path


def pair_columns(count=3, image="image", own="annotation"):
    return {
        image: cells([photo(number) for number in range(count)], "jpg"),
        own: cells([mask(number) for number in range(count)], "png"),
    }


def opened(data, image_member=None, **settings):
    return open_table_pairs(str(data), MaskDataConfig(**settings), reading=SourceConfig(image_member=image_member))


def expected(*numbers):
    return [(photo(number), mask(number)) for number in numbers]


def found(source):
    return [pair[1:] for pair in pairs_of(source)]


@pytest.mark.parametrize(
    ("image", "own"),
    [("image", "annotation"), ("image", "Mask"), ("pixel_values", "label"), ("jpg", "png"), ("img", "segmentation")],
)
def test_columns_of_the_usual_names_are_found(tmp_path, image, own):
    write(tmp_path / "0.parquet", pair_columns(image=image, own=own) | {"scene": [1, 2, 3]})
    source = opened(tmp_path)
    assert found(source) == expected(0, 1, 2) and source.images.class_names is None and not source.is_ids
    assert found(pickle.loads(pickle.dumps(source))) == expected(0, 1, 2)
    assert source.notes == (f"{tmp_path}: images are column {image}, masks column {own}",)
    assert [shard.name for shard in source.masks] == [shard.name for shard in source.images.shards]


def test_plain_binary_columns_of_several_files(tmp_path):
    for number in (0, 1):
        columns = {"image": [photo(number)], "mask": pa.array([mask(number)], pa.large_binary()), "x": ["a"]}
        write(tmp_path / f"{number}.parquet", columns)
    assert found(opened(tmp_path)) == expected(0, 1)
    assert found(opened(tmp_path / "1.parquet")) == expected(1)


def test_a_label_column_of_numbers_is_no_mask_and_no_class(tmp_path, caplog):
    names = {"_type": "ClassLabel", "names": ["indoor", "outdoor", "x"]}
    write(tmp_path / "0.parquet", {"image": cells([photo(0)], "jpg"), "label": [1]}, {"label": names})
    with pytest.raises(InputError, match=r"has no column of masks.*name it with data.mask_column; .*label \(int64\)"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"no column label with masks \(data.mask_column\)"):
        opened(tmp_path, mask_column="label")
    write(tmp_path / "0.parquet", pair_columns() | {"label": [0, 1, 2], "class": [5, 6, 7]}, {"label": names})
    with caplog.at_level(logging.INFO):
        source = opened(tmp_path)
    assert found(source) == expected(0, 1, 2) and source.table is None and source.images.label_notes == ()
    assert "left out" not in caplog.text


def test_columns_are_chosen_by_name(tmp_path):
    write(tmp_path / "0.parquet", {**pair_columns(), **pair_columns(own="depth", image="left")})
    assert found(opened(tmp_path)) == expected(0, 1, 2)
    source = opened(tmp_path, mask_column="DEPTH", image_column="left")
    assert "images are column left, masks column depth" in source.notes[0]
    assert source.images.digest != opened(tmp_path).images.digest
    assert "column left," in opened(tmp_path, image_member="left").notes[0]
    with pytest.raises(InputError, match="no column annotation with images beside the masks"):
        opened(tmp_path, image_column="annotation", mask_column="annotation")
    write(tmp_path / "0.parquet", pair_columns(own="semantics"))
    assert found(opened(tmp_path)) == expected(0, 1, 2)
    write(tmp_path / "0.parquet", pair_columns(image="a", own="mask") | pair_columns(image="b", own="mask"))
    with pytest.raises(InputError, match=r"more than one possible column of images beside the masks \(mask\): a, b"):
        opened(tmp_path)


def test_rows_without_image_or_mask_are_told(tmp_path):
    columns = {
        "image": cells([photo(0), None, photo(2), photo(3), None], "jpg"),
        "mask": cells([mask(0), mask(1), None, mask(3), None], "png"),
    }
    path = write(tmp_path / "0.parquet", columns)
    source = opened(tmp_path)
    assert found(source) == expected(0, 3)
    assert source.without_mask == (f"{path} row 2",) and source.without_image == (f"{path} row 1",)
    write(tmp_path / "0.parquet", {name: values[1:3] for name, values in columns.items()})
    with pytest.raises(InputError, match=r"no row has both an image and a mask \(image, mask\)"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64(), pa.bool_()])
@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list])
def test_lists_of_numbers_are_masks_too(tmp_path, kind, list_of):
    first, second = np.arange(6).reshape(2, 3) % 2, np.ones((4, 1), int)
    inner = pa.array([*first.ravel(), *second.ravel()]).cast(kind)
    masks = pa.array([first.tolist(), second.tolist()], list_of(list_of(pa.int64()))).cast(list_of(list_of(kind)))
    assert masks.flatten().flatten() == inner
    write(tmp_path / "0.parquet", {"image": cells([photo(0), photo(1)], "jpg"), "label": masks})
    ids = [ids_of(data) for _, _, data in pairs_of(opened(tmp_path))]
    assert (ids[0] == first).all() and (ids[1] == second).all()


def test_lists_of_large_numbers_keep_them(tmp_path):
    masks = pa.array([[[0, 300]], [[0, -1]], [[1, 2], [3]], [[1, None]], []], pa.list_(pa.list_(pa.int64())))
    write(tmp_path / "0.parquet", {"image": cells([photo(0)] * 5, "jpg"), "mask": masks}, rows=5)
    source = opened(tmp_path)
    with source.masks[0].open() as reader:
        first, *others = source.masks[0].refs()
        with Image.open(__import__("io").BytesIO(reader.read(first))) as image:
            assert np.asarray(image).tolist() == [[0, 300]]
        for ref, message in zip(others, ("holds -1 to 0", *["no rectangle"] * 3), strict=True):
            with pytest.raises(BadSample, match=message):
                reader.read(ref)


def test_names_of_classes_come_from_the_metadata_of_the_masks(tmp_path):
    inner = {"_type": "List", "feature": {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["a", "b"]}}}
    masks = pa.array([[[0, 1]]], pa.list_(pa.list_(pa.int64())))
    path = tmp_path / "0.parquet"
    write(path, {"image": cells([photo(0)], "jpg"), "mask": masks}, {"mask": inner, "image": {"_type": "Image"}})
    table = opened(tmp_path).table
    assert table.names == ("a", "b") and table.origin == f"{path} (column mask)"
    assert [entry.value for entry in table.entries] == [0, 1]


def test_files_must_have_the_same_columns(tmp_path):
    write(tmp_path / "0.parquet", pair_columns())
    write(tmp_path / "1.parquet", {"image": cells([photo(0)], "jpg")})
    with pytest.raises(InputError, match="1.parquet has no column annotation, which .*0.parquet has"):
        opened(tmp_path)


def test_damaged_files_and_paths_only_are_refused_in_one_line(tmp_path):
    path = write(
        tmp_path / "0.parquet", pair_columns() | {"mask": pa.array([{"bytes": None, "path": "a.png"}] * 3, IMAGE)}
    )
    with pytest.raises(InputError, match="holds paths of images, such as a.png"):
        opened(path, mask_column="mask")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not readable as Parquet"):
        opened(path)
    (tmp_path / "x.jpg").write_bytes(photo(0))
    with pytest.raises(InputError, match="holds no Parquet files"):
        opened(tmp_path / "x.jpg")


def test_memory_of_both_columns_is_told(tmp_path):
    write(tmp_path / "0.parquet", pair_columns())
    source = opened(tmp_path)
    for shard in (source.images.shards[0], source.masks[0]):
        with shard.open() as reader:
            assert reader.nbytes >= 100


def test_tables_of_a_web_server(tmp_path):
    data = write(tmp_path / "0.parquet", pair_columns()).read_bytes()
    with serve(FileServer({"/t/0.parquet": data})) as server:
        assert looks_like_tables(f"{server.url}/t/0.parquet")
        assert found(opened(f"{server.url}/t/0.parquet")) == expected(0, 1, 2)


def test_what_looks_like_tables(tmp_path):
    assert not looks_like_tables(str(tmp_path)) and looks_like_tables("a/*.parquet")
    write(tmp_path / "data" / "train-00000-of-00001.parquet", pair_columns())
    assert looks_like_tables(str(tmp_path))


def test_a_mask_may_be_a_palette_png(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
    image.putpalette([0] * 768)
    write(tmp_path / "0.parquet", {"image": [photo(0)], "mask": [encoded(image)]})
    assert pairs_of(opened(tmp_path))[0][2] == encoded(image)
