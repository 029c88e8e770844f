"""COCO's annotations as masks: polygons and run lengths are drawn when they are read, panoptic PNG files looked up.

Here: the classes, and shards of masks beside shards of images. Which files are meant, what the JSON says and which
pixels an annotation covers is in the room `annotated/`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError, require
from beit.common.images.decode import decode_image
from beit.common.images.decoding import MAX_IMAGE_BYTES
from beit.common.pages.numbers import count
from beit.common.sources.config import SourceConfig
from beit.common.sources.loose_files import FileList, open_files
from beit.common.sources.types import SampleRef, Source, SourceKind, listing_digest, packed_key
from beit.common.storage.documents import reading
from beit.common.storage.paths import join
from beit.common.storage.place import place_of
from beit.finetune.masks.annotated.document import CocoContent, id_text, read_annotations, read_coco
from beit.finetune.masks.annotated.files import (
    chosen_file,
    coco_splits,
    find_images,
    looks_like_coco,
    panoptic_files,
    panoptic_folder,
)
from beit.finetune.masks.annotated.regions import paint, region_of
from beit.finetune.masks.classes import IGNORED, MAX_CLASSES, MaskClasses, voc_colours
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.types import MaskedSource

__all__ = ["coco_splits", "looks_like_coco", "open_coco"]

BACKGROUND = "background"
"""Class of the pixels that nobody annotated."""
_BACKGROUNDS = (BACKGROUND, "_background_", "__background__")
_COLUMNS = ["path", "width", "height", "starts", "ends"]


def open_coco(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedSource:
    """Open images with COCO's annotations.

    Args:
        data: The JSON, or a folder that has it directly or in its folder annotations.
        settings: What pixels without annotation mean.
        reading: Which images are read.
    """
    require(
        reading.image_member is None,
        f"source.image_member ({reading.image_member}) is for tars and Parquet, and {data} is COCO; leave it out",
    )
    file, notes = chosen_file(data)
    content, table, text = read_coco(file)
    classes, background, first = _classes(content, settings.coco_background, name=file.path)
    found = find_images(file.path, table["file_name"].to_pylist())
    notes += [*content.notes, *found.notes]
    files, rows = found.files, np.array(found.rows, dtype=np.int64)
    covered = f"the class {classes.names[background]!r}" if background != IGNORED else "ignored"
    notes.append(f"pixels of no annotation are {covered} (data.coco_background)")
    is_annotated = table["starts"].combine_chunks().value_lengths().to_numpy()[rows] > 0
    if bare := int((~is_annotated).sum()):
        notes.append(f"{bare} of {count(len(rows), 'image')} without an annotation")
        if background == IGNORED:
            notes[-1] += ", so that all of their pixels would be ignored, and are left out"
            require(bare < len(rows), f"{file.path} annotates none of the images that are there; check the file")
            files, rows = [files[place] for place in np.flatnonzero(is_annotated)], rows[is_annotated]
    source = open_files(FileList(found.root, files, [None] * len(files)))
    folder = panoptic_folder(file.path, _first_mask(text, table)) if content.is_panoptic else ""
    table = table.take(pa.array(rows)).append_column("path", pa.array([file.path for file in files]))
    return MaskedSource(
        images=source,
        masks=tuple(
            CocoShard(
                name=shard.name,
                location=text,
                images=part,
                class_ids={number: place + first for number, place in content.categories.items()},
                background=background,
                panoptic_root=folder,
            )
            for shard, part in zip(source.shards, _parts(source, table.select(_COLUMNS)), strict=True)
        ),
        classes=classes,
        is_ids=True,
        mask_digest=listing_digest(
            "", [file, *panoptic_files(folder)], labels=[source.digest, *classes.names, str(background), *content.notes]
        ),
        without_image=tuple(found.missing),
        notes=tuple(f"{file.path}: {note}" for note in notes),
    )


@dataclass(frozen=True, slots=True)
class CocoShard:
    """The masks of a run of images, drawn from COCO's annotations when they are read."""

    name: str
    location: str
    """The JSON on this machine."""
    images: pa.Table
    """Paths and sizes, and where the annotations of each stand in the JSON."""
    class_ids: dict[str, int]
    """Class of each category id."""
    background: int
    """Class of pixels that nothing covers."""
    panoptic_root: str = ""
    """Folder of the PNG files, where masks are such."""

    kind: ClassVar[SourceKind] = "files"
    row_group: ClassVar[int] = 0

    def refs(self) -> list[SampleRef]:
        """List the masks in order, under the keys and paths of their images."""
        paths = self.images["path"].to_pylist()
        return [SampleRef(packed_key(path), row, 0, None, path) for row, path in enumerate(paths)]

    @contextmanager
    def open(self) -> Iterator[CocoReader]:
        """Open for reading; a mask is drawn when it is read."""
        yield CocoReader(self)


class CocoReader:
    """Draws masks.

    Args:
        shard: Whose.
    """

    nbytes: ClassVar[int] = 0

    def __init__(self, shard: CocoShard) -> None:
        self._shard = shard

    def read(self, ref: SampleRef) -> bytes:
        """Return the mask of one image as a PNG of class ids.

        Raises:
            BadSample: an annotation is damaged, or a panoptic PNG is missing or of another size.
        """
        image = self._shard.images.slice(ref.offset, 1).to_pylist()[0]
        annotations = read_annotations(self._shard.location, image["starts"], image["ends"])
        draw = self._look_up if self._shard.panoptic_root else self._paint
        with reading(self._shard.location, way_out="export it again"):
            ids = draw(annotations, image["height"], image["width"])
        buffer = io.BytesIO()
        Image.fromarray(ids).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _paint(self, annotations: Sequence[dict[str, Any]], height: int, width: int) -> NDArray[np.uint8]:
        regions = [
            region_of(
                annotation["segmentation"],
                class_id=self._class_of(annotation),
                is_crowd=bool(annotation.get("iscrowd")),
                height=height,
                width=width,
            )
            for annotation in annotations
        ]
        return paint(regions, height=height, width=width, background=self._shard.background)

    def _look_up(self, annotations: Sequence[dict[str, Any]], height: int, width: int) -> NDArray[np.uint8]:
        """Return the class ids of a panoptic PNG, whose colours number segments: red + 256 green + 256^2 blue."""
        ids = np.full((height, width), self._shard.background, np.uint8)
        for annotation in annotations:  # one, by the format
            name = annotation["file_name"]
            try:
                data = place_of(join(self._shard.panoptic_root, name)).read(limit=MAX_IMAGE_BYTES)
            except InputError as error:
                raise BadSample("unreadable", str(error)) from None
            colours = np.asarray(decode_image(data), dtype=np.uint32)
            if colours.shape[:2] != (height, width):
                found = f"{colours.shape[1]} x {colours.shape[0]}"
                raise BadSample("decode-error", f"{name} is {found} px, its image {width} x {height} px")
            segments = colours @ np.array([1, 256, 256**2], np.uint32)
            numbers, places = np.unique(segments, return_inverse=True)
            classes = {segment["id"]: self._class_of(segment) for segment in annotation["segments_info"]}
            table = [classes.get(number, self._shard.background) for number in numbers.tolist()]
            ids = np.array(table, np.uint8)[places].reshape(height, width)
        return ids

    def _class_of(self, annotation: dict[str, Any]) -> int:
        return self._shard.class_ids[id_text(annotation["category_id"])]


def _classes(content: CocoContent, wanted: bool | None, *, name: str) -> tuple[MaskClasses, int, int]:
    """Return the classes, the id of pixels without annotation, and the id of the first category.

    A category that is called background is the class of pixels without annotation. Where there is none, one is put
    before the others.
    """
    names, colours = content.names, content.colours
    has_class = wanted if wanted is not None else not content.is_panoptic
    background, first = IGNORED, 0
    if has_class:
        background = next((place for place, name in enumerate(names) if name.lower() in _BACKGROUNDS), -1)
        if background < 0:
            names, colours, background, first = (BACKGROUND, *names), (None, *colours), 0, 1
    is_lone = len(names) < 2 and not has_class
    way_out = "join some" if len(names) > MAX_CLASSES else "label what is beside it, too"
    way_out = "without data.coco_background=false what is not annotated is a class, too" if is_lone else way_out
    require(
        2 <= len(names) <= MAX_CLASSES,
        f"{name} has {count(len(names), 'class', plural='classes')}, and segmentation knows 2 to {MAX_CLASSES}; "
        f"{way_out}",
    )
    usual = voc_colours(len(names))
    return (
        MaskClasses(names=names, colours=tuple(own or other for own, other in zip(colours, usual, strict=True))),
        background,
        first,
    )


def _first_mask(text: str, table: pa.Table) -> str:
    """Return the name of some PNG file of a panoptic JSON."""
    rows = zip(table["starts"].to_pylist(), table["ends"].to_pylist(), strict=True)
    row = next((row for row in rows if row[0]), None)
    if row is None:
        raise InputError(f"{text} annotates none of the images that it lists; check the file")
    with reading(text, way_out="export it again"):
        return str(read_annotations(text, *row)[0]["file_name"])


def _parts(source: Source, table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table of images as the source cuts them into shards."""
    row = 0
    for shard in source.shards:
        count = len(shard.refs())
        # Copied, because a part that is sent to another process would take the whole table along.
        yield table.take(pa.array(range(row, row + count)))
        row += count
