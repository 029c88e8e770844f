import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.finetune.masks.decode import MaskDecoder, class_id_decoder, packed_colour, read_values
from beit.tests.unit.finetune.masks.trees import colours, encoded, ids, palette_image, photo


def grey_png(values, depth):
    """Return a grey PNG of few bits, which Pillow does not write."""
    height, width = values.shape
    bits = ((values[..., None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8).reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_grey_values_are_read_as_they_are():
    mask = ids(0, 1, 7, 200, 255)
    found = read_values(encoded(mask))
    assert found.kind == "ids" and found.palette is None
    np.testing.assert_array_equal(found.values, mask)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_few_bits_gives_the_values_that_were_written(depth):
    mask = ids(*range(2**depth), size=(2**depth, 3)) if depth < 8 else ids(0, 51, 85, 255)
    np.testing.assert_array_equal(read_values(grey_png(mask, depth)).values, mask)


def test_grey_of_16_bits_gives_ids_above_a_byte():
    mask = ids(0, 1, 255, 256, 40000, dtype=np.uint16)
    found = read_values(encoded(Image.fromarray(mask)))
    np.testing.assert_array_equal(found.values, mask)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_give_indices_never_colours(bits):
    mask = ids(0, 1, 1, 0) if bits == 1 else ids(0, 1, 2, 3)
    palette = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9)]
    found = read_values(encoded(palette_image(mask, palette), bits=bits))
    assert found.kind == "ids"
    np.testing.assert_array_equal(found.values, mask)
    np.testing.assert_array_equal(found.palette[: mask.max() + 1], palette[: mask.max() + 1])


def test_a_palette_of_256_keeps_255():
    palette = [(value, value, value) for value in range(256)]
    np.testing.assert_array_equal(read_values(encoded(palette_image(ids(0, 3, 255), palette))).values, ids(0, 3, 255))


def test_colours_are_packed_red_first():
    found = read_values(encoded(colours((1, 2, 3), (255, 0, 128))))
    assert found.kind == "colours"
    assert sorted(set(found.values.ravel().tolist())) == [packed_colour((1, 2, 3)), packed_colour((255, 0, 128))]


def test_an_opaque_alpha_channel_is_dropped_and_another_refused():
    image = Image.fromarray(colours((1, 2, 3), (4, 5, 6))).convert("RGBA")
    np.testing.assert_array_equal(read_values(encoded(image)).values, read_values(encoded(image.convert("RGB"))).values)
    grey = Image.fromarray(ids(0, 5)).convert("LA")
    np.testing.assert_array_equal(read_values(encoded(grey)).values, ids(0, 5))
    image.putalpha(Image.fromarray(ids(0, 255)))
    with pytest.raises(BadSample, match="transparent"):
        read_values(encoded(image))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (photo(), "JPEG, whose compression"),
        (encoded(colours((1, 2, 3)), "WEBP"), "WebP"),
        (b"", "no bytes"),
        (b"no image at all", "not a JPEG, PNG"),
        (encoded(ids(0, 1))[:-32], "(?i)truncated|broken"),
    ],
    ids=["jpeg", "webp", "empty", "text", "cut"],
)
def test_what_is_no_png_is_refused_in_words(data, words):
    with pytest.raises(BadSample, match=words):
        read_values(data)


def test_colours_of_16_bits_are_refused():
    rows = b"\0" + bytes(6 * 2)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(BadSample, match="16 bits"):
        read_values(data)


def test_large_masks_are_refused_before_they_are_decoded():
    with pytest.raises(BadSample, match="megapixels"):
        read_values(encoded(ids(0, 1)), max_pixels=12)


def test_decoding_maps_values_to_class_ids():
    decoder = MaskDecoder(kind="ids", values=(0, 7, 11, 300), ids=(255, 0, 1, 2))
    mask = ids(0, 7, 11, 300, dtype=np.uint16)
    out = decoder.decode(encoded(Image.fromarray(mask)), size=(12, 8))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, ids(255, 0, 1, 2))


def test_decoding_maps_colours_to_class_ids():
    table = {packed_colour((0, 0, 0)): 255, packed_colour((64, 0, 128)): 1, packed_colour((255, 255, 255)): 0}
    decoder = MaskDecoder(kind="colours", values=tuple(sorted(table)), ids=tuple(table[key] for key in sorted(table)))
    mask = colours((0, 0, 0), (64, 0, 128), (255, 255, 255))
    np.testing.assert_array_equal(decoder.decode(encoded(mask)), ids(255, 1, 0))


def test_numbers_in_rgb_are_read_from_any_channel():
    decoder = MaskDecoder(kind="ids", values=(0, 3), ids=(0, 1), is_grey=True)
    mask = colours((0, 0, 0), (3, 3, 3))
    np.testing.assert_array_equal(decoder.decode(encoded(mask)), ids(0, 1))
    np.testing.assert_array_equal(decoder.decode(encoded(ids(0, 3))), ids(0, 1))
    with pytest.raises(BadSample, match="colours"):
        decoder.decode(encoded(colours((0, 0, 0), (3, 3, 4))))


def test_another_size_and_unknown_values_are_bad_samples():
    decoder = class_id_decoder(3)
    with pytest.raises(BadSample, match="12 x 8 px, its image 6 x 4"):
        decoder.decode(encoded(ids(0, 1)), size=(6, 4))
    with pytest.raises(BadSample, match="7 in 48 pixels"):
        decoder.decode(encoded(ids(0, 7)))
    with pytest.raises(BadSample, match="colours, where other masks hold numbers"):
        decoder.decode(encoded(colours((0, 0, 0), (3, 3, 4))))


def test_a_colour_between_known_ones_is_unknown():
    decoder = MaskDecoder(kind="colours", values=(10, 20), ids=(0, 1))
    for value in (0, 15, 30):
        with pytest.raises(BadSample, match="no class"):
            decoder.decode(encoded(colours((0, 0, value))))


def test_a_decoder_pickles_without_its_tables():
    decoder = class_id_decoder(150)
    decoder.decode(encoded(ids(0, 149, 255)))
    data = pickle.dumps(decoder)
    assert len(data) < 3000
    np.testing.assert_array_equal(pickle.loads(data).decode(encoded(ids(0, 149, 255))), ids(0, 149, 255))


def test_all_255_classes_and_the_ignored_value_have_room():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(class_id_decoder(255).decode(encoded(mask)), mask)


GREY = [(value, value, value) for value in range(256)]


@pytest.mark.parametrize(
    ("form", "options"),
    [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}), ("BMP", {})],
)
def test_other_formats_without_loss_give_what_a_png_gives(form, options):
    mask, few = ids(0, 1, 7, 200, 255), ids(0, 1)
    for image in (
        Image.fromarray(mask),
        palette_image(ids(0, 1, 2), [(200, 0, 0), (0, 200, 0), (0, 0, 200)]),
        Image.fromarray(few * 255).convert("1"),
        Image.fromarray(colours((1, 2, 3), (200, 100, 0))),
    ):
        png, other = read_values(encoded(image)), read_values(encoded(image, form, **options))
        assert png.kind == other.kind
        np.testing.assert_array_equal(png.values, other.values)


def test_gif_gives_indices_as_a_palette_png_does():
    palette = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    found = read_values(encoded(palette_image(ids(0, 1, 2), palette), "GIF", optimize=False))
    np.testing.assert_array_equal(found.values, ids(0, 1, 2))
    np.testing.assert_array_equal(found.palette[:3], palette)
    np.testing.assert_array_equal(read_values(encoded(ids(0, 3, 255), "GIF", optimize=False)).values, ids(0, 3, 255))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_tiff_of_wide_numbers(dtype):
    mask = ids(0, 1, 256, 40000, dtype=dtype)
    np.testing.assert_array_equal(read_values(encoded(Image.fromarray(mask), "TIFF")).values, mask)


def odd_tiffs():
    grey = Image.fromarray(ids(0, 1))
    yield encoded(grey, "TIFF", save_all=True, append_images=[grey]), "several pictures"
    yield encoded(grey.convert("RGB"), "TIFF", compression="jpeg"), "compression that changes values"
    yield encoded(grey, "TIFF", tiffinfo={262: 0}), "0 is white"
    yield encoded(grey.convert("F"), "TIFF"), "numbers with fractions"
    yield encoded(Image.fromarray(ids(-1, 1, dtype=np.int32)), "TIFF"), "numbers from -1 to 1"
    yield encoded(grey.convert("CMYK"), "TIFF"), "kind that is not known"
    yield encoded(Image.fromarray(colours((1, 2, 3))).convert("RGBA").resize((3, 2)), "TIFF")[:60], ""


@pytest.mark.parametrize(("data", "reason"), list(odd_tiffs()))
def test_tiff_that_is_no_certain_mask_is_refused(data, reason):
    with pytest.raises(BadSample) as raised:
        read_values(data)
    assert reason in str(raised.value)
