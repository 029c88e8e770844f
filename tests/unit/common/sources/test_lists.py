from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.sources.opening import open_source
from beit.tests.unit.common.sources.test_loose_files import labels_of, paths_of, put


def test_text_list(tmp_path: Path) -> None:
    put(tmp_path, "d/1.jpg", "d/2.jpg")
    listing = tmp_path / "list.txt"
    listing.write_text(f"# comment\n\nd/2.jpg\n{tmp_path}/d/1.jpg\n", encoding="utf-8")
    source = open_source(listing)
    assert paths_of(source) == ["d/2.jpg", f"{tmp_path}/d/1.jpg"]
    with source.shards[0].open() as reader:
        assert [reader.read(ref) for ref in source.shards[0].refs()] == [b"d/2.jpg", b"d/1.jpg"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("s3://bucket/x.jpg", "not a URL"), ("pipe:cat /etc/passwd", "must end in"), ("simplecache::x.jpg", "not a URL"),
     ("gone.jpg", "does not exist"), ("d/1.jpg\nd/1.jpg", "listed twice"), ("d/1.gif", "must end in"),
     ("# nothing", "lists no images")],
)  # fmt: skip
def test_unusable_list_lines_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    put(tmp_path, "d/1.jpg")
    (tmp_path / "list.txt").write_text(line, encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        open_source(tmp_path / "list.txt")


def test_csv_with_names_numbers_or_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    table = tmp_path / "x.csv"
    table.write_text("path,label\n2.jpg,dog\n1.jpg,cat\n3.jpg,\n", encoding="utf-8-sig")
    source = open_source(table)
    assert (source.class_names, labels_of(source)) == (("cat", "dog"), [1, 0, None])
    assert paths_of(source) == ["2.jpg", "1.jpg", "3.jpg"]
    table.write_text("id,filename,class\n0,2.jpg,5\n1,1.jpg,0\n", encoding="utf-8")
    assert (open_source(table).class_names, labels_of(open_source(table))) == (None, [5, 0])
    table.write_text("image\n2.jpg\n", encoding="utf-8")
    assert labels_of(open_source(table)) == [None]
    table.write_text("2.jpg,dog\n", encoding="utf-8")
    with pytest.raises(InputError, match="no path column"):
        open_source(table)


def table(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    put(folder, *(f"{number}.jpg" for number in range(4)))
    (folder / "x.csv").write_text("\n".join(lines), encoding=encoding, newline="")
    return folder / "x.csv"


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        (["Image,Label", "0.jpg,cat", "1.jpg,dog"], "utf-8"),
        (["image_id,CLASS", "0.jpg,cat", "1.jpg,dog", ",", "", ",  "], "utf-8-sig"),
        (["Filename;Label", "0.jpg;cat", "1.jpg;dog", ";", ";"], "utf-8-sig"),
        (["sep=;", "path;label", "0.jpg;cat", "1.jpg;dog"], "utf-8"),
        (["path,label\r0.jpg,cat\r1.jpg,dog\r"], "utf-8"),
        (["\tImage_Path\tTarget", "0\t0.jpg\tcat", "1\t1.jpg\tdog"], "utf-8"),
    ],
)
def test_tables_of_spreadsheets(tmp_path: Path, lines: list[str], encoding: str) -> None:
    source = open_source(table(tmp_path, *lines, encoding=encoding))
    assert (paths_of(source), labels_of(source)) == (["0.jpg", "1.jpg"], [0, 1])
    assert source.class_names == ("cat", "dog")


def test_cells_without_a_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"entry 2 \(1.jpg,cat,dog\) has 3 cells, but the first line names 2 columns"):
        open_source(table(tmp_path, "path,label", "0.jpg,cat,", "1.jpg,cat,dog"))


@pytest.mark.parametrize("cells", [("1", "0"), ("1.0", "0.0"), ("True", "False")])
def test_one_column_per_class(tmp_path: Path, cells: tuple[str, str]) -> None:
    yes, no = cells
    source = open_source(
        table(tmp_path, ",filename, cat, dog", f"0,0.jpg,{yes},{no}", f"1,1.jpg,{yes},{yes}", f"2,2.jpg,{no},{no}")
    )
    assert source.class_names == ("cat", "cat|dog")
    assert labels_of(source) == [0, 1, None]
    assert source.label_notes == (f"{tmp_path}/x.csv: one column of 0 and 1 per class (cat, dog)",)


@pytest.mark.parametrize("lines", [("path,width,old", "0.jpg,32,1"), ("path,old", "0.jpg,1"), ("path,a,b", "0.jpg,1,")])
def test_other_columns_are_no_classes(tmp_path: Path, lines: tuple[str, ...]) -> None:
    source = open_source(table(tmp_path, *lines))
    assert source.class_names is None and labels_of(source) == [None]
    assert source.columns == tuple(lines[0].split(","))


def test_rows_of_one_image_are_taken_together(tmp_path: Path) -> None:
    rows = ["0.jpg,dog", "1.jpg,cat", "0.jpg,cat", "1.jpg,cat", "2.jpg,", "2.jpg,ant | cat"]
    source = open_source(table(tmp_path, "path,label", *rows))
    assert paths_of(source) == ["0.jpg", "1.jpg", "2.jpg"]
    assert source.class_names is not None
    assert [source.class_names[label or 0] for label in labels_of(source)] == ["cat|dog", "cat", "ant|cat"]
    (note,) = source.label_notes
    assert note.endswith("3 images stand in several rows, whose classes are taken together (first: 0.jpg)")
    with pytest.raises(InputError, match="listed twice"):
        open_source(table(tmp_path, "path", "0.jpg", "0.jpg"))


def test_one_image_may_be_spelled_in_several_ways(tmp_path: Path) -> None:
    source = open_source(table(tmp_path, "path,label", "0.jpg,dog", f"{tmp_path}/0.jpg,cat", "./1.jpg,cat"))
    assert paths_of(source) == ["0.jpg", "./1.jpg"] and source.class_names == ("cat", "cat|dog")
    (tmp_path / "x.txt").write_text("0.jpg\n./0.jpg\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"entry 2 \(./0.jpg\) is listed twice"):
        open_source(tmp_path / "x.txt")


def test_a_column_of_splits_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_source(table(tmp_path, "path,label,kind", "0.jpg,train,bus", "1.jpg,test,car"))
    assert not caplog.messages
    open_source(table(tmp_path, "path,label,split", "0.jpg,dog,train", "1.jpg,cat,test"))
    assert "x.csv mixes the splits ['test', 'train'] in its column split" in caplog.text


def test_numbers_keep_what_is_more_than_the_number(tmp_path: Path) -> None:
    source = open_source(table(tmp_path, "path,label", "0.jpg,7", "1.jpg,007", "2.jpg,"))
    assert source.class_names is None and labels_of(source) == [7, "007", None]
    source = open_source(table(tmp_path, "path,label", "0.jpg,10", "1.jpg,-2", f"2.jpg,{10**30}"))
    assert source.class_names == ("-2", "10", str(10**30))


def test_the_column_of_classes_can_be_chosen(tmp_path: Path) -> None:
    path = table(tmp_path, "path,breed,label", "0.jpg,pug,dog")
    assert open_source(path).class_names == ("dog",)
    assert open_source(path, label_column="Breed").class_names == ("pug",)
    with pytest.raises(InputError, match=r"no column 'kind' that can hold classes \(columns: path, breed, label\)"):
        open_source(path, label_column="kind")
    path = table(tmp_path, "path,label,class", "0.jpg,pug,dog")
    (note,) = open_source(path).label_notes
    assert "classes are taken from column label, not class" in note
    with pytest.raises(InputError, match="several columns 'label'"):
        open_source(table(tmp_path, "path,label,label", "0.jpg,pug,dog"))


def test_ids_without_an_ending_find_their_only_file(tmp_path: Path) -> None:
    path = table(tmp_path, "image_id,label", "0,cat", "1.jpg,dog", "train_7,dog")
    put(tmp_path, "train_7.PNG", "2.png")
    assert paths_of(open_source(path)) == ["0.jpg", "1.jpg", "train_7.PNG"]
    for name, complaint in (("2", "must end in"), ("gone", "must end in"), ("0.jpg", "listed twice")):
        path.write_text(f"image_id\n0\n{name}\n", encoding="utf-8")
        with pytest.raises(InputError, match=complaint):
            open_source(path)


def test_accents_may_be_spelled_otherwise_than_on_the_disk(tmp_path: Path) -> None:
    put(tmp_path, "cafe\u0301.jpg")
    (tmp_path / "x.csv").write_text("path,label\ncaf\u00e9.jpg,dog\n", encoding="utf-8")
    assert paths_of(open_source(tmp_path / "x.csv")) == ["cafe\u0301.jpg"]
    (tmp_path / "x.txt").write_text("caf\u00e9.jpg\ncafe\u0301.jpg\n", encoding="utf-8")
    with pytest.raises(InputError, match="listed twice"):
        open_source(tmp_path / "x.txt")
