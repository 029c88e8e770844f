import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from beit.common.errors import InputError
from beit.common.shards.schema import (
    CommittedFile,
    Execution,
    HeldOut,
    ImageFile,
    ShardManifest,
    ShardRow,
    SkippedSample,
    SourceInfo,
    StoreInfo,
    TokenizerInfo,
    index_digest,
)
from beit.common.storage.documents import json_bytes, parse_document, read_document, write_json
from beit.common.storage.place import place_of

INFO = StoreInfo(
    tokenizer=TokenizerInfo(name="mini", fingerprint="ab", vocab_size=1024, downsampling=8),
    views=4,
    img_size=224,
    patch_size=16,
    grid_size=14,
    seed=0,
    source=SourceInfo(kind="tar", num_shards=2, digest="cd"),
    class_names=("cat", "dog"),
    canary="ef",
    image_root="../images",
)
MANIFEST = ShardManifest(
    stem="000000-x",
    settings_sha256="1",
    image=ImageFile(name="x.tar", size=10, header_sha256="2"),
    tokens=CommittedFile(name="000000-x.tar", size=5, sha256="3"),
    samples=CommittedFile(name="000000-x.samples.parquet", size=5, sha256="4"),
    num_samples=3,
    skipped=(SkippedSample(key="größe", reason="truncated"),),
    views=4,
    grid_size=14,
    canary="ef",
)
ROW = ShardRow(
    stem="000000-x",
    image_file="x.tar",
    token_file="000000-x.tar",
    num_samples=3,
    num_skipped=1,
    num_held_out=1,
    image_bytes=10,
    token_bytes=5,
    image_sha256="",
    image_header_sha256="2",
    token_sha256="3",
    samples_sha256="4",
    image_stamp="123",
)


@pytest.mark.parametrize("document", [INFO, replace(INFO, tokenizer=None, views=0, class_names=None), MANIFEST])
def test_documents_survive_json(tmp_path, document):
    write_json(tmp_path / "x.json", asdict(document))
    assert read_document(type(document), place_of(str(tmp_path / "x.json"))) == document


def test_a_document_of_another_kind_version_or_with_fields_missing_is_refused():
    document = asdict(INFO)
    with pytest.raises(InputError, match="f.json is not a beit-token-shard file"):
        parse_document(ShardManifest, json_bytes(document), label="f.json")
    with pytest.raises(InputError, match="format_version 9"):
        parse_document(StoreInfo, json_bytes(document | {"format_version": 9}), label="f.json")
    without_canary = {name: value for name, value in document.items() if name != "canary"}
    with pytest.raises(InputError, match="incomplete.*canary"):
        parse_document(StoreInfo, json_bytes(without_canary), label="f.json")
    with pytest.raises(InputError, match="is not a beit-token-store file"):
        parse_document(StoreInfo, json_bytes([]), label="f.json")


@pytest.mark.parametrize("number", [-1, 1 << 51, 1 << 64, 10**400])
@pytest.mark.parametrize("place", ["num_samples", "image", "tokens", "samples"])
def test_a_number_that_no_shard_has_is_refused(place, number):
    document = asdict(MANIFEST)
    document[place] = number if place == "num_samples" else document[place] | {"size": number}
    name = "num_samples" if place == "num_samples" else "size"
    with pytest.raises(InputError, match=rf"^f.json: .*{name} .{number}. must lie between 0 and"):
        parse_document(ShardManifest, json_bytes(document), label="f.json")


@pytest.mark.parametrize(
    "change",
    [
        {"image_root": "/elsewhere"},
        {"execution": Execution(threads=9)},
        {"mixed_execution": True},
        {"versions": ("torch 3",)},
        {"held_out": HeldOut(threshold=5)},
        {"tokenizer": replace(INFO.tokenizer, name="/path/to/mini")},
    ],
)
def test_what_may_change_does_not_change_the_settings(change):
    assert replace(INFO, **change).settings_sha256() == INFO.settings_sha256()


@pytest.mark.parametrize(
    "change",
    [
        {"views": 5},
        {"tokenizer": replace(INFO.tokenizer, fingerprint="xx")},
        {"tokenizer": None, "views": 0},
        {"class_names": ("cat",)},
        {"held_out": HeldOut(minimum=3)},
        {"held_out_by": "image"},
        {"canary": "other"},
    ],
)
def test_what_must_not_change_changes_the_settings(change):
    assert replace(INFO, **change).settings_sha256() != INFO.settings_sha256()


def test_the_index_digest_is_about_content():
    digest = index_digest([ROW], HeldOut(threshold=1))
    assert digest == index_digest([replace(ROW, image_stamp="456")], HeldOut(threshold=1))
    assert digest != index_digest([replace(ROW, token_sha256="5")], HeldOut(threshold=1))
    assert digest != index_digest([ROW], HeldOut(threshold=2))


def test_the_schema_loads_without_torch():
    code = "import sys, beit.common.shards.schema, beit.common.shards.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
