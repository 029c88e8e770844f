import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.rng import CounterRng
from beit.tokenize.patterns import PATTERNS, paint_cloth, two_colours, write_cloths


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_cloth_is_a_function_of_its_seed_and_shows_two_colours(pattern: str) -> None:
    first, again = (paint_cloth(CounterRng(0, "a"), pattern, 48) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (48, 48, 3) and first.dtype == np.uint8
    assert not np.array_equal(first, paint_cloth(CounterRng(0, "b"), pattern, 48))
    assert first.astype(float).mean(axis=2).std() > 20  # there is something to see


def test_colours_go_together_in_either_order() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    pairs = np.stack([two_colours(generator) for _ in range(200)])
    assert pairs.min() >= 0 and pairs.max() <= 1
    light = pairs.mean(axis=2)
    assert np.abs(light[:, 0] - light[:, 1]).min() > 0.15
    assert 60 < (light[:, 0] > light[:, 1]).sum() < 140


def test_brightness_and_colour_give_no_pattern_away() -> None:
    cloths = np.stack([paint_cloth(CounterRng(0, i), PATTERNS[i % 10], 32) for i in range(600)]).astype(float)
    means = cloths.mean(axis=(1, 2)).reshape(60, 10, 3)  # of every image, by pattern
    between, within = means.mean(0).std(0), means.std(0).mean(0) / np.sqrt(60)
    assert (between < 2 * within).all()


def test_cloths_are_balanced_and_named_after_their_pattern(tmp_path) -> None:
    paths = write_cloths(tmp_path, 20, img_size=32, seed=3)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == list(PATTERNS)
    assert all(len(list((tmp_path / pattern).iterdir())) == 2 for pattern in PATTERNS)
    with Image.open(paths[0]) as image:
        assert image.size == (32, 32) and image.mode == "RGB"
    before = paths[7].read_bytes()
    write_cloths(tmp_path, 8, img_size=32, seed=3)
    assert paths[7].read_bytes() == before


def test_unlabelled_cloths_lie_in_one_folder(tmp_path) -> None:
    paths = write_cloths(tmp_path / "flat", 3, img_size=32, has_classes=False)
    assert [path.relative_to(tmp_path / "flat").as_posix() for path in paths] == [f"00000{i}.png" for i in range(3)]


def test_cloths_that_cannot_work_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"num_images \(0\)"):
        write_cloths(tmp_path, 0)
    with pytest.raises(InputError, match=r"img_size \(8\)"):
        write_cloths(tmp_path, 1, img_size=8)
