"""Tokenizers that are whole are well, those that are damaged a fault; DALL-E's may be absent."""

import os

import pytest

from beit.common.overview.doctor.findings import guarded
from beit.common.overview.doctor.health.subjects import find_subject
from beit.common.overview.doctor.health.tokenizers import check_dalle
from beit.common.tokenizer import BUNDLED_DIR
from beit.tests.support import write_tokenizer


def the_one(findings):
    (finding,) = findings
    assert "\n" not in finding.as_text() and bool(finding.mend) == (finding.level != "ok")
    return finding


def look(folder):
    subject = find_subject(str(folder))
    assert subject.kind == "tokenizer"
    return the_one(guarded(subject.kind, subject.check, subject.mend))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BEIT_DALLE_MIRRORS", raising=False)
    folder = tmp_path / "cache/dall-e"
    folder.mkdir(parents=True)
    return folder


def test_tokenizers_that_are_whole_are_well(tmp_path):
    assert "16 words of" in look(write_tokenizer(tmp_path / "mine")).what
    assert look(BUNDLED_DIR / "mini").level == "ok"


def test_a_tokenizer_that_was_changed_is_a_fault(tmp_path):
    weights = write_tokenizer(tmp_path / "mine") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert look(tmp_path / "mine").level == "fault"
    os.truncate(weights, 99)
    assert look(tmp_path / "mine").level == "fault"


def test_without_dalle_all_is_well_and_nothing_is_fetched(cache):
    finding = the_one(check_dalle())
    assert finding.level == "ok" and "fetched (390 MB) when" in finding.what
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"<html>log in</html>", b"version https://git-lfs.github.com/spec/v1\n", b"", b"PK\x03\x04 cut"],
    ids=["page", "lfs", "empty", "cut"],
)
def test_files_of_dalle_that_are_none_are_a_fault(cache, content):
    (cache / "encoder.pkl").write_bytes(content)
    finding = the_one(guarded("dall-e", check_dalle))
    assert finding.level == "fault" and "encoder.pkl" in finding.what


def test_mirrors_that_are_no_addresses_are_a_fault(cache, monkeypatch):
    monkeypatch.setenv("BEIT_DALLE_MIRRORS", "ftp://somewhere")
    first, _ = check_dalle()
    assert first.level == "fault" and first.mend.startswith("unset BEIT_DALLE_MIRRORS")
