"""What a sample of images says of their values."""

import io

import numpy as np
import pytest
from PIL import Image

from beit.benchmarks import science
from beit.common.errors import BadSample, InputError
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.depth import find_range, range_use, warn_of_idle_range
from beit.common.images.ranges import ValueRange
from beit.common.rng import CounterRng
from beit.tests.science_files import tiff
from beit.tests.unit.common.images.test_ranges import colour_png, png_of
from beit.tokenize.synthetic import render_scene


def drawn(*images, suffix="png"):
    return [(f"{number}.{suffix}", lambda data=data: data) for number, data in enumerate(images)]


def percentiles(setting):
    return Decoding(value_range=ValueRange.parse(setting))


def dim(seed, low=31, high=813):
    return np.random.default_rng(seed).integers(low, high, (40, 50)).astype(np.uint16)


def test_percentiles_are_those_of_all_values_each_image_alike(caplog):
    caplog.set_level("INFO")
    small, large = dim(0), np.random.default_rng(1).integers(2000, 3000, (400, 500)).astype(np.uint16)
    found = find_range(drawn(png_of(small), png_of(large)), percentiles("percentile:0,100"), of="scans/")
    assert found.value_range.found == (float(small.min()), pytest.approx(2999, abs=2))
    assert "source.range percentile:0,100 is 31 to" in caplog.text and "over 2 images of scans/" in caplog.text
    quarter = find_range(drawn(*[png_of(dim(i)) for i in range(9)]), percentiles("percentile:25,75"), of="scans/")
    assert quarter.value_range.found == (pytest.approx(226, abs=8), pytest.approx(617, abs=8))
    assert quarter.value_range.setting == "percentile:25,75"


def test_images_that_cannot_be_read_are_passed_over():
    images = drawn(b"nothing", png_of(dim(0)))
    assert find_range(images, percentiles("percentile:0,100"), of="x").value_range.found == (31, 812)
    with pytest.raises(InputError, match=r"none of the images of x that were tried has values \(first: unsupported"):
        find_range(images[:1], percentiles("percentile:0,100"), of="x")


def test_images_of_one_value_have_no_range():
    with pytest.raises(InputError, match=r"both percentiles of x are 7; give two values, such as \[0, 4095\]"):
        find_range(drawn(png_of(np.full((9, 9), 7, np.uint16))), percentiles("percentile:1,99"), of="x")


def test_a_range_that_lies_idle_is_told_in_numbers(caplog):
    warn_of_idle_range(drawn(*[png_of(dim(seed)) for seed in range(4)]), USUAL)
    [said] = caplog.messages
    assert said.startswith("16-bit images, of whose values 99 in 100 lie between ")
    assert said.endswith(
        " of 65535: about 4 of 256 grey levels are left of an image (by entropy), and 239 with "
        "--set source.range=percentile:0.5,99.5 or --set 'source.range=[0, 1023]'"
    )


def test_16_bit_colours_are_judged_by_their_whole_values(caplog):
    warn_of_idle_range(drawn(colour_png(np.stack([dim(0)] * 3, axis=-1))), USUAL)
    assert "about 4 of 256 grey levels are left" in caplog.text


def test_used_ranges_and_chosen_ones_need_no_word(caplog):
    whole = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    warn_of_idle_range(drawn(png_of(whole)), USUAL)
    warn_of_idle_range(drawn(png_of(dim(0))), percentiles("percentile:1,99"))
    warn_of_idle_range(drawn(png_of(dim(0))), Decoding(value_range=ValueRange.parse((0.0, 4095.0))))
    assert not caplog.messages


def test_what_has_8_bits_is_not_even_decoded():
    def refuse():
        raise AssertionError("it was read")

    assert range_use([("photo.JPG", refuse), ("photo.webp", refuse)], USUAL) is None
    header = png_of(np.zeros((4, 4), np.uint8))[:33]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    assert range_use(drawn(header, buffer.getvalue()[:20], suffix=""), USUAL) is None


def test_unreadable_files_are_no_reason_to_stop():
    def missing():
        raise BadSample("unreadable", "gone")

    assert range_use([("a.png", missing)], USUAL) is None


def bands(seed):
    """Two bands over the whole range, and between them one that uses a sixty-fourth of it."""
    whole = np.random.default_rng(seed).integers(0, 65536, (40, 50, 4)).astype(np.uint16)
    whole[..., 1] >>= 6
    return tiff(whole, photometric="minisblack", planarconfig="contig")


def test_percentiles_and_warnings_are_of_the_bands_that_are_picked(caplog):
    images = drawn(bands(0), bands(1), suffix="tif")
    picked = Decoding(value_range=ValueRange.parse("percentile:0,100"), channels=(2,))
    assert find_range(images, picked, of="x").value_range.found[1] <= 1023
    others = Decoding(value_range=ValueRange.parse("percentile:0,100"), channels=(1, 3, 4))
    assert find_range(images, others, of="x").value_range.found[1] > 60_000
    assert (
        range_use(images, Decoding(channels=(2,))).is_crushed
        and not range_use(images, Decoding(channels=(1,))).is_crushed
    )
    warn_of_idle_range(images, Decoding(channels=(2,)))
    assert "about 5 of 256 grey levels are left" in caplog.text and "--set 'source.range=[0, 1023]'" in caplog.text


def test_bands_that_are_not_there_are_said_where_percentiles_are_sought():
    missing = Decoding(value_range=ValueRange.parse("percentile:0,100"), channels=(5,))
    with pytest.raises(InputError, match="names band 5, and it has 4 bands"):
        find_range(drawn(bands(0), suffix="tif"), missing, of="x")


def chests():
    """X-rays of 14 bits that were simulated, as PNG files of 16 bits."""
    rng = np.random.default_rng(0)
    found = [science.chest(rng, kind)[0] for kind in science.CHESTS for _ in range(2)]
    return [values.astype(np.uint16) for values in found]


def use_of(*images):
    return range_use(drawn(*map(png_of, images)), USUAL)


def test_a_few_bright_pixels_hide_no_crushed_image():
    """2 % of 65535 stretch the used range over all of it, as labels, clips and metal do."""
    images, rng = chests(), np.random.default_rng(1)
    for values in images:
        values.reshape(-1)[rng.integers(0, values.size, values.size // 50)] = 65535
    use = use_of(*images)
    assert use.used[1] - use.used[0] > 65535 / 2 and use.is_crushed
    assert use.levels < 10 < 100 < use.best_levels
    assert use.ways_out[0] == "--set source.range=percentile:2,98"
    low, high = map(int, use.ways_out[1].partition("[")[2].partition("]")[0].split(","))
    assert 500 < low < high < 5000  # not 0 to 65535, which would change nothing


def test_the_upper_part_of_a_range_is_named_by_its_ends():
    use = use_of(*[(65535 - values).astype(np.uint16) for values in chests()])
    assert use.is_crushed and "source.range=[6" in use.ways_out[1]


def test_windows_that_all_files_state_are_a_way_out(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        science.write_chest(tmp_path / f"{number}.dcm", rng, "clear")
    files = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    use = range_use(drawn(*files, suffix="dcm"), USUAL)
    assert use.is_crushed and use.ways_out[-1] == "--set source.range=window, which the files state"
    assert use.bits == 14  # that the files state, rescaled


@pytest.mark.parametrize("darker", [1, 2, 6])
@pytest.mark.parametrize("deep", [lambda values: values * 257, lambda values: values * 256])
def test_photographs_of_8_bits_in_files_of_16_are_no_reason_to_warn(darker, deep):
    """However dark: no range shows more of them than there is."""
    scenes = [render_scene(CounterRng(5, number), 64)[..., 1] // darker for number in range(6)]
    assert not use_of(*[deep(scene.astype(np.uint16)) for scene in scenes]).is_crushed


def test_masks_and_images_of_one_value_have_nothing_to_gain():
    assert not use_of(np.zeros((9, 9), np.uint16)).is_crushed
    assert not use_of(np.tile(np.array([0, 65535], np.uint16), (9, 9))).is_crushed
