import threading

import fsspec
import pytest

from beit.common.errors import InputError
from beit.common.storage.ranges import ByteRange, MissingFile, fetch, fetch_ranges, remote_stat
from beit.common.storage.remote_file import RemoteError
from beit.tests.file_server import FileServer, serve
from beit.tests.s3_server import serve_s3

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("beit.common.storage.remote_file._PAUSES_SECONDS", (0.0, 0.0, 0.0))
    with serve(FileServer({"/a.tar": CONTENT, "/b.tar": CONTENT[::-1]})) as server:
        yield server


def ranges_of(server):
    return [
        ByteRange(f"{server.url}/a.tar", 5, 9),
        ByteRange(f"{server.url}/b.tar", 0, 3),
        ByteRange(f"{server.url}/a.tar"),
    ]


def test_ranges_and_whole_files_come_in_order(server):
    assert fetch_ranges(ranges_of(server)) == [CONTENT[5:9], CONTENT[::-1][:3], CONTENT]
    assert sorted(map(str, server.ranges)) == ["None", "bytes=0-2", "bytes=5-8"]


@pytest.mark.parametrize("statuses", [[503], [500, 429], [503] * 3])
def test_passing_failures_are_tried_again(server, statuses):
    server.statuses = list(statuses)
    assert fetch_ranges(ranges_of(server)) == [CONTENT[5:9], CONTENT[::-1][:3], CONTENT]
    assert len(server.ranges) == 3 + len(statuses)


def test_a_connection_that_breaks_off_is_tried_again(server):
    server.breaks = [2]
    assert fetch(f"{server.url}/a.tar") == CONTENT


def test_a_server_that_falls_silent_is_asked_again(server, monkeypatch):
    monkeypatch.setattr("beit.common.storage.ranges.ATTEMPT_SECONDS", 0.2)
    server.breaks, server.stall = [3], threading.Event()
    assert fetch_ranges([ByteRange(f"{server.url}/a.tar", 5, 100)]) == [CONTENT[5:100]]
    assert len(server.ranges) == 2


def test_a_lasting_failure_is_one_line_with_the_url_after_a_bounded_number_of_attempts(server):
    server.statuses = [503] * 100
    with pytest.raises(RemoteError, match=rf"^{server.url}/a.tar cannot be read: the server answers 503") as caught:
        fetch(f"{server.url}/a.tar")
    assert "\n" not in str(caught.value)
    assert len(server.ranges) == 5


def test_a_refusal_is_final(server):
    server.statuses = [403] * 2
    with pytest.raises(InputError, match="may not be read"):
        fetch(f"{server.url}/a.tar")
    assert len(server.ranges) == 2


def test_a_missing_file_is_told_apart_from_a_missing_server(server):
    with pytest.raises(MissingFile, match="c.tar does not exist"):
        fetch(f"{server.url}/c.tar")
    with pytest.raises(MissingFile):
        remote_stat(f"{server.url}/c.tar")
    with pytest.raises(RemoteError, match="cannot be reached"):
        remote_stat("http://127.0.0.1:1/a.tar")
    with pytest.raises(InputError, match="cannot be reached") as caught:
        remote_stat("http://127.0.0.1:1/a.tar", is_first_contact=True)
    assert not isinstance(caught.value, MissingFile)


def test_a_server_without_ranges_is_refused(server):
    server.has_ranges = False
    with pytest.raises(InputError, match="a.tar cannot be read at offsets on this server"):
        fetch_ranges([ByteRange(f"{server.url}/a.tar", 5, 9)])


@pytest.mark.parametrize("place", [(len(CONTENT) - 2, len(CONTENT) + 5), (len(CONTENT) + 10, len(CONTENT) + 20)])
def test_a_range_behind_the_end_is_short(place):
    with serve(FileServer({"/a.tar": CONTENT})) as server, serve_s3({"a.tar": CONTENT}) as bucket:
        for root in (server.url, bucket):
            assert fetch_ranges([ByteRange(f"{root}/a.tar", *place)]) == [CONTENT[slice(*place)]]


def test_size_and_version_are_told(server):
    assert remote_stat(f"{server.url}/a.tar").size == len(CONTENT)
    assert remote_stat(f"{server.url}/a.tar").version == '"v1"'


def test_file_systems_without_async_calls_work():
    fsspec.filesystem("memory").pipe("/a.tar", CONTENT)
    try:
        assert fetch_ranges([ByteRange("memory://a.tar", 3, 7), ByteRange("memory://a.tar")]) == [CONTENT[3:7], CONTENT]
    finally:
        fsspec.filesystem("memory").rm("/a.tar")
