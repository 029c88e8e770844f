import os
import subprocess
import sys

import pytest

from beit.common.storage.remote_file import query_of, remember_query, split_query, with_query


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
    assert with_query("https://h/a%20b.tar") == "https://h/a%20b.tar?sig=1"
    assert query_of("https://h/c.tar") == "sig=2" and with_query("https://h/d.tar") == "https://h/d.tar"
    code = "from beit.common.storage.remote_file import query_of; print(query_of('https://h/c.tar'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=os.environ).strip() == "sig=2"
