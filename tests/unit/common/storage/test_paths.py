import os
import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.storage.paths import (
    expand_braces,
    is_remote,
    join,
    normalise,
    query_of,
    remember_query,
    resolve_location,
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
