import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from beit.common.errors import InputError
from beit.common.storage.tar_walk import TarIndex, group_samples, split_name, walk_tar

BLOCK = 512


def make_tar(members: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def samples(count: int = 4) -> dict[str, bytes]:
    return {f"{number:03d}.{suffix}": bytes([number]) * 700 for number in range(count) for suffix in ("jpg", "json")}


def walk(data: bytes) -> TarIndex:
    return walk_tar(io.BytesIO(data), label="shard.tar")


def refusal(data: bytes) -> str:
    with pytest.raises(InputError, match=r"shard\.tar") as caught:
        walk(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_and_names_equal_those_of_tarfile(tar_format: int) -> None:
    folder = "a-long-folder-name/" * 5
    members = samples() | {f"{folder}x.jpg": b"deep", "empty.txt": b""}
    if tar_format != tarfile.USTAR_FORMAT:
        members |= {f"{folder * 3}y.jpg": b"deeper", "café.jpg": b"utf-8"}
    data = make_tar(members, tar_format)
    index = walk(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(m.name, m.offset, m.size) for m in index.members] == [(m.name, m.offset_data, m.size) for m in tar]
    assert {m.name: data[m.offset : m.offset + m.size] for m in index.members} == members
    assert index.size_bytes == len(data)


def test_header_digest_is_over_the_header_blocks_and_sees_every_change_of_them() -> None:
    data = make_tar({"a.jpg": b"x" * 600})
    end = BLOCK + 1024
    assert walk(data).header_sha256 == hashlib.sha256(data[:BLOCK] + data[end : end + BLOCK]).hexdigest()
    assert walk(data).header_sha256 == walk(make_tar({"a.jpg": b"y" * 600})).header_sha256
    others = [{"b.jpg": b"x" * 600}, {"a.jpg": b"x" * 601}, {"a.jpg": b"x" * 600, "b.jpg": b""}]
    assert len({walk(make_tar(other)).header_sha256 for other in [{"a.jpg": b"x" * 600}, *others]}) == 4


@pytest.mark.parametrize("num_members", range(9))
def test_tar_cut_before_any_sample_is_truncated(num_members: int) -> None:
    cut = num_members * 3 * BLOCK  # every member has one header and two payload blocks
    message = refusal(make_tar(samples())[:cut])
    assert ("truncated" in message and "end-of-archive" in message) or (cut == 0 and "empty" in message)


@pytest.mark.parametrize("extra", [1, 100, 511])
@pytest.mark.parametrize("num_members", [0, 3, 7])
def test_tar_cut_inside_a_header_is_truncated(num_members: int, extra: int) -> None:
    assert "truncated" in refusal(make_tar(samples())[: num_members * 3 * BLOCK + extra])


@pytest.mark.parametrize("extra", [512, 513, 512 + 699])
@pytest.mark.parametrize("num_members", [0, 3, 7])
def test_tar_cut_inside_a_payload_is_truncated_and_names_the_member(num_members: int, extra: int) -> None:
    message = refusal(make_tar(samples())[: num_members * 3 * BLOCK + extra])
    assert "truncated" in message and list(samples())[num_members] in message


def test_every_flipped_bit_of_a_header_is_found() -> None:
    data = make_tar(samples())
    header = 3 * BLOCK
    for position in range(header, header + BLOCK):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        if damaged[148 + header : 156 + header] != data[148 + header : 156 + header]:
            continue  # the spelling of the checksum itself: a changed blank can leave its value as it was
        assert "checksum" in refusal(bytes(damaged))


def test_zeroed_span_is_not_taken_for_the_end() -> None:
    data = bytearray(make_tar(samples()))
    data[6 * BLOCK : 12 * BLOCK] = bytes(6 * BLOCK)
    assert "damaged" in refusal(bytes(data))


def test_joined_tars_are_refused() -> None:
    assert "cat" in refusal(make_tar({"a.jpg": b"1"}) + make_tar({"b.jpg": b"2"}))


def test_one_end_block_is_enough() -> None:
    assert len(walk(make_tar(samples())[: 8 * 3 * BLOCK + BLOCK]).members) == 8


def test_what_is_not_a_tar_is_refused() -> None:
    assert "not a tar" in refusal(b"x" * 2000)
    assert "compressed" in refusal(b"\x1f\x8b" + b"x" * 2000)


def test_links_devices_and_folders_are_passed_over() -> None:
    buffer = io.BytesIO()
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in kinds:
            member = tarfile.TarInfo(f"odd{ord(kind)}.jpg")
            member.type = kind
            member.linkname = "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("real.jpg")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert [member.name for member in walk(buffer.getvalue()).members] == ["real.jpg"]


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "a\nb.jpg", "a\x7fb.jpg", "a\x1bb.jpg"])
def test_hostile_names_are_refused(name: str) -> None:
    refusal(make_tar({"good.jpg": b"1", name: b"2"}, tarfile.GNU_FORMAT))


def test_name_that_is_not_utf8_is_refused() -> None:
    data = bytearray(make_tar({"caf_.jpg": b"1"}))
    data[3] = 0xE9
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:BLOCK]))
    assert "UTF-8" in refusal(bytes(data))


def test_huge_claims_are_refused_without_reading() -> None:
    data = bytearray(make_tar({"a.jpg": b"1"}))
    data[124:136] = b"\x80" + (10 << 30).to_bytes(11, "big")
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:BLOCK]))
    assert "truncated" in refusal(bytes(data))
    long_name = bytearray(make_tar({"x" * 200 + ".jpg": b"1"}, tarfile.GNU_FORMAT))
    long_name[124:136] = b"%011o\0" % (2 << 20)
    long_name[148:156] = b"%06o\0 " % (sum(long_name[:148]) + 8 * 32 + sum(long_name[156:BLOCK]))
    assert "extended header" in refusal(bytes(long_name))


@pytest.mark.parametrize("record", [b"junk", b"0 a=b\n", b"9" * 5000 + b" size=1\n", b"99 path=x\n", b"9 path x\n"])
def test_malformed_pax_headers_are_refused(record: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("pax")
        member.type = tarfile.XHDTYPE
        member.size = len(record)
        buffer.write(member.tobuf() + record + bytes(-len(record) % BLOCK))
        tar.offset = buffer.tell()
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert "pax header" in refusal(buffer.getvalue())


def test_works_on_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(make_tar(samples()))
    with path.open("rb", buffering=0) as file:
        assert len(walk_tar(file, label=str(path)).members) == 8


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b.c.JPG", ("a/b", "c.jpg")), ("x.jpg", ("x", "jpg")), ("d.1/x.cls", ("d.1/x", "cls")), ("noext", None),
     (".hidden.jpg", None), ("a/._x.jpg", None), ("__meta__", None),
     ("__meta__.json", ("__meta__", "json")), ("__keys__/x.json", None)],
)  # fmt: skip
def test_names_split_as_webdataset_splits_them(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_grouping_keeps_order_and_refuses_repeated_keys() -> None:
    index = walk(make_tar(samples(2) | {"README": b"", "b/x.png": b""}))
    groups = group_samples(index.members, label="shard.tar")
    assert {key: list(group) for key, group in groups.items()} == {
        "000": ["jpg", "json"], "001": ["jpg", "json"], "b/x": ["png"]
    }  # fmt: skip
    for repeated in ({"a.jpg": b"", "b.jpg": b"", "a.txt": b""}, {"a.jpg": b"", "a.JPG": b""}):
        with pytest.raises(InputError, match="twice"):
            group_samples(walk(make_tar(repeated)).members, label="shard.tar")


def test_grouping_agrees_with_webdataset(tmp_path: Path) -> None:
    members = samples(3) | {"sub.dir/a.b.jpg": b"1", "sub.dir/a.cls": b"2", ".hid.jpg": b"", "__m__": b"", "plain": b""}
    path = tmp_path / "x.tar"
    path.write_bytes(make_tar(members))
    theirs = {
        sample["__key__"]: {name for name in sample if not name.startswith("__")}
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    ours = group_samples(walk(path.read_bytes()).members, label="x")
    assert {key: set(group) for key, group in ours.items()} == theirs
