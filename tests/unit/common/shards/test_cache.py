import errno
import fcntl
import hashlib
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from beit.common.errors import InputError
from beit.common.shards.cache import DamagedShard, Fill, RemoteShard, ShardCache
from beit.common.shards.file_pool import pread
from beit.common.storage.tar_walk import walk_tar
from beit.tests.file_server import FileServer, serve
from beit.tests.tiny_store import write_members

SIZE = 5000


@pytest.fixture
def server():
    files = {f"/{number}.tar": bytes([number]) * SIZE for number in range(5)}
    with serve(FileServer(files)) as server:
        yield server


def shard_of(server, number, **changes):
    content = server.files[f"/{number}.tar"]
    known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes}
    return RemoteShard(f"{server.url}/{number}.tar", **known)


def content_of(cache, shard):
    descriptor = cache.open(shard)
    try:
        return pread(descriptor, 0, shard.size + 1)
    finally:
        os.close(descriptor)


def used_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("*.*") if path.name != ".lock")


def test_a_shard_is_fetched_once_and_read_as_it_is(server, tmp_path):
    cache, shard = ShardCache(tmp_path / "new" / "cache", 10 * SIZE), shard_of(server, 3)
    assert cache.open(shard) is None
    assert cache.fill(shard) is Fill.DONE
    assert cache.fill(shard) is Fill.PRESENT
    assert ShardCache(tmp_path / "new" / "cache", 10 * SIZE).fill(shard) is Fill.PRESENT
    assert len(server.requests) == 1
    assert content_of(cache, shard) == server.files["/3.tar"]


def test_a_shard_comes_in_pieces(server, tmp_path, monkeypatch):
    monkeypatch.setattr("beit.common.storage.remote_place.PIECE_BYTES", 512)
    server.files["/0.tar"] = os.urandom(SIZE)
    cache, shard = ShardCache(tmp_path, 10 * SIZE), shard_of(server, 0)
    assert cache.fill(shard) is Fill.DONE
    assert content_of(cache, shard) == server.files["/0.tar"]
    assert len(server.requests) == 10


def test_many_processes_fetch_a_shard_once(server, tmp_path):
    shard, start = shard_of(server, 1), threading.Barrier(8)

    def fill(_):
        start.wait()
        return ShardCache(tmp_path, 10 * SIZE).fill(shard)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(fill, range(8)))
    assert outcomes.count(Fill.DONE) == 1
    assert set(outcomes) <= {Fill.DONE, Fill.BUSY, Fill.PRESENT}
    assert len(server.requests) == 1


def test_what_a_killed_process_left_is_fetched_anew(server, tmp_path):
    cache, shard = ShardCache(tmp_path, 10 * SIZE), shard_of(server, 1)
    part = (tmp_path / shard.cache_name).with_suffix(".part")
    part.write_bytes(bytes(9 * SIZE))
    assert cache.fill(shard) is Fill.DONE
    assert not part.exists()
    assert content_of(cache, shard) == server.files["/1.tar"]


def test_a_shard_that_another_process_fetches_is_left_to_it(server, tmp_path):
    cache, shard = ShardCache(tmp_path, 10 * SIZE), shard_of(server, 1)
    with (tmp_path / shard.cache_name).with_suffix(".part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert cache.fill(shard) is Fill.BUSY
    assert cache.fill(shard) is Fill.DONE


def test_the_least_recently_used_make_room(server, tmp_path):
    cache, shards = ShardCache(tmp_path, 3 * SIZE), [shard_of(server, number) for number in range(5)]
    for number, shard in enumerate(shards[:3]):
        assert cache.fill(shard) is Fill.DONE
        os.utime(tmp_path / shard.cache_name, (number, number))
    os.close(cache.open(shards[0]))
    assert cache.fill(shards[3]) is Fill.DONE
    assert [cache.touch(shard) for shard in shards] == [True, False, True, True, False]
    assert used_bytes(tmp_path) == 3 * SIZE


def test_what_is_read_or_wanted_stays(server, tmp_path):
    cache, shards = ShardCache(tmp_path, 2 * SIZE), [shard_of(server, number) for number in range(3)]
    assert cache.fill(shards[0]) is cache.fill(shards[1]) is Fill.DONE
    descriptor = ShardCache(tmp_path, 2 * SIZE).open(shards[0])
    assert cache.fill(shards[2], keep={shards[1].cache_name}) is Fill.NO_ROOM
    assert pread(descriptor, 0, SIZE) == server.files["/0.tar"]
    os.close(descriptor)
    assert cache.fill(shards[2], keep={shards[1].cache_name}) is Fill.DONE
    assert [cache.touch(shard) for shard in shards] == [False, True, True]


def test_leavings_make_room_first(server, tmp_path):
    cache = ShardCache(tmp_path, 2 * SIZE)
    assert cache.fill(shard_of(server, 0)) is Fill.DONE
    os.utime(tmp_path / shard_of(server, 0).cache_name, (1, 1))
    (tmp_path / "dead.part").write_bytes(bytes(SIZE))
    assert cache.fill(shard_of(server, 1)) is Fill.DONE
    assert cache.touch(shard_of(server, 0)) and not (tmp_path / "dead.part").exists()


def test_a_shard_larger_than_the_cache_removes_nothing(server, tmp_path):
    cache = ShardCache(tmp_path, SIZE)
    server.files["/4.tar"] = bytes(2 * SIZE)
    assert cache.fill(shard_of(server, 0)) is Fill.DONE
    assert cache.fill(shard_of(server, 4)) is Fill.NO_ROOM
    assert cache.touch(shard_of(server, 0))


def test_a_damaged_shard_is_fetched_twice_and_then_refused(server, tmp_path):
    shard = shard_of(server, 2)
    server.files["/2.tar"] = bytes(SIZE)
    with pytest.raises(DamagedShard, match=f"^{shard.url} is damaged: its sha256"):
        ShardCache(tmp_path, 10 * SIZE).fill(shard)
    assert len(server.requests) == 2
    assert not used_bytes(tmp_path)


def test_a_shard_cut_on_the_server_is_refused(server, tmp_path):
    shard = shard_of(server, 2)
    server.files["/2.tar"] = server.files["/2.tar"][:100]
    with pytest.raises(DamagedShard, match="2.tar is shorter than the 5000 bytes"):
        ShardCache(tmp_path, 10 * SIZE).fill(shard)


def test_without_a_sha256_the_headers_are_compared(server, tmp_path):
    data = write_members(tmp_path / "x.tar", {"a.jpg": b"x" * 700, "b.jpg": b"y"}).read_bytes()
    header_sha256 = walk_tar(io.BytesIO(data), label="x").header_sha256
    server.files["/0.tar"] = data
    shard = shard_of(server, 0, sha256="", header_sha256=header_sha256)
    assert ShardCache(tmp_path / "a", 10**6).fill(shard) is Fill.DONE
    swapped = write_members(tmp_path / "y.tar", {"b.jpg": b"x" * 700, "a.jpg": b"y"}).read_bytes()
    server.files["/0.tar"] = swapped
    with pytest.raises(DamagedShard, match="changed after it was tokenised"):
        ShardCache(tmp_path / "b", 10**6).fill(shard)


def test_a_store_written_anew_at_the_same_address_is_fetched_anew(server, tmp_path):
    cache, before = ShardCache(tmp_path, 10 * SIZE), shard_of(server, 0)
    cache.fill(before)
    server.files["/0.tar"] = b"\7" * SIZE
    after = shard_of(server, 0)
    assert cache.open(after) is None
    cache.fill(after)
    assert content_of(cache, after) == server.files["/0.tar"]


def test_a_shard_that_was_cut_in_the_cache_is_fetched_anew(server, tmp_path):
    cache, shard = ShardCache(tmp_path, 10 * SIZE), shard_of(server, 1)
    cache.fill(shard)
    os.truncate(tmp_path / shard.cache_name, 10)
    assert cache.open(shard) is None
    assert cache.fill(shard) is Fill.DONE
    assert content_of(cache, shard) == server.files["/1.tar"]


def test_a_full_disk_leaves_nothing_half_written(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        ShardCache(tmp_path, 10 * SIZE).fill(shard_of(server, 0))
    assert not used_bytes(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"reader.cache_dir .*file/cache.*reader.cache_bytes=0"):
        ShardCache(tmp_path / "file" / "cache", 1)
