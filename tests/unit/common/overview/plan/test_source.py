import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError
from beit.common.overview.plan.source import is_store, look_at, sample_images
from beit.tests.support import write_images, write_store


def write_tar(path, images):
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(images):
            info = tarfile.TarInfo(f"{number:04d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("source") / "images", 30, size=40)
    return sorted(folder.iterdir())


def test_a_folder_is_counted(images):
    found = look_at(str(images[0].parent))
    total = sum(path.stat().st_size for path in images)
    assert (found.images.count, found.images.is_counted, found.images.side_px) == (30, True, 40)
    assert found.total_bytes == pytest.approx(total) and found.kind == "files"


def test_a_few_tars_are_counted_and_of_many_some_stand_for_all(images, tmp_path):
    data = [path.read_bytes() for path in images]
    for number in range(20):
        write_tar(tmp_path / f"{number:02d}.tar", data[:10])
    few, many = look_at(str(tmp_path / "0[0-4].tar")), look_at(str(tmp_path))
    assert (few.images.count, few.images.is_counted, few.num_shards) == (50, True, 5)
    assert (many.images.count, many.images.is_counted, many.num_shards) == (200, False, 20)
    assert many.images.mean_bytes == pytest.approx(sum(map(len, data[:10])) / 10)


def test_of_parquet_the_bytes_are_those_of_some_images(images, tmp_path):
    data = [path.read_bytes() for path in images]
    pq.write_table(pa.table({"image": data}), tmp_path / "a.parquet")
    found = look_at(str(tmp_path / "a.parquet"))
    assert found.images.count == 30 and found.images.side_px == 40
    assert found.images.mean_bytes == pytest.approx(sum(map(len, data)) / 30, rel=0.2)


def test_a_store_says_what_it_is(tmp_path):
    store = write_store(tmp_path, images=20)
    found = look_at(store.location)
    assert is_store(store.location) and not is_store(str(tmp_path / "images"))
    assert (found.images.count, found.kind, found.num_shards) == (20, "store", 2)
    assert found.store.img_size == 16 and found.num_held_out == int(store.shards.num_held_out.sum())


def test_some_images_are_read(images):
    found = sample_images(str(images[0].parent), count=5)
    assert len(found) == 5 and set(found) <= {path.read_bytes() for path in images}


def test_a_source_that_is_none_is_refused_as_everywhere(tmp_path):
    with pytest.raises(InputError, match="missing"):
        look_at(str(tmp_path / "missing"))
