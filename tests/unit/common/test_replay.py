"""`replay_view` must be `render_view` with Pillow's pixels and errors, whichever decoder was at work."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common import views
from beit.common.errors import BadSample
from beit.common.images import jpeg
from beit.common.images.decode import decode_image
from beit.common.images.jpeg import decode_jpeg_unchecked
from beit.common.jitter import FACTOR_ONE
from beit.common.rng import CounterRng
from beit.common.views import VIEW_DTYPE, AugmentConfig, crop_crc, draw_view, render_view, replay_view


def photo(width: int = 90, height: int = 70, mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(width).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", orientation: int | None = None, **options: object) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()


IMAGES = {
    "4:2:0": encoded(photo(), quality=85),
    "4:2:0 of odd size": encoded(photo(89, 71), quality=60),
    "4:2:2": encoded(photo(), quality=90, subsampling="4:2:2"),
    "4:4:4": encoded(photo(), quality=95, subsampling="4:4:4"),
    "progressive": encoded(photo(), progressive=True),
    "restart markers": encoded(photo(), restart_marker_blocks=2),
    "RGB inside": encoded(photo(), keep_rgb=True),
    "grey": encoded(photo(mode="L")),
    "CMYK": encoded(photo(mode="CMYK")),
    "EXIF, upright": encoded(photo(), orientation=1),
    "EXIF, turned": encoded(photo(), orientation=6),
    "EXIF, upside down": encoded(photo(), orientation=3),
    "PNG": encoded(photo(), "PNG"),
    "WebP": encoded(photo(), "WEBP"),
}
QUICKLY = {"4:2:0", "4:2:0 of odd size", "4:2:2", "4:4:4", "progressive", "restart markers", "RGB inside", "grey"}
QUICKLY |= {"EXIF, upright"}


def stored_view(data: bytes, number: int = 0) -> np.void:
    image = decode_image(data)
    view = draw_view(CounterRng(0, number), image.width, image.height, AugmentConfig())
    view["crc_crop"] = crop_crc(image, view)
    return view


def whole(data: bytes) -> np.void:
    """The view of a materialised crop."""
    image = decode_image(data)
    view = np.zeros(1, VIEW_DTYPE)[0]
    view["w"], view["h"] = image.size
    view["bright"] = view["contrast"] = view["sat"] = FACTOR_ONE
    view["crc_crop"] = crop_crc(image, view)
    return view


@pytest.fixture
def refuse_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Pillow decoded")

    return lambda: monkeypatch.setattr(views, "decode_image", refuse)


@pytest.mark.parametrize("resample", ["bicubic", "bicubic-torch"])
@pytest.mark.parametrize("scope", ["crop", "image"])
@pytest.mark.parametrize("name", IMAGES)
def test_the_pixels_are_those_of_render_view(name: str, scope: views.JitterScope, resample: views.Resample) -> None:
    data = IMAGES[name]
    how = {"img_size": 48, "resample": resample, "jitter_scope": scope}
    for number in range(6):
        view = stored_view(data, number)
        expected = render_view(decode_image(data), view, check_crop=True, **how)
        pixels = replay_view(data, view, **how)
        assert np.array_equal(pixels, expected) and pixels.flags.writeable and pixels.dtype == np.uint8


@pytest.mark.parametrize("name", sorted(QUICKLY))
def test_ordinary_jpegs_are_decoded_once_and_quickly(name: str, refuse_pillow: Callable[[], None]) -> None:
    data = IMAGES[name]
    view = stored_view(data)
    refuse_pillow()
    assert replay_view(data, view).shape == (224, 224, 3)


@pytest.mark.parametrize("name", sorted(IMAGES.keys() - QUICKLY))
def test_what_only_pillow_gets_right_goes_to_pillow(name: str) -> None:
    image = decode_image(IMAGES[name])
    assert decode_jpeg_unchecked(IMAGES[name], width=1, height=1) is None
    assert np.array_equal(
        replay_view(IMAGES[name], whole(IMAGES[name]), img_size=image.width)[0, 0], image.getpixel((0, 0))
    )


@pytest.mark.parametrize("scope", ["crop", "image"])
def test_a_materialised_crop_comes_out_as_it_was_stored(
    scope: views.JitterScope, refuse_pillow: Callable[[], None]
) -> None:
    data = encoded(photo(64, 64), quality=90)
    view, expected = whole(data), np.asarray(decode_image(data))
    refuse_pillow()
    pixels = replay_view(data, view, img_size=64, jitter_scope=scope)
    assert np.array_equal(pixels, expected) and pixels.flags.writeable


def test_without_the_quick_decoder_everything_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = IMAGES["4:2:0"]
    view = stored_view(data)
    expected = replay_view(data, view)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert decode_jpeg_unchecked(data, width=1, height=1) is None
    assert np.array_equal(replay_view(data, view), expected)


def test_a_quick_decoder_with_other_pixels_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a build with another inverse transform would have."""
    data = IMAGES["4:2:0"]
    view = stored_view(data)
    expected = render_view(decode_image(data), view, check_crop=True)
    other = decode_jpeg_unchecked(data, width=90, height=70) ^ 1
    monkeypatch.setattr(views, "decode_jpeg_unchecked", lambda *_, **__: other)
    assert np.array_equal(replay_view(data, view), expected)


def test_other_pixels_than_those_that_were_tokenised_are_refused() -> None:
    view = stored_view(IMAGES["4:2:0"])
    other = encoded(photo(), quality=84)
    with pytest.raises(BadSample) as caught:
        replay_view(other, view)
    assert caught.value.reason == "crc-mismatch"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0 and no more", "truncated"),
        (IMAGES["4:2:0"][: len(IMAGES["4:2:0"]) // 2], "truncated"),
        (encoded(photo(40, 30)), "view-mismatch"),
    ],
    ids=["empty", "header only", "cut", "too small"],
)  # fmt: skip
def test_errors_are_those_of_render_view(data: bytes, reason: str) -> None:
    view = whole(IMAGES["4:2:0"])
    with pytest.raises(BadSample) as caught:
        replay_view(data, view)
    with pytest.raises(BadSample) as expected:
        render_view(decode_image(data), view, check_crop=True)
    assert str(caught.value) == str(expected.value) and caught.value.reason == expected.value.reason
    assert caught.value.reason == reason


@pytest.mark.parametrize("side", ["w", "h"])
def test_a_box_without_pixels_does_not_fit(side: str) -> None:
    view = whole(IMAGES["4:2:0"])
    view[side] = view["crc_crop"] = 0
    with pytest.raises(BadSample, match="view-mismatch"):
        replay_view(IMAGES["4:2:0"], view)


@pytest.mark.parametrize("resample", ["bicubic", "bicubic-torch"])
def test_a_crop_of_the_right_size_is_only_coloured(resample: views.Resample) -> None:
    view = whole(encoded(photo(64, 64)))
    view["sat"] = 9000
    how = {"img_size": 64, "resample": resample}
    image = decode_image(encoded(photo(64, 64)))
    assert np.array_equal(replay_view(encoded(photo(64, 64)), view, **how), render_view(image, view, **how))


@pytest.mark.parametrize("name", sorted(QUICKLY))
@pytest.mark.parametrize("height", [1, 15, 16, 17, 40, 69, 70])
def test_rows_below_the_wanted_ones_are_left_out(name: str, height: int) -> None:
    pixels, whole_image = decode_jpeg_unchecked(IMAGES[name], width=1, height=height), decode_image(IMAGES[name])
    assert np.array_equal(pixels[:height], np.asarray(whole_image)[:height])
    cut = whole_image.height if name == "progressive" else -(-height // 16) * 16 + 16
    assert len(pixels) == min(whole_image.height, cut)


def test_rows_are_left_out_only_where_all_colours_come_in_one_scan() -> None:
    data = IMAGES["4:4:4"]
    at = data.index(b"\xff\xda") + 4
    assert data[at] == 3
    assert len(jpeg._cut_jpeg(data, 16)) == len(data) and jpeg._cut_jpeg(data, 16) != data
    other = data[:at] + b"\x01" + data[at + 1 :]
    assert jpeg._cut_jpeg(other, 16) == other
    for length in range(at + 1):  # headers that end early
        assert jpeg._cut_jpeg(data[:length], 16) == data[:length]


def test_resizing_by_torch_is_what_its_public_function_does() -> None:
    for height, width, side in [(300, 400, 224), (50, 40, 96), (97, 224, 112)]:
        pixels = np.asarray(photo(width, height))
        batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(batch, (side, side), mode="bicubic", antialias=True)
        found = views._resize_with_torch(pixels, side)
        assert np.array_equal(found, expected[0].permute(1, 2, 0).numpy()) and found.flags.c_contiguous


def test_a_bomb_is_refused_before_its_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = IMAGES["4:2:0"]
    monkeypatch.setattr(jpeg, "MAX_PIXELS", 90 * 70 - 1)
    assert decode_jpeg_unchecked(data, width=1, height=1) is None


@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_never_give_other_pixels(seed: int) -> None:
    """Where the damage lies outside the crop, a view may pass that Pillow would refuse; its pixels are proved."""
    rng, data = np.random.default_rng(seed), IMAGES["4:4:4"]
    view = stored_view(data, seed)
    expected = replay_view(data, view, img_size=32)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data)
        damaged[rng.integers(2, len(data))] ^= 1 << rng.integers(8)
        try:
            outcomes.add(np.array_equal(replay_view(bytes(damaged), view, img_size=32), expected))
        except BadSample:
            outcomes.add("refused")
    assert "refused" in outcomes and False not in outcomes
