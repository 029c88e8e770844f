"""A store that was damaged in any way is a fault, with the way out; one that is whole is well."""

import os
import shutil

import pytest

from beit.common.overview.doctor.findings import guarded
from beit.common.overview.doctor.health import stores
from beit.common.overview.doctor.health.subjects import find_subject
from beit.tests.support import write_bare_store, write_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    write_store(root / "made", images=24, views=2, shard_size=8)
    write_bare_store(root / "without", images=8)
    return root


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def look(name="made/store"):
    subject = find_subject(name)
    assert subject.kind == "store"
    return list(guarded(subject.kind, subject.check, subject.mend))


def fault(name="made/store"):
    (finding,) = (finding for finding in look(name) if finding.level == "fault")
    assert finding.mend and "\n" not in finding.as_text()
    return finding


def test_a_whole_store_is_well(place):
    found = look()
    assert [finding.level for finding in found] == ["ok", "ok", "ok"]
    assert "24 images in 3 shards, 2 views of 16 px, 4 x 4 words of 16" in found[0].what
    assert "3 samples read and rendered" in found[1].what


def test_a_store_without_tokens_is_well(place):
    found = look("without/bare")
    assert [finding.level for finding in found] == ["ok", "ok"] and "no tokens" in found[0].what


def first(folder, suffix):
    return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))[0]


def damage_in_place(file, *, at, data):
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


DAMAGE = {
    "token tar cut short": lambda store: os.truncate(first(store / "tokens", ".tar"), 100),
    "token tar gone": lambda store: first(store / "tokens", ".tar").unlink(),
    "image tar cut short": lambda store: os.truncate(first(store / "images", ".tar"), 100),
    "image tar gone": lambda store: first(store / "images", ".tar").unlink(),
    "sample table of another shard": lambda store: shutil.copyfile(
        sorted((store / "tokens").glob("*.parquet"))[1], first(store / "tokens", ".parquet")
    ),
    "settings no JSON": lambda store: (store / "store.json").write_text("{"),
    "settings empty": lambda store: (store / "store.json").write_text("{}"),
    "settings gone": lambda store: (store / "store.json").unlink(),
    "index gone": lambda store: (store / "index.parquet").unlink(),
    "index damaged": lambda store: os.truncate(store / "index.parquet", 50),
    "images replaced by as many bytes": lambda store: first(store / "images", ".tar").write_bytes(
        os.urandom(first(store / "images", ".tar").stat().st_size)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_a_fault(place, damage):
    DAMAGE[damage](place / "made/store")
    fault()


def test_pixels_and_tokens_that_changed_are_found_in_the_samples_that_are_tried(place):
    store = place / "made/store"
    for file in (store / "tokens").glob("*.tar"):
        before = file.stat()
        data = bytearray(file.read_bytes())
        for at in range(0, len(data)):
            data[at] ^= 1 if data[at] < 16 and at % 512 > 300 else 0
        file.write_bytes(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fault().what


def test_an_unfinished_store_names_the_command_that_goes_on(place):
    store = place / "made/store"
    (store / "index.parquet").unlink()
    first(store / "tokens", ".manifest.json").unlink()
    finding = fault()
    assert "2 of 3 shards are tokenised" in finding.what and finding.mend.startswith("beit tokenize")


def test_a_store_that_is_being_made_is_only_a_warning(place):
    store = place / "made/store"
    (store / "index.parquet").unlink()
    (store / ".lease.000001").write_text("")
    (finding,) = look()
    assert finding.level == "warning" and "at work" in finding.what
    os.utime(store / ".lease.000001", (1, 1))
    assert fault().mend.startswith("beit tokenize")


def test_libraries_that_render_otherwise_are_a_warning(place, monkeypatch):
    monkeypatch.setattr("beit.common.views.compute_canary", lambda: "another")
    (finding,) = (finding for finding in look() if finding.level != "ok")
    assert finding.level == "warning" and "pillow" in finding.what and "data.replay=tolerant" in finding.mend


def test_a_tokenizer_that_is_gone_is_a_warning(place, made, monkeypatch):
    monkeypatch.setattr(stores, "_samples", lambda store: [])
    text = (place / "made/store/store.json").read_text()
    (place / "made/store/store.json").write_text(text.replace(f'"{made}/made/tokenizer"', '"gone/tokenizer"'))
    (finding,) = (finding for finding in look() if finding.level != "ok")
    assert finding.level == "warning" and "gone/tokenizer" in finding.what and finding.mend
