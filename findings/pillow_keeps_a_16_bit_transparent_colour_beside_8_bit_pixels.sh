#!/usr/bin/env bash
# Pillow 13.0.0: a PNG of 16 bits per colour that calls one colour transparent (tRNS) opens as 8-bit "RGB", but its
# `info["transparency"]` keeps the 16-bit numbers, so that `convert("RGBA")` finds no transparent pixel at all.
#
# Expected: the pixel of that colour has opacity 0, as in the same picture of 8 bits per colour.
# Seen: opacity 255 everywhere. Whoever lays such pictures on a background shows what was to be seen through; the key has
# to be compared by its upper bytes (which also hits neighbours of the colour), or with the whole values of the file.
# Ends with 1 if the behaviour is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys
import zlib

from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits: int, pixels: list[tuple[int, int, int]], key: tuple[int, int, int]) -> bytes:
    form = ">3H" if bits == 16 else ">3B"
    row = b"\0" + b"".join(struct.pack(form, *pixel) for pixel in pixels)
    header = struct.pack(">IIBBBBB", len(pixels), 1, bits, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"tRNS", struct.pack(">3H", *key)), (b"IDAT", zlib.compress(row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


found = {}
for bits in (8, 16):
    scale = 1 if bits == 8 else 256
    colours = [tuple(scale * level for level in colour) for colour in ((18, 86, 154), (200, 10, 30))]
    with Image.open(io.BytesIO(png(bits, colours, colours[0]))) as image:
        opacity = list(image.convert("RGBA").getchannel("A").tobytes())
        found[bits] = (image.mode, image.info["transparency"], opacity)
        print(f"{bits} bits per colour: mode {image.mode}, key {image.info['transparency']}, opacity {opacity}")
sys.exit(found != {8: ("RGB", (18, 86, 154), [0, 255]), 16: ("RGB", (4608, 22016, 39424), [255, 255])})
PYTHON
