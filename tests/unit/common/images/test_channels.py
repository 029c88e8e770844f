"""Bands are picked by number, counted from 1; what says nothing of its colours is never shown in some."""

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.channels import image_of, in_colour, luma, pick_channels, pixels_of
from beit.common.images.samples import Samples


def scene(count, kind="bands", dtype=np.uint16, **more):
    array = np.arange(6 * 5 * count, dtype=dtype).reshape(6, 5, count)
    return Samples(array=array, kind=kind, **more)


def test_bands_are_picked_in_the_order_that_is_asked_for_counted_from_1():
    samples = scene(13, band_names=tuple(f"B{i}" for i in range(1, 14)))
    picked = pick_channels(samples, (4, 3, 2))
    assert picked.kind == "rgb" and picked.band_names == ("B4", "B3", "B2")
    assert np.array_equal(picked.array, samples.array[..., [3, 2, 1]]) and picked.array.dtype == np.uint16
    single = pick_channels(samples, (13,))
    assert single.kind == "grey" and np.array_equal(single.array[..., 0], samples.array[..., 12])


def test_colours_have_bands_too_and_transparency_is_none_of_them():
    colours = scene(3, "rgb", alpha=np.zeros((6, 5), np.uint16))
    assert np.array_equal(pick_channels(colours, (3, 2, 1)).array, colours.array[..., ::-1])
    assert pick_channels(colours, (1,)).alpha is colours.alpha
    with pytest.raises(BadSample, match=r"names band 4, and it has 3 bands, counted from 1; transparency is none"):
        pick_channels(colours, (4, 3, 2))


@pytest.mark.parametrize(
    ("samples", "bands", "said"),
    [
        (scene(3, "rgb"), (4, 3, 2), "names band 4, and it has 3 bands, counted from 1"),
        (scene(1, "grey"), (2,), "names band 2, and it has 1 band, counted from 1"),
        (scene(13), (0, 1, 2), "names band 0, and it has 13 bands, counted from 1"),
        (scene(2, band_names=("VV", "VH")), (1, 2, 3), r"it has 2 bands \(VV, VH\)"),
    ],
)
def test_a_band_that_is_not_there_is_a_bad_sample_with_the_number_of_those_that_are(samples, bands, said):
    with pytest.raises(BadSample, match=said) as error:
        pick_channels(samples, bands)
    assert error.value.reason == "channels"


def test_many_bands_are_never_shown_as_colours_or_grey_without_being_asked():
    for channels, example in (("rgb", r"source\.channels=\[4, 3, 2\]"), ("grey", r"source\.channels=\[1\]")):
        for count in (2, 3, 4, 13):
            with pytest.raises(
                BadSample, match=f"it has {count} bands; .*counted from 1: --set {example} .*predict: --channels"
            ):
                pick_channels(scene(count), channels)


def test_what_says_that_it_is_rgb_or_grey_stays_as_it_is():
    for samples in (scene(3, "rgb"), scene(1, "grey")):
        for channels in ("rgb", "grey"):
            assert pick_channels(samples, channels) is samples
    assert pick_channels(scene(1), "rgb").kind == "grey"


def test_arrays_of_images_have_three_axes_and_make_the_same_images_again():
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    for image, channels in ((Image.fromarray(colours), 3), (Image.fromarray(colours[..., 0]), 1)):
        pixels = pixels_of(image)
        assert pixels.shape == (6, 5, channels)
        assert image_of(pixels).mode == image.mode and image_of(pixels).tobytes() == image.tobytes()
        assert in_colour(pixels).shape == (6, 5, 3)
        assert np.array_equal(in_colour(pixels), np.asarray(image.convert("RGB")))
    assert np.array_equal(luma(colours)[..., 0], np.asarray(Image.fromarray(colours).convert("L")))
