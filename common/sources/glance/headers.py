"""What the header of one image of a source says, read from as little of it as tells."""

from __future__ import annotations

from beit.common.errors import BadSample
from beit.common.images.facts import HEAD_BYTES, facts_in_parts, facts_of_image
from beit.common.images.header import ImageFacts
from beit.common.sources.loose_files import FilesReader
from beit.common.sources.tars import TarReader
from beit.common.sources.types import SampleRef, ShardReader
from beit.common.storage.place import FilePart

_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def image_facts(
    reader: ShardReader, ref: SampleRef, *, place: FilePart | None = None, is_thorough: bool = False
) -> ImageFacts:
    """Return what the header of an image says.

    Args:
        reader: Of its shard.
        ref: The image.
        place: Where it lies, if parts of it can be read: then large TIFFs are not read as a whole.
        is_thorough: Read a PNG to its end, where an EXIF block may stand that turns it. A JPEG has it at its beginning.
    Raises:
        BadSample: there is no header to read.
    """
    head = image_head(reader, ref)
    if len(head) == HEAD_BYTES and head.startswith(_JPEG_START if is_thorough else (_JPEG_START, _PNG_START)):
        try:
            return facts_of_image(head)
        except BadSample:  # the header is longer
            pass
    if len(head) < HEAD_BYTES:
        return facts_of_image(head)
    if place is not None:
        with place.open() as file:
            found = facts_in_parts(head, file)
        if found is not None:
            return found
    return facts_of_image(reader.read(ref))


def image_head(reader: ShardReader, ref: SampleRef) -> bytes:
    """Return the first `HEAD_BYTES` of an image; more where its container gives whole images only, fewer at its end."""
    if isinstance(reader, FilesReader | TarReader):
        return reader.head(ref, HEAD_BYTES)
    return reader.read(ref)
