import pytest

from beit.common.storage.files import atomic_file, write_atomic


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "data"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
