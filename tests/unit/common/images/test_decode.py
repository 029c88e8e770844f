import base64
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.formats import is_image_path


def encode(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 9 % 256, columns * 6 % 256, rows + columns], axis=-1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def reason_of(data: bytes, decoding: Decoding = USUAL) -> str:
    with pytest.raises(BadSample) as caught:
        decode_image(data, decoding)
    return caught.value.reason


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    data = encode(gradient(), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(gradient()))


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert decode_image(encode(gradient().convert(mode))).mode == "RGB"


def test_cmyk_and_progressive_jpegs_become_rgb() -> None:
    assert decode_image(encode(gradient().convert("CMYK"), "JPEG")).mode == "RGB"
    assert decode_image(encode(gradient(), "JPEG", progressive=True)).size == (40, 24)


def test_transparent_palette_keeps_its_colours() -> None:
    palette = gradient().convert("P", palette=Image.Palette.ADAPTIVE)
    with_alpha = decode_image(encode(palette, transparency=bytes([0, 128] * 20)))
    assert np.array_equal(np.asarray(with_alpha), np.asarray(palette.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    pixels = np.asarray(decode_image(encode(Image.fromarray(values))))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_exif_orientation_is_applied_unless_told_otherwise() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(gradient(), "PNG", exif=exif)
    turned = gradient().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(turned))
    assert decode_image(data, apply_exif=False).size == (40, 24)


def test_broken_exif_leaves_the_image_as_stored() -> None:
    data = encode(gradient(), "JPEG", exif=b"Exif\0\0not a tiff header")
    assert decode_image(data).size == (40, 24)


def test_first_frame_of_an_animation() -> None:
    frames = [gradient(), Image.new("RGB", (40, 24), "white")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(gradient()))


def test_one_pixel_image() -> None:
    assert decode_image(encode(Image.new("L", (1, 1)), "JPEG")).size == (1, 1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_cut_data_is_never_filled_with_grey(image_format: str, fraction: float) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, image_format)
    assert reason_of(data[: int(len(data) * fraction)]) in ("truncated", "decode-error", "unsupported")


def test_reasons() -> None:
    assert reason_of(b"") == "empty"
    assert reason_of(b"not an image at all") == "unsupported"
    assert reason_of(encode(gradient(), "GIF")) == "unsupported"
    assert reason_of(encode(gradient(), "JPEG")[:-200]) == "truncated"
    assert reason_of(png_header(8001, 8001)) == "bomb"
    assert reason_of(png_header(30000, 30000)) == "bomb"
    assert reason_of(png_header(65536, 2)) == "too-large"
    assert reason_of(encode(gradient()), Decoding(max_pixels=100)) == "bomb"


def test_damaged_png_is_a_bad_sample() -> None:
    data = bytearray(encode(gradient()))
    data[60] ^= 0xFF
    assert reason_of(bytes(data)) in ("truncated", "decode-error")


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    code = """
import sys, warnings
from concurrent.futures import ThreadPoolExecutor
from beit.common.errors import BadSample
from beit.common.images.decode import decode_image

def decode(data):
    try:
        return decode_image(data).size
    except BadSample as error:
        return error.reason

before, images = list(warnings.filters), [bytes.fromhex(line) for line in sys.stdin]
with ThreadPoolExecutor(8) as pool:
    print(sorted({str(result) for result in pool.map(decode, images * 50)}))
assert warnings.filters == before
"""
    odd_exif = encode(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    palette = encode(gradient().convert("P"), transparency=bytes([0, 128] * 20))
    lines = "\n".join(data.hex() for data in (odd_exif, palette, png_header(9000, 9000)))
    result = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("['(40, 24)', 'bomb']\n", "")


ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8"
    "ybqmx5moq6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/yQAR"
    "CAAYACgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD+b2h5CfN/Y5e7atQIIX/gRhKGNuQ1IAeRejPKLqIGEu3PWnqsJvtS"
    "Ywm7WTDXwaHmPTAzX3Eb2DaDjoATtNwpRCkhjc8NJHcBz9NhR+upzP/Z"
)
"""24 px high, grey below, coded arithmetically by libjpeg-turbo's encoder."""


def test_an_arithmetic_jpeg_with_a_flat_end_is_complete() -> None:
    assert decode_image(ARITHMETIC).getpixel((39, 23)) == (128, 128, 128)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "many"])
def test_texts_of_a_png_do_not_matter_whatever_their_length(kind: str) -> None:
    texts = PngImagePlugin.PngInfo()
    if kind == "many":
        for number in range(70):
            texts.add_text(f"note {number}", "x" * 1_000_000, zip=True)
    elif kind == "zTXt":
        texts.add_text("note", "x" * 3_000_000, zip=True)
    else:
        texts.add_itxt("note", "x" * 3_000_000, zip=True)
    data = encode(gradient(), pnginfo=texts)
    with pytest.raises(ValueError, match="MAX_TEXT|text chunks"), Image.open(io.BytesIO(data)) as image:
        image.load()
    assert np.array_equal(np.asarray(decode_image(data)), np.asarray(gradient()))


def test_a_large_colour_profile_of_a_png_does_not_matter() -> None:
    assert decode_image(encode(gradient(), icc_profile=b"x" * 3_000_000)).size == (40, 24)


def test_the_orientation_of_a_png_outlives_its_large_texts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    texts = PngImagePlugin.PngInfo()
    texts.add_text("note", "x" * 3_000_000, zip=True)
    assert decode_image(encode(gradient(), pnginfo=texts, exif=exif)).size == (24, 40)


def test_a_pointer_of_git_lfs_is_called_one() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"
    assert reason_of(pointer) == "lfs-pointer"
    with pytest.raises(BadSample, match="run git lfs pull"):
        decode_image(pointer)


def test_as_many_pixels_are_admitted_as_asked_for() -> None:
    assert decode_image(encode(gradient()), Decoding(max_pixels=40 * 24)).size == (40, 24)
    with pytest.raises(BadSample, match=r"8001 x 8001 px, 64.02 megapixels, .* source.max_megapixels=80 admits"):
        decode_image(png_header(8001, 8001))
    # Above what Pillow refuses by itself; there are no pixels behind this header.
    assert reason_of(png_header(20000, 15000), Decoding(max_pixels=400_000_000)) in ("truncated", "decode-error")
    assert reason_of(png_header(20000, 15000)) == "bomb"


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "jfif", "jpe", "mpo", "png", "apng", "webp"])
def test_spellings_of_the_formats_are_images(suffix: str) -> None:
    assert is_image_path(f"a/b.{suffix}")
    assert not is_image_path(f"a/b.x{suffix}")
