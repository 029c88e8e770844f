"""Files of predicted masks: palette PNGs that every program reads back as ids, and what stands beside them.

    OUT/legend.json, legend.png           what the ids and colours are, and which model wrote them
    OUT/masks/PATH.png                    ids, at the size of the image
    OUT/overlays/PATH.jpg                 on request: the classes over the image, at most 2048 px
    OUT/probabilities/PATH.npz            on request: probabilities (H, W, C) float16, class_names (C,)

PATH is the image's in its source. Each file carries the identity of what it was made from, so that a second run of the
same command knows what is there. Not here: making them (`masks.py`).

H, W = size of an image; C = classes.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from beit.common.errors import InputError, require
from beit.common.sources.labels import listed
from beit.common.storage.documents import Format
from beit.common.storage.files import atomic_file, write_atomic
from beit.finetune.masks.class_table import read_class_table
from beit.finetune.masks.classes import IGNORED, Colour, MaskClasses, voc_colours

LEGEND_FORMAT = Format("beit-mask-legend", 1)
LEGEND, LEGEND_PICTURE = "legend.json", "legend.png"
MASKS, OVERLAYS, PROBABILITIES = "masks", "overlays", "probabilities"
SUFFIXES = {MASKS: ".png", OVERLAYS: ".jpg", PROBABILITIES: ".npz"}
_IDENTITY = "beit-source"
"""Where a PNG and an npz say what they were made from; a JPEG does in its comment."""
_PALETTE_ENTRIES = 256
_MAX_PART_BYTES = 190
"""Of a file's name, of which file systems know 255: a suffix and what marks a file that is being written come on."""
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]")
OVERLAY_PX = 2048
"""Longest side of an overlay; arbitrary."""
_OVERLAY_QUALITY = 90


def palette_of(classes: MaskClasses, values: Sequence[int] | None = None) -> list[Colour]:
    """Return 256 colours: those of the classes at their values, and others, all different, for what no class has.

    All of them are written, so that no reader renumbers what lies beyond a short palette, the 255 of ignored pixels
    above all; and as no two are alike, ids can be told by colour where an optimiser has renumbered them.
    """
    spare = [colour for colour in voc_colours(_PALETTE_ENTRIES) if colour not in classes.colours]
    spare = spare[len(spare) - (_PALETTE_ENTRIES - len(classes)) :]  # the last of VOC's is that of its 255
    own = dict(zip(range(len(classes)) if values is None else values, classes.colours, strict=True))
    others = iter(spare)
    return [own[value] if value in own else next(others) for value in range(_PALETTE_ENTRIES)]


def palette_image(ids: NDArray[np.uint8], classes: MaskClasses, values: Sequence[int] | None = None) -> Image.Image:
    """Return ids (H, W), or whatever values stand for the classes, as an image of mode P."""
    image = Image.fromarray(np.ascontiguousarray(ids))
    image.putpalette(np.array(palette_of(classes, values), np.uint8).tobytes())
    return image


def palette_png(
    ids: NDArray[np.uint8], classes: MaskClasses, values: Sequence[int] | None = None, *, identity: str = ""
) -> bytes:
    """Return ids (H, W), or other values, as a PNG of 8 bits and 256 colours, proved to give them back."""
    texts, buffer = PngInfo(), io.BytesIO()
    if identity:
        texts.add_text(_IDENTITY, identity)
    palette_image(ids, classes, values).save(buffer, format="PNG", optimize=True, pnginfo=texts)
    with Image.open(buffer) as again:
        assert again.mode == "P" and np.array_equal(np.asarray(again), ids), "a mask that reads as another"
    return buffer.getvalue()


def overlay_jpeg(image: Image.Image, *, identity: str = "") -> bytes:
    """Return an overlay as a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_OVERLAY_QUALITY, comment=identity.encode())
    return buffer.getvalue()


@contextmanager
def probability_file(
    path: Path, size: tuple[int, ...], class_names: Sequence[str], *, identity: str = ""
) -> Iterator[BinaryIO]:
    """Yield what takes the probabilities row by row, each (rows, W, C) float16; the npz appears when all are there.

    Args:
        path: Of the npz.
        size: H and W.
        class_names: C names.
        identity: Of what it is made from.
    """
    shape = (*size, len(class_names))
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.comment = identity.encode()
        with archive.open("class_names.npy", "w") as member:
            np.lib.format.write_array(member, np.array(class_names, np.str_), allow_pickle=False)
        with archive.open("probabilities.npy", "w", force_zip64=True) as member:
            header = {"descr": np.dtype("<f2").str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            yield member  # type: ignore[misc]


def identity_in(path: Path) -> str | None:
    """Return what a file of ours says that it was made from; None where there is none, or it says nothing."""
    if not path.is_file():
        return None
    try:
        if path.suffix == SUFFIXES[PROBABILITIES]:
            with zipfile.ZipFile(path) as archive:
                return archive.comment.decode() or None
        with Image.open(path) as image:
            said = image.info.get(_IDENTITY) or image.info.get("comment", b"")
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile):
        return None
    return (said.decode("ascii", "replace") if isinstance(said, bytes) else str(said)) or None


def kept_ids(path: Path, classes: MaskClasses, values: Sequence[int]) -> NDArray[np.uint8] | None:
    """Return the ids (H, W) of a mask that an earlier run wrote with these `values`; None where it is damaged.

    Raises:
        InputError: another program has numbered its colours anew, and left our text in it, as optimisers do.
    """
    try:
        with Image.open(path) as image:
            held, palette = np.asarray(image), image.getpalette()
    except (OSError, ValueError, SyntaxError):
        return None
    ids = np.full(IGNORED + 1, IGNORED, np.uint8)
    ids[list(values)] = np.arange(len(values))
    if palette != [level for colour in palette_of(classes, values) for level in colour]:
        raise InputError(_changed(path))
    found: NDArray[np.uint8] = ids[held]
    return found


def source_identity(model: str, image: bytes) -> str:
    """Return the identity of what is made by a model, as it is used, from the bytes of an image."""
    return hashlib.blake2b(model.encode() + b"\0" + image, digest_size=16).hexdigest()


def class_values(file: str, classes: MaskClasses) -> tuple[int, ...]:
    """Return the value that a table, of any form that `data.classes` takes, gives each class."""
    table = read_class_table(file)
    found = {entry.name: entry.value for entry in table.entries}
    missing = [name for name in classes.names if name not in found]
    require(not missing, f"--values {file} lacks {listed(missing)}, which the model knows; name every class of it")
    require(None not in found.values(), f"--values {file} gives no values; give a JSON object or a table with them")
    values = tuple(int(found[name] or 0) for name in classes.names)
    too_large = [name for name, value in zip(classes.names, values, strict=True) if value >= IGNORED]
    require(
        not too_large,
        f"--values {file} gives {listed(too_large)} a value of {IGNORED} or more, for which masks of bytes have no "
        "room beside ignored pixels; give smaller ones",
    )
    return values


def legend_document(classes: MaskClasses, values: Sequence[int], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what legend.json says; `values` are what stands in masks for each class."""
    entries = [
        {"id": value, "name": name, "colour": list(colour)}
        for value, name, colour in zip(values, classes.names, classes.colours, strict=True)
    ]
    return {**LEGEND_FORMAT.header(), "classes": entries, "ignored": IGNORED, "model": dict(model)}


def mirrored_names(names: Iterable[str]) -> list[str]:
    """Turn what images are called in their source into paths without a suffix, each its own.

    What follows the last dot is left out, unless two images of a folder differ by nothing else: those keep it. Letter
    case tells no files apart, because some file systems do not. Nothing leads out of the folder, and names that are
    too long for what is added are cut.
    """
    given = list(names)
    short = [_safe(_stem(name)) for name in given]
    counts = Counter(map(str.casefold, short))
    wanted = [name if counts[name.casefold()] == 1 else _safe(full) for name, full in zip(short, given, strict=True)]
    taken: set[str] = set()
    found = []
    for name in wanted:
        path, number = name, 2
        while path.casefold() in taken:
            path, number = f"{name}-{number}", number + 1
        taken.add(path.casefold())
        found.append(path)
    return found


def _stem(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.rpartition(".")
    return folder + slash + (stem if dot and stem else base)


def _safe(name: str) -> str:
    return "/".join(_fitting(part) for part in name.split("/") if part not in ("", ".", "..")) or "_"


def _fitting(part: str) -> str:
    part = _UNSAFE.sub("_", part)
    data = part.encode("utf-8", "surrogateescape")
    if len(data) <= _MAX_PART_BYTES:
        return part
    digest = hashlib.blake2b(data, digest_size=5).hexdigest()
    return f"{data[: _MAX_PART_BYTES - 11].decode('utf-8', 'ignore')}-{digest}"


def write_file(path: Path, data: bytes) -> None:
    """Write a file of the output, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def require_ours(files: Iterable[Path]) -> None:
    """Refuse to replace a file that some other program wrote, such as a mask that somebody has corrected."""
    for path in files:
        if path.exists() and identity_in(path) is None:
            raise InputError(_changed(path))


def _changed(path: Path) -> str:
    return (
        f"{path} was not written by beit predict, or was changed since, and is not replaced; move it, or name another "
        "--out"
    )


def require_same(out: Path, legend: Mapping[str, Any], found: Any) -> None:
    """Refuse a folder that holds the masks of another model, or of this one used otherwise."""
    require(
        found == legend,
        f"--out {out} holds masks of another model, or made with other settings ({LEGEND} says which); name another "
        "folder, or remove it",
    )
