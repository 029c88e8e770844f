"""Every kind of place keeps the same promises: a folder, a bucket, what fsspec knows."""

import io
import threading

import fsspec
import pytest

from beit.common.errors import InputError
from beit.common.storage import fsspec_store, object_store, remote_place
from beit.common.storage.local_place import LocalPlace
from beit.common.storage.place import ByteRange, MissingFile, RemoteError, copy_file, place_of, read_ranges
from beit.common.storage.remote_place import PIECE_BYTES
from beit.tests.file_server import FileServer, serve
from beit.tests.impatience import hurry
from beit.tests.s3_server import serve_s3

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    hurry(monkeypatch, retries=3)


@pytest.fixture
def server():
    with serve(FileServer({"/a.tar": CONTENT, "/b.tar": CONTENT[::-1]})) as server:
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
def root(request, tmp_path):
    if request.param == "folder":
        yield place_of(str(tmp_path / "data"))
    elif request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]
        yield place_of("memory://bucket/data")
    else:
        with serve_s3({}) as url:
            yield place_of(f"{url}/data")


def test_what_is_written_is_there_and_what_is_removed_is_not(root):
    file = root / "x"
    assert not file.exists() and root.files() == root.names() == [] and not root.is_folder()
    with pytest.raises(MissingFile, match=f"^{file} "):
        file.read()
    file.write(b"one")
    file.write(b"two")
    with (root / "y").new_file() as new:
        new.write(b"three")
    (root / "deep/z 1%.txt").write(b"")
    (root / ".hidden").write(b"h")
    assert file.read() == b"two" and file.read(limit=2) == b"tw" and file.stat().size == 3
    assert [(found.path, found.size) for found in root.files()] == [(".hidden", 1), ("x", 3), ("y", 5)]
    assert sorted(found.path for found in root.walk()) == ["deep/z 1%.txt", "x", "y"]
    assert root.names() == [".hidden", "deep", "x", "y"] and root.is_folder()
    assert file.stat().modified_ns <= (root / "y").stat().modified_ns
    file.remove()
    file.remove()
    assert not file.exists()


def test_a_file_that_was_given_up_does_not_appear(root):
    with pytest.raises(ZeroDivisionError), (root / "x").new_file() as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not (root / "x").exists() and root.files() == []


def test_ranges_pieces_and_open_files_agree(root):
    data = CONTENT * 2000  # three pieces
    assert 2 * PIECE_BYTES < len(data) < 3 * PIECE_BYTES
    with (root / "big").new_file() as file:
        file.write(data)
    (root / "small").write(CONTENT)
    big, small = str(root / "big"), str(root / "small")
    wanted = [(5, 9), (0, 3), (200, 300), (len(data) - 4, len(data))]
    ranges = [ByteRange(big, *part) for part in wanted] + [ByteRange(small, 7, 8)]
    assert read_ranges(ranges) == [data[start:end] for start, end in wanted] + [CONTENT[7:8]]
    target = io.BytesIO()
    copy_file(root / "big", target)
    assert target.getvalue() == data
    with (root / "small").open() as file:
        assert file.seek(-4, io.SEEK_END) == len(CONTENT) - 4 and file.read(3) == CONTENT[-4:-1]
        assert file.read() == CONTENT[-1:] and file.read(5) == b""
        file.seek(2)
        buffer = bytearray(4)
        assert file.readinto(buffer) == 4 and bytes(buffer) == CONTENT[2:6] and file.tell() == 6


@pytest.mark.parametrize("part", [(len(CONTENT) - 2, len(CONTENT) + 5), (len(CONTENT) + 10, len(CONTENT) + 20)])
def test_a_range_behind_the_end_is_short(root, server, part):
    (root / "a.tar").write(CONTENT)
    for file in (str(root / "a.tar"), f"{server.url}/a.tar"):
        assert read_ranges([ByteRange(file, *part)]) == [CONTENT[slice(*part)]]
        assert read_ranges([ByteRange(file, 0, 1), ByteRange(file, *part)]) == [CONTENT[:1], CONTENT[slice(*part)]]


def test_a_file_is_created_once_and_replaced_only_if_it_is_the_one_that_was_seen(root):
    file = root / "lease"
    (root / "other").write(b"")
    assert file.create(b"first") and not file.create(b"other")
    assert not file.replace(b"third", b"xxxxx".__eq__) and file.read() == b"first"
    assert file.replace(b"beat1", b"first".__eq__) and file.read() == b"beat1"
    file.remove()
    assert not file.replace(b"third", b"first".__eq__) and not file.take(b"third", b"first".__eq__)
    file.create(b"dead.")
    assert not file.take(b"third", b"alive".__eq__) and file.read() == b"dead."
    assert file.take(b"third", b"dead.".__eq__) and file.read() == b"third"
    assert [found.path for found in root.files()] == ["lease", "other"]


def test_of_two_that_take_the_same_lease_at_the_same_moment_one_gets_it():
    with serve_s3({}) as url:
        file = place_of(f"{url}/lease")
        for _ in range(5):
            file.write(b"dead")
            start, results = threading.Barrier(4), []

            def take(name, start=start, results=results):
                start.wait()
                results.append(file.take(name, b"dead".__eq__))

            takers = [threading.Thread(target=take, args=(bytes([number]),)) for number in range(4)]
            for taker in takers:
                taker.start()
            for taker in takers:
                taker.join()
            assert sorted(results) == [False, False, False, True]


def test_neighbours_are_asked_for_in_one_request(server):
    url = f"{server.url}/a.tar"
    ranges = [
        ByteRange(url, 5000, 5010),
        ByteRange(url, 0, 4),
        ByteRange(f"{server.url}/b.tar", 0, 3),
        ByteRange(url, 2, 9),
    ]
    assert read_ranges(ranges) == [CONTENT[5000:5010], CONTENT[:4], CONTENT[::-1][:3], CONTENT[2:9]]
    assert sorted(map(str, server.ranges)) == ["bytes=0-2", "bytes=0-5009"]


@pytest.mark.parametrize("statuses", [[503], [500, 429], [503] * 3])
def test_passing_failures_are_tried_again(server, statuses):
    server.statuses = list(statuses)
    assert place_of(f"{server.url}/a.tar").read() == CONTENT
    assert len(server.ranges) == 1 + len(statuses)


def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(server):
    server.breaks = [2]
    assert place_of(f"{server.url}/a.tar").read() == CONTENT


def test_a_server_that_falls_silent_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(object_store, "SILENCE_SECONDS", 0.2)
    remote_place.forget_stores()
    server.breaks, server.stall = [3], threading.Event()
    assert read_ranges([ByteRange(f"{server.url}/a.tar", 5, 100)]) == [CONTENT[5:100]]
    assert len(server.ranges) == 2


def test_a_lasting_failure_is_one_line_with_the_url_after_a_bounded_number_of_attempts(server):
    server.statuses = [503] * 100
    with pytest.raises(RemoteError, match=rf"^{server.url}/a.tar cannot be read: the server answers 503 .*$") as caught:
        place_of(f"{server.url}/a.tar").read()
    assert "\n" not in str(caught.value)
    assert len(server.ranges) == 4


def test_a_refusal_is_final(server):
    server.statuses = [403] * 2
    with pytest.raises(InputError, match=r"a.tar may not be read \(403 Forbidden\); check the credentials$"):
        place_of(f"{server.url}/a.tar").read()
    assert len(server.ranges) == 1


def test_a_missing_file_is_told_apart_from_a_missing_server(server):
    with pytest.raises(MissingFile, match="c.tar does not exist"):
        place_of(f"{server.url}/c.tar").read()
    assert not place_of(f"{server.url}/c.tar").exists()
    with pytest.raises(RemoteError, match="cannot be reached .*refused.*; check address and network$"):
        place_of("http://127.0.0.1:1/a.tar").stat()
    with pytest.raises(InputError, match="cannot be reached") as caught:
        place_of("http://127.0.0.1:1/a.tar", is_first_contact=True).stat()
    assert not isinstance(caught.value, MissingFile)


def test_a_server_without_ranges_is_refused(server):
    server.has_ranges = False
    with pytest.raises(InputError, match="a.tar cannot be read at offsets on this server"):
        read_ranges([ByteRange(f"{server.url}/a.tar", 5, 9)])
    assert place_of(f"{server.url}/a.tar").stat().size == len(CONTENT)


def test_size_and_version_are_told(server):
    found = place_of(f"{server.url}/a.tar").stat()
    assert (found.size, found.version) == (len(CONTENT), '"v1"')


def test_a_file_that_changes_while_it_is_read_is_noticed(server):
    with place_of(f"{server.url}/a.tar").open(read_ahead=False) as file:
        file.read(3)
        server.etag = '"v2"'
        with pytest.raises(InputError, match="a.tar changed while it was read"):
            file.read(3)
    with serve_s3({"x": b"12345"}) as bucket, place_of(f"{bucket}/x").open(read_ahead=False) as file:
        assert file.read(2) == b"12"
        place_of(f"{bucket}/x").write(b"abcde")
        with pytest.raises(InputError, match="x changed while it was read"):
            file.read(2)


def test_a_bucket_that_is_not_there_is_said_so():
    with serve_s3({}), pytest.raises(InputError, match="^s3://other/x names a bucket that does not exist$"):
        place_of("s3://other/x").write(b"x")


def test_missing_credentials_are_one_line(tmp_path, monkeypatch):
    with serve_s3({}) as bucket:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(variable)
        for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(variable, str(tmp_path / "none"))
        remote_place.forget_stores()
        with pytest.raises(
            InputError, match=r"needs credentials \(Unable to locate credentials\); .*AWS_SKIP_SIGNATURE"
        ):
            place_of(f"{bucket}/x").read()


def test_the_files_of_a_profile_are_read_by_boto3(tmp_path, monkeypatch):
    with serve_s3({"x": b"1"}) as bucket:
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(variable)
        (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        monkeypatch.setenv("AWS_PROFILE", "mine")
        remote_place.forget_stores()
        assert place_of(f"{bucket}/x").read() == b"1"


def test_headers_for_web_servers_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("BEIT_HTTP_HEADERS", '{"Authorization": "Bearer x"}')
    remote_place.forget_stores()
    place_of(f"{server.url}/a.tar").read()
    place_of(server.url).walk()
    assert [headers["Authorization"] for headers in server.requests] == ["Bearer x"] * 2
    monkeypatch.setenv("BEIT_HTTP_HEADERS", "Bearer x")
    remote_place.forget_stores()
    with pytest.raises(InputError, match="BEIT_HTTP_HEADERS must be JSON"):
        place_of(f"{server.url}/a.tar").read()


def test_a_local_lease_that_was_replaced_between_judging_and_taking_is_put_back(tmp_path, monkeypatch):
    import os

    file, rename = LocalPlace(str(tmp_path / "lease")), os.rename
    file.create(b"dead")

    def overtaken(source, target):
        file.path.write_bytes(b"fast")
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    assert not file.take(b"mine", b"dead".__eq__)
    assert file.read() == b"fast" and [found.path for found in (LocalPlace(str(tmp_path))).files()] == ["lease"]


@pytest.fixture(params=[fsspec_store.FsspecStore, object_store.ObjectStore], ids=["memory", "s3"])
def store_class(request):
    """A kind of store; `far` is a place in it."""
    return request.param


@pytest.fixture
def far(store_class):
    if store_class is object_store.ObjectStore:
        with serve_s3({}) as url:
            yield place_of(f"{url}/folder/x")
    else:
        fsspec.filesystem("memory").store.clear()
        yield place_of("memory://bucket/folder/x")


def test_a_creation_whose_answer_was_lost_is_the_own_one(store_class, far, monkeypatch):
    put = store_class.put

    def lose_the_answer(*arguments, **options):
        put(*arguments, **options)
        raise ConnectionResetError("broken")

    monkeypatch.setattr(store_class, "put", lose_the_answer)
    assert far.create(b"first")
    assert far.read() == b"first"
    monkeypatch.undo()
    assert not far.create(b"second")


@pytest.mark.parametrize("times", [1, 9])
def test_an_upload_that_arrives_cut_is_done_again_and_then_an_error(store_class, far, monkeypatch, times):
    put, cuts = store_class.put, []

    def cut(self, key, data, **options):
        put(self, key, data, **options)
        if len(cuts) < times:
            cuts.append(key)
            put(self, key, b"th")
        return True

    monkeypatch.setattr(store_class, "put", cut)
    if times == 1:
        far.write_file(io.BytesIO(b"three"))
        assert far.read() == b"three"
    else:
        with pytest.raises(RemoteError, match=rf"^{far} cannot be written \(2 of 5 bytes arrived\)$"):
            far.write_file(io.BytesIO(b"three"))
