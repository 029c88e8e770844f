import os
import subprocess
import sys

import pytest

from beit.common.storage.files import atomic_file, atomic_folder, remove_stale, write_atomic, write_output


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "data"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


KILLED = """
import os, sys
from pathlib import Path
from beit.common.storage.files import set_trap, write_atomic
set_trap("rename:1")
write_atomic(Path(sys.argv[1]), b"half")
"""


def kill_a_writer_of(path):
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    return [entry for entry in path.parent.iterdir() if ".tmp." in entry.name]


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    (left,) = kill_a_writer_of(tmp_path / "weights")
    (other,) = (name for name in kill_a_writer_of(tmp_path / "other") if name != left)
    with atomic_file(tmp_path / "weights") as file:
        file.write(b"new")
        remove_stale(tmp_path, "weights")
        assert not left.exists() and other.exists()
    assert (tmp_path / "weights").read_bytes() == b"new"
    write_output(tmp_path / "other", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "weights"]


def test_what_may_be_of_another_machine_goes_after_an_hour(tmp_path):
    (tmp_path / ".b.tmp.999999999/folder").mkdir(parents=True)
    os.utime(tmp_path / ".b.tmp.999999999", (5, 5))
    remove_stale(tmp_path, ".b")
    names = ["a.tmp.1", "a.tmp.999999999", "a.tmp.999999999.0123abcd", "a.tmp.999999999.0123abcd0123abcd", "a.tmp.txt"]
    for name in names:
        (tmp_path / name).touch()
    remove_stale(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    remove_stale(tmp_path, is_ours=True)
    assert {path.name for path in tmp_path.iterdir()} == {names[0], names[3], names[4]}
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (5, 5))
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {names[4]}


@pytest.mark.parametrize(
    "error",
    [
        lambda folder: OSError(28, "No space left on device"),
        lambda folder: OSError(f"{folder}/weights was not written"),
    ],
    ids=["of the system", "of a library"],
)
def test_a_folder_that_could_not_be_written_is_called_as_it_was_to_be(tmp_path, error):
    with pytest.raises(OSError) as raised, atomic_folder(tmp_path / "deep/out") as folder:
        (folder / "weights").write_text("half")
        raise error(folder)
    assert f"{tmp_path}/deep/out" in str(raised.value) and ".tmp." not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_trap_that_means_nothing_is_told_when_something_is_written_and_not_at_the_import(tmp_path):
    code = "import pathlib; from beit.common.storage.files import write_atomic; write_atomic(pathlib.Path('file'), b'')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"BEIT_FAULT": "rename"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError: BEIT_FAULT (rename) must have the form point:n; unset it" in ran.stderr
    assert "in write_atomic" in ran.stderr and not list(tmp_path.iterdir()), "not at the import, and nothing is left"
