import io
import json
import logging
import pickle
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.sources.opening import open_source
from beit.common.sources.types import Source
from beit.common.storage.tar_walk import walk_tar
from beit.tests.file_server import FileServer, serve


def jpeg(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def labels_of(source: Source) -> list[int | None]:
    return [ref.label for shard in source.shards for ref in shard.refs()]


def test_samples_come_in_order_and_read_back(tmp_path: Path) -> None:
    images = {f"d/{number}.jpg": jpeg(number * 40) for number in range(5)}
    members = {name: data for key, data in images.items() for name, data in ((key, data), (key[:-3] + "txt", b"hi"))}
    path = write_tar(tmp_path / "photos-000.tar", members)
    source = open_source(path)
    assert (source.kind, source.class_names, source.root) == ("tar", None, str(tmp_path))
    (shard,) = pickle.loads(pickle.dumps(source.shards))
    assert (shard.name, shard.kind, shard.location, shard.row_group) == ("photos-000", "tar", str(path), 0)
    refs = shard.refs()
    assert [ref.key for ref in refs] == [f"d/{number}" for number in range(5)]
    assert [ref.path for ref in refs] == list(images)
    with shard.open() as reader:
        assert [reader.read(ref) for ref in refs] == list(images.values())
        assert reader.nbytes == 0


def test_scan_returns_the_walk_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg()})
    refs, index = open_source(path).shards[0].scan()
    with path.open("rb") as file:
        assert index == walk_tar(file, label="x")
    assert len(refs) == 1


def test_image_suffix_is_exact_and_jpg_is_preferred(tmp_path: Path) -> None:
    members = {"a.png": b"mask", "a.jpg": b"photo", "b.WebP": b"w", "c.seg.png": b"mask", "c.txt": b"", "d.jpeg": b"j"}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert [ref.path for ref in source.shards[0].refs()] == ["a.jpg", "b.WebP", "d.jpeg"]


def test_number_labels_from_cls_or_json(tmp_path: Path) -> None:
    members = {"a.jpg": b"", "a.cls": b" 7\n", "b.jpg": b"", "b.json": b'{"label": 3}', "c.jpg": b"", "c.json": b"[1]"}
    members |= {
        "d.jpg": b"",
        "d.json": b"{broken",
        "e.jpg": b"",
        "e.cls": b"-1",
        "f.jpg": b"",
        "f.json": b'{"label":true}',
    }
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert source.class_names is None
    assert labels_of(source) == [7, 3, None, None, None, None]


def test_name_labels_are_numbered_over_all_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": b"", "a.cls": b"dog", "b.jpg": b"", "b.cls": b"cat"})
    write_tar(tmp_path / "1.tar", {"c.jpg": b"", "c.json": json.dumps({"label": "bird"}).encode(), "d.jpg": b""})
    source = open_source(tmp_path)
    assert source.class_names == ("bird", "cat", "dog")
    assert labels_of(source) == [2, 1, 0, None]


@pytest.mark.parametrize(("first", "second"), [(b"dog", b"1"), (b"1", b"dog")])
def test_mixing_names_and_numbers_is_refused(tmp_path: Path, first: bytes, second: bytes) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": b"", "a.cls": first})
    write_tar(tmp_path / "1.tar", {"b.jpg": b"", "b.cls": second})
    with pytest.raises(InputError, match=r"1\.tar labels sample 'b'"):
        labels_of(open_source(tmp_path))


def test_numbers_may_be_written_in_ways_of_their_own(tmp_path: Path) -> None:
    members = {"a.jpg": b"", "a.cls": b"007", "b.jpg": b"", "b.cls": b"12", "c.jpg": b"", "c.json": b'{"label": 3.0}'}
    members |= {"d.jpg": b"", "d.json": b'{"labels": [3, 5]}', "e.jpg": b"", "e.cls": b"%d" % 10**30, "f.jpg": b""}
    members |= {"f.cls": b"-2", "h.jpg": b"", "h.cls": b"\xef\xbb\xbf9", "g.jpg": b"", "g.json": b'{"label": 0.5}'}
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert source.class_names is None
    assert labels_of(source) == ["007", 12, 3, "3|5", 10**30, -2, 9, None]


def test_lists_of_numbers_may_stand_beside_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": b"", "a.json": b'{"labels": [3, 10]}', "b.jpg": b"", "b.cls": b"3"})
    write_tar(tmp_path / "1.tar", {"c.jpg": b"", "c.json": b'{"labels": [10]}', "d.jpg": b"", "d.cls": b"-1"})
    source = open_source(tmp_path)
    assert source.class_names == ("10", "10|3", "3")
    assert labels_of(source) == [1, 2, 0, None]


def test_truncated_tar_names_the_file(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{number}.jpg": jpeg() for number in range(4)})
    whole = path.read_bytes()
    for cut in (4 * 512, 2048 + 100, 2048 + 700):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"x\.tar is truncated"):
            for shard in open_source(path).shards:
                shard.refs()


def test_tar_without_images_says_what_it_holds(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "x.tar", {"a.npy": b"", "a.cls": b"1"}))
    with pytest.raises(InputError, match=r"holds no images: its members end in cls, npy"):
        source.shards[0].refs()


def test_tar_that_shrinks_while_it_is_read_gives_a_bad_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.jpg": jpeg()})
    shard = open_source(path).shards[0]
    (ref,) = shard.refs()
    path.write_bytes(path.read_bytes()[:600])
    with shard.open() as reader, pytest.raises(BadSample, match="truncated"):
        reader.read(ref)


def test_remote_tars(tmp_path: Path) -> None:
    file_system = fsspec.filesystem("memory")
    for number in range(2):
        path = write_tar(tmp_path / f"{number}.tar", {"a.jpg": jpeg(number), "a.cls": b"5"})
        file_system.pipe(f"/tars/{number}.tar", path.read_bytes())
    for spec in ("memory://tars", "memory://tars/{0..1}.tar", "memory://tars/*.tar"):
        source = open_source(spec)
        assert labels_of(source) == [5, 5]
        shard = source.shards[1]
        with shard.open() as reader:
            assert reader.read(shard.refs()[0]) == jpeg(1)


def test_listing_a_remote_tar_reads_ahead_and_reading_an_image_does_not(tmp_path: Path) -> None:
    members = {f"{n:02d}.{suffix}": data for n in range(30) for suffix, data in (("jpg", jpeg(n) * 40), ("cls", b"1"))}
    data = write_tar(tmp_path / "x.tar", members).read_bytes()
    with serve(FileServer({"/x.tar": data})) as server:
        (shard,) = open_source(f"{server.url}/x.tar").shards
        server.paths.clear()
        refs = shard.refs()
        assert len(server.paths) < 5
        with shard.open() as reader:
            server.bytes_sent = 0
            assert [reader.read(refs[n]) for n in (20, 3, 11)] == [jpeg(n) * 40 for n in (20, 3, 11)]
            assert server.bytes_sent == sum(refs[n].length for n in (20, 3, 11))


def test_several_classes_in_json_are_one_label_in_any_order(tmp_path: Path) -> None:
    said = {
        "a": '{"label": ["sunset", "beach"]}',
        "b": '{"labels": ["beach", "sunset", "beach"]}',
        "c": '{"label": []}',
    }
    said |= {"d": '{"label": ["beach"]}', "e": '{"labels": [{"box": [1, 2]}]}', "f": '{"label": ["a|b"]}'}
    pairs = [((f"{name}.jpg", b""), (f"{name}.json", text.encode())) for name, text in said.items()]
    source = open_source(write_tar(tmp_path / "x.tar", dict(member for pair in pairs for member in pair)))
    assert source.class_names == ("beach", "beach|sunset")
    assert labels_of(source) == [1, 1, None, 0, None, None]


def test_files_of_a_sample_that_stand_apart_are_sorted_by_the_command_that_is_shown(tmp_path: Path) -> None:
    members = {f"{number}.jpg": jpeg(number) for number in range(3)} | {f"{n}.cls": b"%d" % n for n in range(3)}
    path = write_tar(tmp_path / "all images first.tar", members)
    with pytest.raises(InputError, match="do not stand together.*sort it: ") as caught:
        open_source(path).shards[0].refs()
    command = str(caught.value).partition("sort it: ")[2]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    refs = open_source(tmp_path / "sorted.tar").shards[0].refs()
    assert [(ref.key.removeprefix("./"), ref.label) for ref in refs] == [("0", 0), ("1", 1), ("2", 2)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("rgb.png", "rgb.png"), (".DEPTH.png", "depth.png"), ("missing.png; depth.png;rgb.png", "depth.png")],
)
def test_the_image_of_a_sample_is_chosen(tmp_path: Path, wanted: str, expected: str) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.rgb.png": b"rgb", "a.depth.png": b"depth", "a.cls": b"1"})
    source = open_source(path, image_member=wanted)
    (ref,) = source.shards[0].refs()
    assert (ref.key, ref.path, ref.label) == ("a", f"a.{expected}", 1)
    assert source.digest != open_source(path, image_member="other.png").digest


def test_several_images_of_a_sample_lead_to_the_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dotted = write_tar(tmp_path / "x.tar", {"a.rgb.png": b"", "a.depth.png": b""})
    with pytest.raises(InputError, match="holds no images.*source.image_member"):
        open_source(dotted).shards[0].refs()
    some = write_tar(tmp_path / "y.tar", {"a.rgb.png": b"", "b.jpg": b""})
    assert [ref.key for ref in open_source(some).shards[0].refs()] == ["b"]
    assert "choose with source.image_member, as rgb.png" in caplog.text
    both = write_tar(tmp_path / "z.tar", {"a.jpg": b"", "a.png": b""})
    assert [ref.path for ref in open_source(both).shards[0].refs()] == ["a.jpg"]
    assert "1 samples have several images (jpg, png)" in caplog.text


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.csv", "x.txt"])
@pytest.mark.parametrize("extra", [0, 1000])
def test_a_pointer_of_git_lfs_is_no_damaged_file(tmp_path: Path, name: str, extra: int) -> None:
    (tmp_path / name).write_bytes(POINTER + b"x" * extra)
    with pytest.raises(InputError, match=rf"{name} is a pointer of Git LFS.*run git lfs pull"):
        [shard.refs() for shard in open_source(tmp_path / name).shards]
