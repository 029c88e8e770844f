import os

import pytest

from beit.common.errors import InputError
from beit.common.shards.file_pool import FilePool
from beit.common.storage.place import place_of


def test_a_pool_reads_ranges_and_keeps_few_files_open(tmp_path):
    paths = [tmp_path / f"{number}" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100 + b"end")
    pool = FilePool(max_open=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert pool.read(str(path), 99, 4) == bytes([number]) + b"end"
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    pool.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_range_beyond_the_end_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"short")
    with pytest.raises(InputError, match=r"x ends before byte 9"):
        FilePool().read(str(tmp_path / "x"), 3, 6)
    with pytest.raises(InputError, match="missing"):
        FilePool().read(str(tmp_path / "missing"), 0, 1)
    with pytest.raises(InputError, match="missing"):
        place_of(str(tmp_path / "missing")).read()
