import pytest

from beit.common.errors import InputError
from beit.common.storage.documents import Format, read_json, write_json
from beit.common.storage.files import sha256_file


def test_a_format_knows_its_documents_and_names_what_it_expected():
    kind = Format("beit-thing", 3)
    document = kind.header() | {"content": 1}
    assert kind.check(document, "a.json") is document
    for other in ([], {}, {"format": "beit-other", "format_version": 3}):
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
