"""Stores written behind a URL: the bytes of a local store, whatever is packed, damaged or interrupted."""

import json

import boto3
import fsspec
import pytest

from beit.common.errors import InputError, ResumableStop
from beit.common.store import open_store
from beit.tests.s3_server import serve_s3
from beit.tests.tiny_store import (
    BlockSums,
    StoppedAt,
    encoded_image,
    tokenize,
    tree_bytes,
    write_folder,
    write_tars,
)
from beit.tokenize.run import tokenize_with_ranks
from beit.tokenize.verify import verify_store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert not list(tmp_path.glob("cache/spool/*"))


@pytest.fixture(params=["s3", "memory"])
def place(request):
    """The URL of an empty place for stores."""
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.store.clear()
        memory.pseudo_dirs.clear()
        yield "memory://data"
        return
    with serve_s3({}) as bucket:
        yield bucket


def objects(url):
    """Every object of a store."""
    file_system, inner = fsspec.core.url_to_fs(url)
    file_system.invalidate_cache()
    return {path[len(inner) :].lstrip("/"): file_system.cat_file(path) for path in sorted(file_system.find(inner))}


def make_source(tmp_path, kind):
    if kind == "tars":
        return write_tars(tmp_path / "images", (3, 4)), {"short_side": 32}
    source = write_folder(tmp_path / "images", 7)
    (source / "001.png").write_bytes(b"no image")
    return source, {"folder": {}, "materialised": {"materialize": True}, "no views": {"views": 0}}[kind]


@pytest.mark.parametrize("kind", ["folder", "materialised", "tars", "no views"])
def test_a_store_behind_a_url_has_the_bytes_of_a_local_one(tmp_path, place, kind):
    source, changes = make_source(tmp_path, kind)
    local = tokenize(source, tmp_path / "local", **changes)
    remote = tokenize(source, f"{place}/stores/one", **changes)
    assert remote.is_complete and remote.num_samples == local.num_samples and remote.skipped == local.skipped
    assert objects(f"{place}/stores/one") == tree_bytes(tmp_path / "local")
    assert verify_store(f"{place}/stores/one").problems == []
    tokenizer = BlockSums()
    again = tokenize(source, f"{place}/stores/one", tokenizer=tokenizer, **changes)
    assert again.num_shards_kept == 2 and not tokenizer.batch_shapes
    assert objects(f"{place}/stores/one") == tree_bytes(tmp_path / "local")
