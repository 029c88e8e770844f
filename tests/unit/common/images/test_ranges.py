"""Which values become black and white: settings, the mapping, and what each kind of file makes of it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.ranges import ValueRange, map_to_8_bit, to_8_bit
from beit.common.images.samples import Samples
from beit.common.sources.config import SourceConfig, decoding_options, value_of_option


def png_of(values, **options):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", **options)
    return buffer.getvalue()


def colour_png(values):
    """Encode (H, W, C) uint16 of 2 to 4 channels, which Pillow cannot write; rows are filtered by their left side."""
    height, width, channels = values.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    rows[:, 2 * channels :] = rows[:, 2 * channels :] - rows[:, : -2 * channels]
    data = b"".join(b"\1" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    pieces = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def with_range(setting, found=None):
    return Decoding(value_range=ValueRange.parse(setting, found))


def decoded(data, setting):
    return np.asarray(decode_image(data, with_range(setting)))


@pytest.mark.parametrize(
    ("setting", "kind", "low", "high"),
    [
        ("dtype", "dtype", None, None),
        ("window", "window", None, None),
        ((0.0, 4095.0), "bounds", 0, 4095),
        ((-1024.0, 3071.0), "bounds", -1024, 3071),
        ("percentile:0.5,99.5", "percentile", None, None),
    ],
)
def test_settings_are_read_and_given_back(setting, kind, low, high):
    found = ValueRange.parse(setting)
    assert (found.kind, found.low, found.high, found.setting) == (kind, low, high, setting)
    assert found.is_resolved == (kind != "percentile")


@pytest.mark.parametrize(
    "setting",
    [
        *("dtyp", "", "percentile", "percentile:", "percentile:5", "percentile:a,b", "percentile:99,1"),
        *("percentile:-1,50", "percentile:1,101", "percentile:1,nan", "0,4095"),
        *((), (1.0,), (1.0, 2.0, 3.0), (5.0, 3.0), (2.0, 2.0), (0.0, float("inf")), (float("nan"), 1.0)),
        5.0,
    ],
)
def test_wrong_settings_are_one_line_with_an_example(setting):
    with pytest.raises(InputError, match=r"^source.range \(.*percentile:0.5,99.5") as caught:
        SourceConfig(range=setting)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_the_ends_are_black_and_white_and_all_between_is_rounded(dtype):
    values = np.array([0, 9, 10, 11, 60, 109, 110, 111, 120], dtype)
    assert map_to_8_bit(values, 10, 110).tolist() == [0, 0, 0, 3, 128, 252, 255, 255, 255]


def test_the_full_range_of_16_bits_is_what_it_always_was():
    values = np.arange(65536, dtype=np.uint16)
    assert (map_to_8_bit(values, 0, 65535) == (values.astype(np.int64) + 128) // 257).all()
    assert (map_to_8_bit(np.arange(256, dtype=np.uint8), 0, 255) == np.arange(256)).all()
    data = png_of(values.reshape(256, 256))
    usual = decode_image(data)
    assert usual.mode == "RGB" and decode_image(data, with_range("dtype")) == usual


def test_what_is_not_a_number_is_black_and_infinities_are_the_ends():
    values = np.array([np.nan, -np.inf, np.inf, 0.5], np.float32)
    assert map_to_8_bit(values, 0, 1).tolist() == [0, 0, 255, 128]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_extreme_values_do_not_wrap(size):
    for dtype in (f"u{size}", f"i{size}"):
        limits = np.iinfo(dtype)
        values = np.array([limits.min, limits.max], dtype)
        assert map_to_8_bit(values, limits.min, limits.max).tolist() == [0, 255]
        assert map_to_8_bit(values, 3, 4).tolist() == [0, 255]


def test_12_bits_in_16_keep_all_their_levels_only_by_a_range():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = png_of(values)
    assert len(np.unique(np.asarray(decode_image(data)))) == 17  # (4095 + 128) // 257 + 1
    for setting in ((0.0, 4095.0), "percentile:0,100"):
        found = (0.0, 4095.0) if isinstance(setting, str) else None
        pixels = np.asarray(decode_image(data, with_range(setting, found)))
        assert pixels.shape == (64, 64, 3) and len(np.unique(pixels)) == 256
        assert pixels[0, 0].tolist() == [0] * 3 and pixels[-1, -1].tolist() == [255] * 3
        assert (pixels[..., 0] == np.floor(values.astype(float) * 255 / 4095 + 0.5)).all()


def test_a_range_holds_for_8_bits_too():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert decoded(png_of(pixels), (0.0, 47.0)).tolist() == map_to_8_bit(pixels, 0, 47).tolist()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (decoded(png_of(grey), (100.0, 101.0))[..., 1] == np.where(grey > 100, 255, 0)).all()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_colours_are_read_in_full(channels):
    values = np.random.default_rng(0).integers(0, 4096, (13, 17, channels)).astype(np.uint16)
    num_colours = channels - (channels != 3)
    found = decoded(colour_png(values), (0.0, 4095.0))
    assert (found[..., :num_colours] == map_to_8_bit(values, 0, 4095)[..., :num_colours]).all()
    usual = np.asarray(decode_image(colour_png(values)))
    assert (usual[..., :num_colours] == values[..., :num_colours] >> 8).all()


def test_orientation_is_heeded_whatever_the_range():
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 800
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png_of(values, exif=exif)
    assert decode_image(data).size == (2, 3)
    assert (decoded(data, (0.0, 4000.0))[..., 0] == map_to_8_bit(np.rot90(values, -1), 0, 4000)).all()


def test_a_window_is_the_images_own():
    array = np.arange(100, dtype=np.uint16).reshape(10, 10, 1)
    window = ValueRange.parse("window")
    samples = Samples(array=array, kind="grey", bits=12, window=(20.0, 40.0))
    assert (to_8_bit(samples, window) == map_to_8_bit(array, 20, 40)).all()
    inverted = Samples(array=array, kind="grey", bits=12, window=(20.0, 40.0), is_inverted=True)
    assert (to_8_bit(inverted, window) == 255 - map_to_8_bit(array, 20, 40)).all()
    with pytest.raises(BadSample, match=r"no window; give source.range as .*predict: --range 0,4095\)"):
        to_8_bit(Samples(array=array, kind="grey"), window)
    shallow = Samples(array=array.astype(np.uint8), kind="grey")
    assert (to_8_bit(shallow, window) == array).all()


def test_floats_have_no_range_of_their_own():
    samples = Samples(array=np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1), kind="grey")
    with pytest.raises(BadSample, match="no-range: its values are of type float32"):
        to_8_bit(samples, ValueRange())
    assert to_8_bit(samples, ValueRange.parse((0.0, 1.0))).max() == 255


def test_percentiles_that_were_not_found_are_no_range():
    with pytest.raises(ValueError, match="are to be found before images are decoded"):
        decode_image(png_of(np.zeros((2, 2), np.uint16)), with_range("percentile:1,99"))


@pytest.mark.parametrize(
    "decoding",
    [
        USUAL,
        Decoding(max_pixels=2000),
        with_range((0.0, 4095.0)),
        with_range("window"),
        with_range("percentile:0.5,99.5", (31.0, 812.0)),
    ],
)
def test_a_decoding_survives_json(decoding):
    assert Decoding.from_json(decoding.as_json()) == decoding
    assert (decoding.as_json() == {}) == (decoding == USUAL)


@pytest.mark.parametrize(
    "values",
    [{"range": 3}, {"range": "x"}, {"rage": "dtype"}, {"alpha": 5}, {"range_found": 7, "range": "percentile:1,2"}],
)
def test_other_json_is_refused(values):
    with pytest.raises(InputError, match="does not say how images are decoded"):
        Decoding.from_json(values)


def test_options_of_the_command_line_mean_what_settings_do():
    assert value_of_option("0,4095") == (0, 4095) == value_of_option("[0, 4095]")
    assert value_of_option("percentile:0.5,99.5") == "percentile:0.5,99.5"
    assert value_of_option("-1024.5,3071") == (-1024.5, 3071)
    assert value_of_option("2") == 2
    for given in (SourceConfig(), SourceConfig(range=(0.0, 4095.0)), SourceConfig(range="percentile:0.5,99.5")):
        words = decoding_options(given)
        said = {words[i].removeprefix("--"): value_of_option(words[i + 1]) for i in range(0, len(words), 2)}
        assert SourceConfig(**said).decoding == given.decoding
    assert decoding_options(SourceConfig(max_megapixels=100.0)) == ["--max-megapixels", "100"]


def test_what_a_model_was_trained_with_holds_unless_settings_say_otherwise(caplog):
    trained = with_range("percentile:0.5,99.5", (31.0, 812.0))
    assert SourceConfig().after(USUAL, "runs/a") == SourceConfig()
    assert SourceConfig().after(trained, "runs/a").decoding == with_range((31.0, 812.0))
    assert not caplog.messages
    other = SourceConfig(range=(0.0, 4095.0))
    assert other.after(trained, "runs/a") == other
    assert caplog.messages == ["source.range is 0,4095, where runs/a was trained with 31,812"]
    with pytest.raises(InputError, match="percentiles are found where a model is trained"):
        SourceConfig(range="percentile:1,99").after(trained, "runs/a", is_final=True)


def test_floats_without_a_range_lead_to_the_setting_and_the_option():
    floats = Samples(array=np.zeros((2, 2, 1), np.float32), kind="grey")
    with pytest.raises(BadSample, match=r"float32; .*--set source.range=\[0,1\] \(evaluate, predict: --range 0,1\)"):
        to_8_bit(floats, ValueRange())
