"""Which samples are held out: how many, and all that was cut from one image on one side."""

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.rng import stable_hash64
from beit.common.shards.held_out import choose_held_out, held_out_count, held_out_hash
from beit.common.shards.schema import HeldOut
from beit.common.storage.samples import image_key


def hashes_of(tiles, by="image"):
    """Of images, named "image0" and so on, with so many tiles each."""
    keys = [f"image{number}~y{tile:04d}x0000" for number, count in enumerate(tiles) for tile in range(count)]
    return keys, np.array([held_out_hash(key, by) for key in keys], dtype=np.uint64)


def sides_of(tiles, **held_out):
    """The choice, and the images with samples on each side."""
    keys, hashes = hashes_of(tiles)
    choice = choose_held_out(hashes, HeldOut(**held_out))
    is_held_out = hashes < choice.threshold
    assert is_held_out.sum() == choice.num_samples
    images = np.array([image_key(key) for key in keys])
    return choice, set(images[is_held_out].tolist()), set(images[~is_held_out].tolist())


@pytest.mark.parametrize(
    ("num_samples", "count"),
    [
        (1, 0),
        (4, 0),
        (5, 1),
        (60, 12),
        (319, 63),
        (320, 64),
        (1000, 64),
        (6400, 64),
        (10_000, 100),
        (1_281_167, 12_811),
    ],
)
def test_one_percent_at_least_64_at_most_a_fifth_are_held_out(num_samples, count):
    assert held_out_count(num_samples, HeldOut()) == count


def test_nothing_is_held_out_on_request():
    assert held_out_count(1000, HeldOut(fraction=0.0, minimum=0)) == 0
    with pytest.raises(InputError, match="held_out.fraction"):
        HeldOut(fraction=0.5)


def test_held_out_hashes_are_spread_and_fixed():
    hashes = [held_out_hash(f"key{number}") for number in range(2000)]
    assert sum(value < 2**62 for value in hashes) == pytest.approx(500, abs=80)
    assert held_out_hash("key0") == 6621536385485070597


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("photo-0123456789", "photo-0123456789"),
        ("slide-0123456789~y0001x0003", "slide-0123456789"),
        ("slide-0123456789~p0002", "slide-0123456789"),
        ("slide-0123456789~p0002y0001x0003", "slide-0123456789"),
        ("slide-0123456789~y12345x0003", "slide-0123456789"),
        ("slide~y0001x0003-89abcdef01", "slide"),  # of several tars that call a tile so
        ("slide~y0001x0003~y0000x0001", "slide"),  # a tile of a tile
        ("~y1x2", "~y1x2"),
        ("a~y0001x0003b", "a~y0001x0003b"),
    ],
)
def test_keys_of_tiles_and_pages_name_their_image(key, image):
    assert image_key(key) == image


def test_whole_images_keep_the_hash_they_had_and_tiles_share_half_of_theirs():
    assert held_out_hash("photo") == held_out_hash("photo", "sample") == stable_hash64("held-out", "photo")
    tiles = [f"photo~y0000x{number:04d}" for number in range(50)]
    assert {held_out_hash(tile) >> 32 for tile in tiles} == {held_out_hash("photo") >> 32}
    assert len({held_out_hash(tile) for tile in tiles}) == 50
    assert held_out_hash(tiles[0], "sample") == stable_hash64("held-out", tiles[0])


def test_no_image_has_tiles_on_both_sides():
    choice, held_out, trained = sides_of([20] * 50, minimum=64)
    assert not held_out & trained and len(held_out) == 4  # 64 tiles are wanted, which 4 images have
    assert (choice.num_samples, choice.num_images, choice.splits_image, choice.warning) == (80, 50, False, "")


def test_the_last_image_is_trained_on_where_it_would_be_more_than_a_fifth():
    order = np.argsort([held_out_hash(f"image{number}") for number in range(4)])
    tiles = np.zeros(4, int)
    tiles[order] = [40, 200, 300, 460]
    choice, held_out, trained = sides_of(tiles.tolist(), minimum=64)
    assert held_out == {f"image{order[0]}"} and not held_out & trained and choice.num_samples == 40


@pytest.mark.parametrize(("tiles", "named"), [([100], "a single image"), ([100, 100, 100], "3 images")])
def test_of_too_few_images_tiles_are_held_out_and_that_is_said(tiles, named):
    choice, held_out, trained = sides_of(tiles, minimum=10)
    assert choice.splits_image and choice.num_samples == 10 and held_out <= trained
    assert choice.warning.startswith(f"all {sum(tiles)} samples were cut from {named}")
    assert "10 samples are held out whose neighbours in the same image are trained on" in choice.warning


def test_nothing_held_out_splits_nothing():
    choice, held_out, _ = sides_of([100], fraction=0.0, minimum=0)
    assert not choice.splits_image and not held_out and not choice.num_samples


def test_of_whole_images_exactly_as_many_as_are_wanted_are_held_out():
    hashes = np.array([held_out_hash(f"photo{number}") for number in range(1000)], dtype=np.uint64)
    for by in ("sample", "image"):
        choice = choose_held_out(hashes, HeldOut(), by)
        assert (choice.num_samples, choice.threshold, choice.num_images) == (64, np.sort(hashes)[64], 1000)


def test_by_sample_tiles_are_held_out_one_by_one_as_in_stores_of_before():
    _, hashes = hashes_of([20] * 50, "sample")
    choice = choose_held_out(hashes, HeldOut(minimum=64), "sample")
    assert choice.num_samples == 64 and not choice.splits_image
