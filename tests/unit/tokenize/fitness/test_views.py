from pathlib import Path

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.tests.support import write_images
from beit.tokenize.fitness.views import ViewSample, draw_positions
from beit.tokenize.images import open_images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    return write_images(tmp_path / "images", 12, size=40)


def sample(folder: Path, **changes: int) -> ViewSample:
    settings = {"num_images": 8, "seed": 0} | changes
    return ViewSample(open_images(str(folder), img_size=16, cache_bytes=0), **settings)


def pixels_of(views: ViewSample, size: int) -> np.ndarray:
    return np.concatenate([batch.pixels for batch in views.batches(size, view_size=16)])


@pytest.mark.parametrize(("total", "count"), [(10, 3), (10, 10), (10, 99), (1000, 999), (10**12, 50)])
def test_positions_are_different_and_in_range(total: int, count: int) -> None:
    drawn = draw_positions(total, count, 0)
    assert len(set(drawn)) == len(drawn) == min(total, count)
    assert drawn == sorted(drawn) and 0 <= drawn[0] and drawn[-1] < total


def test_every_position_is_equally_likely() -> None:
    counts = np.bincount([place for seed in range(2000) for place in draw_positions(8, 3, seed)], minlength=8)
    assert (abs(counts - 750) < 100).all()


def test_views_depend_on_the_seed_and_not_on_batches(folder: Path) -> None:
    views = pixels_of(sample(folder), 8)
    assert views.shape == (8, 16, 16, 3) and views.dtype == np.uint8
    assert np.array_equal(views, pixels_of(sample(folder), 3))
    assert not np.array_equal(views, pixels_of(sample(folder, seed=1), 8))


def test_views_can_be_rendered_again(folder: Path) -> None:
    views = sample(folder)
    (batch,) = views.batches(8, view_size=16)
    assert np.array_equal(views.views_at(batch.positions[2:4], view_size=16), batch.pixels[2:4])


def test_the_same_view_is_rendered_at_any_side(folder: Path) -> None:
    views = sample(folder)
    small = views.views_at([3, 4], view_size=16).astype(float)
    large = views.views_at([3, 4], view_size=64).astype(float)
    shrunk = large.reshape(2, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.95


def test_labels_are_those_of_the_images(folder: Path, tmp_path: Path) -> None:
    (batch,) = sample(folder).batches(8, view_size=16)
    assert batch.labels.tolist() == [-1] * 8
    for number in range(3):
        write_images(tmp_path / "labelled" / f"class{number}", 4, size=40)
    views = sample(tmp_path / "labelled", num_images=12)
    (batch,) = views.batches(12, view_size=16)
    folders = [Path(views.name(position)).parent.name for position in batch.positions]
    assert [f"class{label}" for label in batch.labels] == folders


def test_bad_images_are_passed_over_counted_and_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "0003.png").write_bytes(b"no picture")
    (folder / "0005.png").write_bytes((folder / "0004.png").read_bytes()[:60])
    views = sample(folder, num_images=12)
    assert [len(pixels_of(views, 4)) for _ in range(2)] == [10, 10]
    assert [Path(report.sample_id).name for report in views.bad_samples] == ["0003.png", "0005.png"]
    assert views.bad_counts.total() == 2 and views.bad_counts["unsupported"] == 1
    assert sum("cannot be used" in record.message for record in caplog.records) == 2


def test_too_few_readable_images_are_an_error(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 12 images.*11 unsupported"):
        pixels_of(sample(folder, num_images=12), 4)


def test_one_image_is_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="at least 2"):
        sample(write_images(tmp_path / "one", 1))
