import errno
import hashlib
import logging
import os
import time

import pytest

from beit.common.errors import InputError
from beit.common.shards.ahead import RemoteShards, ShardRange
from beit.common.shards.cache import DamagedShard, RemoteShard, ShardCache
from beit.common.storage.place import RemoteError
from beit.tests.file_server import FileServer, serve
from beit.tests.impatience import hurry

SIZE = 4000


@pytest.fixture
def server(monkeypatch):
    hurry(monkeypatch, retries=2)
    with serve(FileServer({f"/{number}.tar": bytes([number]) * SIZE for number in range(4)})) as server:
        yield server


@pytest.fixture
def shards(server):
    return [
        RemoteShard(f"{server.url}{path}", SIZE, hashlib.sha256(data).hexdigest())
        for path, data in server.files.items()
    ]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_without_a_cache_every_range_is_a_request(server, shards):
    reads = RemoteShards(None)
    reads.expect(shards)
    assert reads.read([ShardRange(shards[1], 5, 2), ShardRange(shards[2], 0, 3)]) == [b"\1\1", b"\2\2\2"]
    assert sorted(server.ranges) == ["bytes=0-2", "bytes=5-6"]


def test_samples_come_as_ranges_until_their_shard_is_there(server, shards, tmp_path):
    cache = ShardCache(tmp_path, 10 * SIZE)
    reads = RemoteShards(cache)
    assert reads.read([ShardRange(shards[1], 5, 2)]) == [b"\1\1"]
    reads.expect([shards[1], shards[3]])
    wait_for(lambda: cache.touch(shards[1]) and cache.touch(shards[3]))
    before = len(server.requests)
    assert reads.read([ShardRange(shards[1], 5, 2), ShardRange(shards[3], 9, 1)]) == [b"\1\1", b"\3"]
    assert len(server.requests) == before
    assert not cache.touch(shards[0])


def test_ranges_fetched_ahead_are_asked_for_once(server, shards):
    reads = RemoteShards(None)
    ranges = [ShardRange(shards[number], 7, 4) for number in range(4)]
    reads.read_ahead([*ranges, ranges[0]])
    assert [reads.read([wanted]) for wanted in ranges] == [[bytes([number]) * 4] for number in range(4)]
    assert len(server.requests) == 4
    assert reads.read([ranges[0]]) == [bytes(4)]  # used up: it is fetched again


def test_shards_no_longer_expected_are_let_go_of(server, shards, tmp_path):
    cache = ShardCache(tmp_path, 2 * SIZE)
    reads = RemoteShards(cache)
    for number in range(3):
        reads.expect(shards[number : number + 2])
        wait_for(lambda now=number: cache.touch(shards[now]) and cache.touch(shards[now + 1]))
        assert reads.read([ShardRange(shards[number], 0, 1)]) == [bytes([number])]


def test_a_damaged_shard_stops_the_reading_and_is_named(server, shards, tmp_path):
    server.files["/2.tar"] = bytes(SIZE)
    reads = RemoteShards(ShardCache(tmp_path, 10 * SIZE))
    reads.expect([shards[2], shards[0]])
    wait_for(lambda: reads._cache.touch(shards[0]))
    assert reads.read([ShardRange(shards[0], 0, 1)]) == [b"\0"]
    with pytest.raises(DamagedShard, match=f"{server.url}/2.tar is damaged"):
        reads.read([ShardRange(shards[2], 0, 1)])


def test_a_shard_that_does_not_fit_is_read_in_ranges_and_said_once(server, shards, tmp_path, caplog):
    reads = RemoteShards(ShardCache(tmp_path, SIZE))
    with caplog.at_level(logging.WARNING):
        reads.expect(shards)
        wait_for(
            lambda: "reader.cache_bytes is 4000, the shards in use and the next ones have 16000 bytes" in caplog.text
        )
        wait_for(lambda: not reads._filler._pending)
    assert [reads.read([ShardRange(shard, 1, 1)])[0][0] for shard in shards] == [0, 1, 2, 3]
    reads.close()
    assert caplog.text.count("is full") == 1


def test_a_disk_that_cannot_be_written_costs_the_cache_not_the_run(server, shards, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    reads = RemoteShards(ShardCache(tmp_path, 10 * SIZE))
    with caplog.at_level(logging.WARNING):
        reads.expect(shards)
        wait_for(lambda: "No space left on device" in caplog.text)
    assert reads.read([ShardRange(shards[1], 0, 1)]) == [b"\1"]


def test_a_server_that_goes_away_is_named(shards, tmp_path, monkeypatch):
    hurry(monkeypatch, retries=1)
    with serve(FileServer({"/0.tar": bytes(SIZE)})) as server:
        shard = RemoteShard(f"{server.url}/0.tar", SIZE)
        reads = RemoteShards(ShardCache(tmp_path, 10 * SIZE))
        assert reads.read([ShardRange(shard, 0, 1)]) == [b"\0"]
    reads.expect([shard])
    with pytest.raises(RemoteError, match=rf"^{server.url}/0.tar cannot be reached"):
        reads.read([ShardRange(shard, 1, 1)])


def test_a_range_behind_the_end_is_an_error_not_a_short_image(server, shards):
    server.files["/0.tar"] = bytes(10)
    for offset in (5, 500):
        with pytest.raises(InputError, match=f"0.tar ends before byte {offset + 20}"):
            RemoteShards(None).read([ShardRange(shards[0], offset, 20)])


def test_a_bug_of_the_thread_is_raised_where_it_is_seen(server, shards, tmp_path, monkeypatch):
    reads = RemoteShards(ShardCache(tmp_path, 10 * SIZE))
    monkeypatch.setattr(ShardCache, "fill", lambda *_, **__: 1 / 0)
    reads.expect(shards)
    wait_for(lambda: reads._filler._failure is not None)
    with pytest.raises(RuntimeError, match="the thread that fills the shard cache failed") as caught:
        reads.read([ShardRange(shards[0], 0, 1)])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
