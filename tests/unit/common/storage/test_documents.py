from dataclasses import replace

import pytest

from beit.common.errors import InputError
from beit.common.shards.schema import ImageFile, ImageShardManifest, SkippedSample
from beit.common.storage.documents import Format, read_document, read_json, write_document, write_json
from beit.common.storage.files import sha256_file
from beit.common.storage.place import place_of


def test_a_format_knows_its_documents_and_names_what_it_expected():
    kind = Format("beit-thing", 3)
    document = kind.header() | {"content": 1}
    assert kind.check(document, "a.json") is document
    for other in ([], {}, {"format": []}, {"format": "beit-other", "format_version": 3}):
        with pytest.raises(InputError, match=r"a\.json is not a beit-thing file"):
            kind.check(other, "a.json")
    for version in (2, None, "3"):
        with pytest.raises(InputError, match=f"a.json has format_version {version}, this beit reads version 3; use"):
            kind.check(document | {"format_version": version}, "a.json")


def test_equal_values_give_equal_json_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    write_json(tmp_path / "b.json", {"a": [2], "b": 1})
    assert sha256_file(tmp_path / "a.json") == sha256_file(tmp_path / "b.json")
    assert read_json(tmp_path / "a.json") == {"a": [2], "b": 1}


def test_unreadable_json_is_an_input_error(tmp_path):
    (tmp_path / "x.json").write_bytes(b'{"half": ')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "y.json")


@pytest.mark.parametrize("name", ["ca\x1bt", "ca\nt", "\udcff"])
def test_what_would_be_refused_on_reading_is_not_written(tmp_path, name):
    place = place_of(str(tmp_path / "x.json"))
    manifest = ImageShardManifest(
        stem="0",
        settings_sha256="",
        image=ImageFile(name="0.tar", size=1, header_sha256=""),
        num_samples=0,
        skipped=(SkippedSample(key=name, reason="empty"),),
    )
    with pytest.raises(InputError, match="control characters or not in UTF-8.*; rename what is called so"):
        write_document(place, manifest)
    assert not place.exists()
    write_document(place, replace(manifest, skipped=()))
    assert read_document(ImageShardManifest, place).stem == "0"
