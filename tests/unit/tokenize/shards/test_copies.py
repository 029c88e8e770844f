import errno
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from beit.common.errors import ResumableStop
from beit.common.sources.tars import TarShard
from beit.common.storage import remote_place
from beit.tests.file_server import FileServer, serve
from beit.tests.tiny_store import encoded_image, write_members
from beit.tokenize.shards import copies
from beit.tokenize.shards.copies import TarCopies


def tar(location):
    return TarShard("x", location)


@pytest.fixture
def content(tmp_path):
    write_members(tmp_path / "x.tar", {f"{number}.jpg": encoded_image(number) for number in range(6)})
    return (tmp_path / "x.tar").read_bytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def never():
    pass


def test_a_local_tar_is_used_where_it_is(tmp_path, folder, content):
    local = tar(str(tmp_path / "x.tar"))
    with TarCopies(folder, never) as tars, tars.at_hand(local) as at_hand:
        assert at_hand is local


def test_a_copy_has_the_bytes_the_hash_and_no_name(folder, content, monkeypatch):
    monkeypatch.setattr(remote_place, "PIECE_BYTES", 1000)
    with serve(FileServer({"/x.tar": content})) as server, TarCopies(folder, never) as tars:
        with tars.at_hand(tar(f"{server.url}/x.tar")) as at_hand:
            assert os.pread(at_hand.copy.file.fileno(), len(content) + 1, 0) == content
            assert at_hand.copy.sha256 == hashlib.sha256(content).hexdigest()
            assert [ref.key for ref in at_hand.refs()] == [str(number) for number in range(6)]
            assert list(folder.iterdir()) == []
        assert at_hand.copy.file.closed


def test_the_following_tar_is_fetched_meanwhile(folder, content):
    with serve(FileServer({"/0.tar": content, "/1.tar": content})) as server, TarCopies(folder, never) as tars:
        first, second = (tar(f"{server.url}/{number}.tar") for number in range(2))
        with tars.at_hand(first, second):
            with ThreadPoolExecutor(1) as pool:  # the second is there while the first is still open
                assert pool.submit(lambda: tars._wait_for(second.location).sha256).result(60)
        assert server.paths[-1] == "/1.tar"


def test_a_tar_that_was_fetched_in_vain_is_let_go(folder, content, monkeypatch):
    files = []
    temporary_file = copies.tempfile.TemporaryFile
    monkeypatch.setattr(
        copies.tempfile, "TemporaryFile", lambda **options: files.append(temporary_file(**options)) or files[-1]
    )
    with serve(FileServer({f"/{number}.tar": content for number in range(3)})) as server:
        first, second, third = (tar(f"{server.url}/{number}.tar") for number in range(3))
        with TarCopies(folder, never) as tars:
            with tars.at_hand(first, second):
                pass
            with tars.at_hand(third):
                pass
    assert len(files) in (2, 3)  # the second may not have been begun
    deadline = time.monotonic() + 30
    while not all(file.closed for file in files):  # what was still on its way is closed when it is here
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stop_is_heard_while_waiting(folder, content):
    def stop():
        raise ResumableStop("enough")

    server = FileServer({"/x.tar": content}, stall=threading.Event(), breaks=[0])
    with serve(server), pytest.raises(ResumableStop), TarCopies(folder, stop) as tars:
        try:
            with tars.at_hand(tar(f"{server.url}/x.tar")):
                pass
        finally:
            server.stall.set()
    assert list(folder.iterdir()) == []


def test_a_full_disk_names_the_folder(folder, content, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    monkeypatch.setattr(copies.tempfile, "TemporaryFile", lambda **options: Full())
    with serve(FileServer({"/x.tar": content})) as server, TarCopies(folder, never) as tars:
        with pytest.raises(OSError, match="No space left on device.*store"), tars.at_hand(tar(f"{server.url}/x.tar")):
            pass
