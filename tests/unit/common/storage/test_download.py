import errno
import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from beit.common.errors import InputError
from beit.common.storage import download as module
from beit.common.storage.download import DownloadError, download
from beit.tests.file_server import FileServer, serve

CONTENT = bytes(range(256)) * 12_000  # 3 MB


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return pauses


def accept(file: Path) -> None:
    pass


def fetch(server: FileServer, folder: Path, *more_urls: str, check: Any = accept) -> str:
    return download([f"{server.url}/file", *more_urls], folder / "file", check=check)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leave_part(folder: Path, server: FileServer, count: int, *, size: int = len(CONTENT)) -> None:
    (folder / "file.part").write_bytes(CONTENT[:count])
    note = {"url": f"{server.url}/file", "validator": server.etag or "", "size": size}
    (folder / "file.part.json").write_text(json.dumps(note))


def test_a_file_arrives_under_its_name_alone(tmp_path: Path) -> None:
    with serve(FileServer({"/file": CONTENT})) as server:
        assert fetch(server, tmp_path) == f"{server.url}/file"
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names(tmp_path) == ["file"]


def test_a_broken_connection_is_continued_where_it_broke(tmp_path: Path, no_pauses: list[float]) -> None:
    with serve(FileServer({"/file": CONTENT}, breaks=[1_000_000, 700_000])) as server:
        fetch(server, tmp_path)
        assert server.ranges == [None, "bytes=1000000-", "bytes=1700000-"]
        assert server.requests[1]["If-Range"] == '"v1"'
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert no_pauses == [1.0, 1.0]  # each attempt got further


def test_what_an_earlier_process_left_is_continued(tmp_path: Path) -> None:
    with serve(FileServer({"/file": CONTENT})) as server:
        leave_part(tmp_path, server, 2_000_000)
        fetch(server, tmp_path)
        assert server.ranges == ["bytes=2000000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT and names(tmp_path) == ["file"]


def test_a_part_that_only_lacks_its_name_needs_no_network(tmp_path: Path) -> None:
    with serve(FileServer({"/file": CONTENT})) as server:
        leave_part(tmp_path, server, len(CONTENT))
        fetch(server, tmp_path)
        assert server.requests == []
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("change", [{"has_ranges": False}, {"etag": '"v2"'}, {"etag": '"v2"', "obeys_if_range": False}])
def test_a_server_without_ranges_or_with_another_version_starts_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    with serve(FileServer({"/file": CONTENT[::-1]})) as server:
        leave_part(tmp_path, server, 2_000_000)
        for name, value in change.items():
            setattr(server, name, value)
        fetch(server, tmp_path)
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1] and names(tmp_path) == ["file"]


def test_a_part_of_another_length_or_address_is_not_continued(tmp_path: Path) -> None:
    with serve(FileServer({"/file": CONTENT}, etag=None)) as server:
        leave_part(tmp_path, server, 2_000_000, size=len(CONTENT) + 1)
        fetch(server, tmp_path)
        assert (tmp_path / "file").read_bytes() == CONTENT
        leave_part(tmp_path, server, 2_000_000)
        note = json.loads((tmp_path / "file.part.json").read_text())
        (tmp_path / "file.part.json").write_text(json.dumps({**note, "url": "http://elsewhere/file"}))
        fetch(server, tmp_path)
        assert server.ranges[-1] is None
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_of_unknown_length_arrives(tmp_path: Path) -> None:
    with serve(FileServer({"/file": CONTENT}, is_chunked=True)) as server:
        fetch(server, tmp_path)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_in_trouble_is_asked_again_and_then_given_up(tmp_path: Path, no_pauses: list[float]) -> None:
    with serve(FileServer({"/file": CONTENT}, statuses=[503, 429])) as server:
        fetch(server, tmp_path)
        assert no_pauses == [1.0, 4.0]
        server.statuses = [500] * 9
        with pytest.raises(DownloadError, match="HTTP 500"):
            download([f"{server.url}/file"], tmp_path / "again", check=accept)
        assert no_pauses[2:] == [1.0, 4.0, 15.0] and len(server.requests) == 7
    assert names(tmp_path) == ["file"]


def test_mirrors_are_tried_in_order_and_every_reason_is_told(tmp_path: Path, no_pauses: list[float]) -> None:
    with serve(FileServer({"/file": CONTENT})) as server:
        dead = "http://127.0.0.1:9/file"
        used = download([dead, f"{server.url}/none", f"{server.url}/file"], tmp_path / "file", check=accept)
        assert used == f"{server.url}/file"
        with pytest.raises(
            DownloadError, match=r"^http://127\.0\.0\.1:9/file: Connection refused; .*/none: HTTP 404 .*$"
        ):
            download([dead, f"{server.url}/none"], tmp_path / "other", check=accept)
    assert no_pauses == []  # neither can be cured by waiting


def test_a_web_page_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with (
        serve(FileServer({"/file": b"<html>log in</html>"}, content_type="text/html; charset=utf-8")) as server,
        pytest.raises(DownloadError, match="a web page came instead"),
    ):
        fetch(server, tmp_path)
    assert names(tmp_path) == []


def test_a_file_that_fails_the_check_never_gets_the_name(tmp_path: Path) -> None:
    def refuse(file: Path) -> None:
        assert file.read_bytes() == CONTENT
        raise InputError("it is not a tokenizer")

    with (
        serve(FileServer({"/file": CONTENT})) as server,
        pytest.raises(DownloadError, match="what it gave is not the file: it is not a tokenizer"),
    ):
        fetch(server, tmp_path, check=refuse)
    assert names(tmp_path) == []


def test_an_interruption_keeps_what_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(pause: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    with serve(FileServer({"/file": CONTENT}, breaks=[1_500_000])) as server:
        with pytest.raises(KeyboardInterrupt):
            fetch(server, tmp_path)
        assert (tmp_path / "file.part").stat().st_size == 1_500_000 and not (tmp_path / "file").exists()
        fetch(server, tmp_path)
        assert server.ranges == [None, "bytes=1500000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_full_disk_is_not_mistaken_for_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serve(FileServer({"/file": CONTENT})) as server:
        monkeypatch.setattr(module.os, "fsync", fsync)
        monkeypatch.setattr(module, "write_json", lambda path, value: path.write_text(json.dumps(value)))
        with pytest.raises(OSError, match=r"No space left on device: .*file\.part"):
            fetch(server, tmp_path)
        assert len(server.requests) == 1
    assert not (tmp_path / "file").exists()


def test_a_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(module, "BACK_OFF_SECONDS", ())
    with (
        serve(FileServer({"/file": CONTENT}, breaks=[1000] * 9, stall=threading.Event())) as server,
        pytest.raises(DownloadError, match="timed out"),
    ):
        fetch(server, tmp_path)
    assert (tmp_path / "file.part").stat().st_size == 1000


def test_the_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy is asked for whole addresses.
    with serve(FileServer({"http://example.invalid/file": CONTENT})) as server:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setattr(urllib.request, "_opener", None)
        assert download(["http://example.invalid/file"], tmp_path / "file", check=accept)
    assert (tmp_path / "file").read_bytes() == CONTENT
