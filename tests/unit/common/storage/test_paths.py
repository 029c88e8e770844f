import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.errors import InputError
from beit.common.storage.paths import (
    expand_braces,
    is_remote,
    join,
    normalise,
    query_of,
    remember_query,
    resolve_location,
    resolve_reference,
    split_query,
)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://h/a.tar?sig=a/b&se=1", ("https://h/a.tar", "sig=a/b&se=1")),
        ("HTTPS://h/a-{0..1}.tar?X-Amz-Date=1", ("HTTPS://h/a-{0..1}.tar", "X-Amz-Date=1")),
        ("https://h/a-??.tar", ("https://h/a-??.tar", "")),
        ("https://h/a-?/b=1.tar", ("https://h/a-?/b=1.tar", "")),
        ("s3://b/a.tar?versionId=1", ("s3://b/a.tar?versionId=1", "")),
        ("photos/what?=.jpg", ("photos/what?=.jpg", "")),
    ],
)
def test_a_query_is_told_from_a_wildcard(url, parts):
    assert split_query(url) == parts


def test_a_query_is_remembered_for_its_address_however_escaped_and_by_child_processes(monkeypatch):
    monkeypatch.setenv("BEIT_URL_QUERIES", "{}")
    remember_query("https://h/a b.tar", "sig=1")
    remember_query("https://h/c.tar", "sig=2")
    assert query_of("https://h/a%20b.tar") == "sig=1"
    assert query_of("https://h/c.tar") == "sig=2" and query_of("https://h/d.tar") == ""
    code = "from beit.common.storage.paths import query_of; print(query_of('https://h/c.tar'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=os.environ).strip() == "sig=2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
     ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
     ("plain", ["plain"]), ("a{b}c", ["a{b}c"]), ("{2..0}", ["2", "1", "0"]), ("p{,q}", ["p", "pq"])],
)  # fmt: skip
def test_braces(text: str, expected: list[str]) -> None:
    assert expand_braces(text) == expected


def test_remote_local_and_file_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert is_remote("s3://b/x") and not is_remote("/x") and not is_remote("file:///x")
    assert normalise("a/../b") == str(tmp_path / "b")
    assert normalise("file:///x/y") == "/x/y" and normalise("~/x") == "/home/me/x"
    assert normalise("s3://b/x/") == "s3://b/x"
    assert join("s3://b/x", "y") == "s3://b/x/y" and join("/a", "b/c") == "/a/b/c" and join("/a", "/b") == "/b"


@pytest.mark.parametrize(
    ("root", "name", "expected"),
    [
        ("/data/store", "images", "/data/store/images"),
        ("/data/store", "../photos", "/data/photos"),
        ("/data/store", "/other", "/other"),
        ("s3://bucket/store", "../photos/a.tar", "s3://bucket/photos/a.tar"),
        ("s3://bucket/store", "tokens/a.tar", "s3://bucket/store/tokens/a.tar"),
        ("/data/store", "s3://bucket/photos", "s3://bucket/photos"),
    ],
)
def test_locations_are_resolved_like_paths(root, name, expected):
    assert resolve_location(root, name) == expected


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/store", "../images"),
        ("/store", "https://example.org/images"),
        ("/store", "http://192.168.1.5/images"),  # whoever made the store in a folder named it
        ("/store", "http://127.0.0.1:8000/images"),
        ("https://example.org/store", "https://other.org/images"),
        ("https://example.org/store", "https://93.184.216.34/images"),
        ("http://10.0.0.7:80/store", "http://10.0.0.7:9000/images"),
        ("s3://bucket/store", "s3://other/images"),
        ("s3://bucket/store", "../images"),
    ],
)
def test_a_reference_may_name_what_lies_beside_it_or_outside(root: str, name: str) -> None:
    assert resolve_reference(root, name) == resolve_location(root, name)


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "printer", "nas.local", "db.internal", "127.0.0.1:8000", "10.1.2.3", "192.168.1.5", "172.16.0.1",
        "[::1]", "[fd00::1]", "[::ffff:10.0.0.1]", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "user@10.0.0.1",
        "169.254.169.254", "metadata.google.internal",
    ],
)  # fmt: skip
def test_a_remote_document_may_not_name_the_local_network(host: str) -> None:
    for root in ("https://example.org/store", "s3://bucket/store", "http://10.9.9.9/store"):
        with pytest.raises(InputError, match=r"^\S+ refers to http://.*, an address of the local network"):
            resolve_reference(root, f"http://{host}/images")


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "2852039166"])
def test_no_document_may_name_a_link_local_address(host: str) -> None:
    with pytest.raises(InputError, match="an address of the local network"):
        resolve_reference("/store", f"http://{host}/latest/meta-data")
