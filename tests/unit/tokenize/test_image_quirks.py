"""What cameras, scanners and downloads do to images: each kind is used, or skipped under a reason that is counted."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.store import open_store
from beit.tests.tiny_store import tokenize, write_members

RED, BLUE = (200, 30, 40), (20, 40, 210)
SIZE = (60, 40)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def two_colours(mode="RGB", size=SIZE):
    """Red above blue."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0], size[1] // 2))
    return image.convert(mode)


def png(width, height, depth, colour_type, rows):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png_16_bit_rgb():
    row = np.array([[value * 257 for value in colour] for colour in (RED, BLUE)], dtype=">u2")
    return png(*SIZE, 16, 2, [np.tile(row[2 * y // SIZE[1]], SIZE[0]).tobytes() for y in range(SIZE[1])])


def lying_down(orientation_name="JPEG"):
    """Red above blue, stored a quarter turn to the left."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(two_colours().transpose(Image.Transpose.ROTATE_90), orientation_name, exif=exif)


def grey(value, mode="L"):
    return Image.new(mode, SIZE, value)


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8))
TRANSPARENT = two_colours("RGBA")
TRANSPARENT.putalpha(90)
SECOND_FRAME = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "white")], "lossless": True}
PALETTE = two_colours().convert("P", palette=Image.Palette.ADAPTIVE)

# Name in the source: bytes, and size and colours (top, bottom) after decoding.
USABLE = {
    "plain.jpg": (encode(two_colours(), "JPEG", quality=95), SIZE, (RED, BLUE)),
    "progressive.jpg": (encode(two_colours(), "JPEG", quality=95, progressive=True), SIZE, (RED, BLUE)),
    "cmyk.jpg": (encode(two_colours("CMYK"), "JPEG", quality=95), SIZE, (RED, BLUE)),
    "grey.jpg": (encode(grey(77), "JPEG"), SIZE, ((77,) * 3,) * 2),
    "rotated.jpg": (lying_down(), SIZE, (RED, BLUE)),
    "rotated.webp": (lying_down("WEBP"), SIZE, (RED, BLUE)),
    "broken-exif.jpg": (encode(two_colours(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), SIZE, (RED, BLUE)),
    "trailing.jpg": (encode(two_colours(), "JPEG", quality=95) + b"camera notes" * 100, SIZE, (RED, BLUE)),
    "tiff.jpg": (encode(two_colours(), "TIFF"), SIZE, (RED, BLUE)),
    "plain.png": (encode(two_colours(), "PNG"), SIZE, (RED, BLUE)),
    "palette.png": (encode(PALETTE, "PNG"), SIZE, (RED, BLUE)),
    "palette-alpha.png": (encode(PALETTE, "PNG", transparency=bytes([128, 9])), SIZE, (RED, BLUE)),
    "black-white.png": (encode(two_colours().convert("1", dither=0), "PNG"), SIZE, ((0,) * 3,) * 2),
    "alpha.png": (encode(TRANSPARENT, "PNG"), SIZE, (RED, BLUE)),
    "grey-alpha.png": (encode(Image.new("LA", SIZE, (90, 5)), "PNG"), SIZE, ((90,) * 3,) * 2),
    "16-bit-grey.png": (encode(Image.new("I;16", SIZE, 77 * 257), "PNG"), SIZE, ((77,) * 3,) * 2),
    "16-bit-rgb.png": (png_16_bit_rgb(), SIZE, (RED, BLUE)),
    "plain.webp": (encode(two_colours(), "WEBP", quality=95), SIZE, (RED, BLUE)),
    "alpha.webp": (encode(TRANSPARENT, "WEBP", lossless=True), SIZE, (RED, BLUE)),
    "animated.webp": (encode(two_colours(), "WEBP", **SECOND_FRAME), SIZE, (RED, BLUE)),
    "animated.png": (encode(two_colours(), "PNG", save_all=True, append_images=[PHOTO]), SIZE, (RED, BLUE)),
    "one-pixel.png": (encode(Image.new("RGB", (1, 1), RED), "PNG"), (1, 1), (RED, RED)),
    "one-column.png": (encode(two_colours(size=(1, 900)), "PNG"), (1, 900), (RED, BLUE)),
    "wrong-name.jpg": (encode(two_colours(), "PNG"), SIZE, (RED, BLUE)),
}

JPEG, PNG, WEBP = (encode(PHOTO, image_format) for image_format in ("JPEG", "PNG", "WEBP"))

# Name in the source: bytes, and the reasons it may be skipped for.
UNUSABLE = {
    "zero-byte.jpg": (b"", {"empty"}),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], {"truncated"}),
    "repaired.jpg": (JPEG[: len(JPEG) // 2] + b"\xff\xd9", {"truncated"}),
    "header-only.jpg": (JPEG[:20], {"truncated", "decode-error", "unsupported"}),
    "truncated.png": (PNG[: len(PNG) // 2], {"truncated", "decode-error"}),
    "flipped-bit.png": (PNG[:60] + bytes([PNG[60] ^ 0xFF]) + PNG[61:], {"truncated", "decode-error"}),
    "truncated.webp": (WEBP[: len(WEBP) // 2], {"truncated", "decode-error", "unsupported"}),
    "bomb.png": (png(9000, 9000, 8, 2, [b""]), {"bomb"}),  # Pillow only warns of this one
    "large-bomb.png": (png(60000, 60000, 8, 2, [b""]), {"bomb"}),
    "too-long.png": (png(70000, 1, 8, 0, [bytes(70000)]), {"too-large"}),
    "gif.jpg": (encode(two_colours("P"), "GIF"), {"unsupported"}),
    "bmp.png": (encode(two_colours(), "BMP"), {"unsupported"}),
    "page.jpg": (b"<html>404 Not Found</html>", {"unsupported"}),
}
EVERYTHING = USABLE | UNUSABLE


def make_source(folder, kind):
    folder.mkdir()
    if kind == "folder":
        for name, (data, *_) in EVERYTHING.items():
            (folder / name).write_bytes(data)
        (folder / "gone.jpg").symlink_to("nowhere")
        return folder
    if kind == "parquet":
        cells = [{"bytes": data, "path": name} for name, (data, *_) in EVERYTHING.items()]
        pq.write_table(pa.table({"image": [*cells, {"bytes": None, "path": "gone.jpg"}]}), folder / "x.parquet")
        return folder / "x.parquet"
    # One key per file: in a tar, all that differs behind the first dot is one sample.
    return write_members(
        folder / "x.tar",
        {
            f"{name.replace('.', '-')}.{name[-3:].replace('ebp', 'webp')}": data
            for name, (data, *_) in EVERYTHING.items()
        },
    )


def names_by_key(store, kind):
    """Source name of every key, usable or not."""
    if kind == "tar":
        return {name.replace(".", "-"): name for name in EVERYTHING}
    from beit.common.sources.types import packed_key

    scope = "x.parquet" if kind == "parquet" else ""
    return {packed_key(name, scope=scope): name for name in [*EVERYTHING, "gone.jpg"]}


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_every_quirk_is_used_or_skipped_for_its_reason(tmp_path, kind, caplog):
    store = tmp_path / "store"
    source = make_source(tmp_path / "source", kind)
    summary = tokenize(source, store, shard_size=100, bad_sample_budget=0.9)
    name_of = names_by_key(store, kind)

    manifests = [json.loads(path.read_text()) for path in (store / "tokens").glob("*.manifest.json")]
    skipped = {name_of[sample["key"]]: sample["reason"] for manifest in manifests for sample in manifest["skipped"]}
    gone = {} if kind == "tar" else {"gone.jpg": {"unreadable", "empty"}}
    expected = {name: reasons for name, (_, reasons) in UNUSABLE.items()} | gone
    assert skipped.keys() == expected.keys()
    assert {name: reason for name, reason in skipped.items() if reason not in expected[name]} == {}
    assert summary.skipped.total() == len(skipped) and summary.num_samples == len(USABLE)
    for key, name in name_of.items():
        assert (key in caplog.text) == (name in skipped), f"{name}: the log names what is skipped, and nothing else"

    found = {name_of[sample["key"]]: sample for sample in open_store(store)}
    assert found.keys() == USABLE.keys()
    for name, (_, size, (top, bottom)) in USABLE.items():
        image = found[name]["image"]
        assert (image.mode, image.size) == ("RGB", size), name
        for colour, row in ((top, 0), (bottom, -1)):
            difference = np.abs(np.asarray(image)[row].mean(axis=0) - colour).max()
            assert difference < 12, f"{name}: row {row} differs by {difference}"


def test_the_policy_for_rotated_images_is_recorded(tmp_path):
    write_members(tmp_path / "x.tar", {"a.jpg": lying_down()})
    tokenize(tmp_path / "x.tar", tmp_path / "store")
    assert json.loads((tmp_path / "store/store.json").read_text())["exif_orientation"] == "applied"


@pytest.mark.parametrize("name", ["truncated.jpg", "zero-byte.jpg", "bomb.png"])
def test_a_spent_budget_names_key_and_reason(tmp_path, name):
    data, reasons = UNUSABLE[name]
    write_members(tmp_path / "x.tar", {"good.jpg": JPEG, f"culprit.{name[-3:]}": data})
    with pytest.raises(InputError, match=rf"culprit \({next(iter(reasons))}\).*raise the budget"):
        tokenize(tmp_path / "x.tar", tmp_path / "store", bad_sample_budget=0.0)
