import pytest

from beit.common.errors import InputError
from beit.common.storage.files import atomic_file, read_json, sha256_file, write_atomic, write_json


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "data"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


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
