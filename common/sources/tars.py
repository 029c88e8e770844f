"""Tar shards as a source of images: samples grouped as webdataset groups them, images read at their offsets."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import BinaryIO, ClassVar, NamedTuple

from beit.common.errors import BadSample, InputError
from beit.common.images.decoding import MAX_IMAGE_BYTES
from beit.common.images.formats import IMAGE_SUFFIXES, is_image_path, is_readable, left_out
from beit.common.sources.labels import UNLABELLED, are_numbers, as_label, in_order, joined_label, number_of
from beit.common.sources.types import SampleRef, Source, SourceKind, listing_digest, listing_stamp
from beit.common.storage.paths import is_remote
from beit.common.storage.place import FileStat, for_each, place_of
from beit.common.storage.tar_walk import TarIndex, TarMember, group_samples, iter_members, split_name, walk_tar

logger = logging.getLogger(__name__)

_MAX_LABEL_BYTES = 1 << 20
_MEMBERS_TO_PEEK = 64
"""Members of the first tar that are searched for a label, to learn whether labels are names. Arbitrary."""

_MASK_ENDS = (".seg.png", ".mask.png")
_SUFFIXES_IN_MESSAGE = 5
_MAX_WHOLE = float(1 << 53)  # beyond it floating-point numbers are not those that were meant


class TarReader:
    """An open tar; reads are independent of each other and may come from several threads."""

    nbytes: ClassVar[int] = 0

    def __init__(self, file: BinaryIO, label: str) -> None:
        self.file = file
        self.label = label
        try:
            self._descriptor: int | None = file.fileno()
        except io.UnsupportedOperation:  # a remote file
            self._descriptor = None
        self._lock = threading.Lock()

    def read(self, ref: SampleRef) -> bytes:
        """Return the image bytes of one sample.

        Raises:
            BadSample: the image is larger than any image may be, or the tar became shorter.
        """
        if ref.length > MAX_IMAGE_BYTES:
            raise BadSample("too-large", f"{ref.length} bytes, at most {MAX_IMAGE_BYTES}")
        data = self.read_range(ref.offset, ref.length)
        if len(data) != ref.length:
            raise BadSample("truncated", f"{self.label} became shorter: {len(data)} of {ref.length} bytes")
        return data

    def read_range(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        if self._descriptor is not None:
            return os.pread(self._descriptor, length, offset)
        with self._lock:
            self.file.seek(offset)
            return self.file.read(length)


class TarCopy(NamedTuple):
    """The bytes of a remote tar on this machine."""

    file: BinaryIO
    """Open, without a name; whoever made it closes it."""
    sha256: str
    """Hash of all its bytes."""


@dataclass(frozen=True, slots=True)
class TarShard:
    """One image tar."""

    name: str
    location: str
    class_names: tuple[str, ...] | None = None
    """Names that text labels are numbered by; None where labels are numbers."""
    size: int = 0
    """Bytes of the tar when it was listed; 0 where that is not known."""
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    """What follows the key in the names of images, in order of preference."""
    copy: TarCopy | None = field(default=None, compare=False, repr=False)
    """Of a remote tar, in the process that made one; it is read instead."""

    kind: ClassVar[SourceKind] = "tar"
    row_group: ClassVar[int] = 0

    def refs(self) -> list[SampleRef]:
        """List the samples that have an image."""
        return self.scan()[0]

    def scan(self) -> tuple[list[SampleRef], TarIndex]:
        """Walk the tar once, front to back, and return its samples together with the walk's result."""
        with self.open(read_ahead=True) as reader:
            index, samples, labels = _walk_samples(reader)
        ids = {name: class_id for class_id, name in enumerate(self.class_names or ())}
        refs = [
            SampleRef(key, image.offset, image.size, self._class_of(key, _label_of(sample, labels), ids), image.name)
            for key, sample in samples.items()
            if (image := self._image(sample)) is not None
        ]
        if samples and not refs and (words := left_out(self._unreadable(samples))):
            raise InputError(f"{self.location} holds no images that can be read here: {words}")
        if samples and not refs:
            raise InputError(f"{self.location} holds no images: {_what_it_holds(samples, self.image_suffixes)}")
        if len(refs) < len(samples):
            self._report_left_out(samples)
        self._report_choice(samples)
        return refs, index

    @contextmanager
    def open(self, *, read_ahead: bool = False) -> Iterator[TarReader]:
        """Open the tar for reading images.

        Args:
            read_ahead: Of a remote tar, fetch more than is asked for, because all of it is read front to back.
        """
        if self.copy is not None:
            yield TarReader(self.copy.file, self.location)
            return
        with place_of(self.location).open(read_ahead=read_ahead) as file:
            yield TarReader(file, self.location)

    def _report_left_out(self, samples: dict[str, dict[str, TarMember]]) -> None:
        unreadable = self._unreadable(samples)
        if words := left_out(unreadable):
            logger.warning("%s: %s", self.location, words)
        missing = [sample for sample in samples.values() if not any(name in sample for name in self.image_suffixes)]
        dotted = [member.name for sample in missing for member in sample.values() if is_image_path(member.name)]
        if dotted:
            logger.warning(
                "%s: %d images left out, such as %s: dots in a name begin its suffix, and the suffix must be that of "
                "an image; rename them, or choose with source.image_member, as %s",
                self.location,
                len(dotted),
                dotted[0],
                (split_name(dotted[0]) or ("", "rgb.png"))[1],
            )
        if missing:
            logger.info("%s: %d samples without an image left out", self.location, len(missing))

    def _report_choice(self, samples: dict[str, dict[str, TarMember]]) -> None:
        """Say which image is taken where samples have several."""
        if self.image_suffixes != IMAGE_SUFFIXES:
            return
        several = [found for sample in samples.values() if len(found := sample.keys() & set(IMAGE_SUFFIXES)) > 1]
        if several:
            logger.info(
                "%s: %d samples have several images (%s), of which the first of %s is taken; source.image_member "
                "chooses another",
                self.location,
                len(several),
                ", ".join(sorted(several[0])),
                ", ".join(IMAGE_SUFFIXES),
            )

    def _image(self, sample: dict[str, TarMember]) -> TarMember | None:
        found = (suffix for suffix in self.image_suffixes if suffix in sample and is_readable(suffix))
        return next((sample[suffix] for suffix in found), None)

    def _unreadable(self, samples: dict[str, dict[str, TarMember]]) -> list[str]:
        """Return the suffix of each image that cannot be read here, where its sample has no other."""
        found = (next(filter(sample.__contains__, self.image_suffixes), None) for sample in samples.values())
        return [name for name in found if name is not None and not is_readable(name)]

    def _class_of(self, key: str, label: int | str | None, ids: Mapping[str, int]) -> int | str | None:
        """Return a label as `SampleRef` has it; `ids` are those of the names."""
        if label is None or label == UNLABELLED:
            return None
        text = str(label)
        # Numbers and names do not mix; lists of numbers, such as 3|5, go with either.
        if text not in ids if self.class_names is not None else not are_numbers(text):
            raise self._mixed_labels(key, label)
        return label if self.class_names is None else ids[text]

    def _mixed_labels(self, key: str, label: int | str) -> InputError:
        expected = "numbers or nothing" if self.class_names is None else "class names"
        return InputError(
            f"{self.location} labels sample {key!r} with {label!r}, while the first tar has {expected}; "
            "use one kind of label in all tars"
        )


def open_tars(files: list[FileStat], root: str, *, image_member: str | None = None) -> Source:
    """Return a source over image tars.

    Where labels are class names, every tar is walked once to number them; numbers are taken as they are. Which of both
    they are is told by the first. `image_member` says which member of a sample is the image, see `SourceConfig`.
    """
    stems = [file.path.rsplit("/", 1)[-1].removesuffix(".tar") for file in files]
    suffixes = suffixes_of(image_member)
    shards = [
        TarShard(stem, file.path, size=file.size, image_suffixes=suffixes)
        for stem, file in zip(stems, files, strict=True)
    ]
    class_names = None
    first, mask = _peek(shards[0].location)
    # The text of a number that as_label left one is written in a way of its own, such as 007; else it is from a list.
    if isinstance(first, str) and (number_of(first) is None or as_label(first) != first):
        class_names = tuple(in_order(_names_among(_all_labels(shards))))
        shards = [replace(shard, class_names=class_names) for shard in shards]
    digest = listing_digest(root, files, labels=() if image_member is None else [f"image {image_member}"])
    stamp = listing_stamp(root, files)
    notes = (f"{mask} is a mask, from which beit finetune segmentation learns",) if mask and first is None else ()
    return Source(
        kind="tar",
        root=root,
        shards=list(shards),
        class_names=class_names,
        digest=digest,
        stamp=stamp,
        label_notes=notes,
    )


def suffixes_of(image_member: str | None) -> tuple[str, ...]:
    """Return what follows the key in the names of images, as the setting `source.image_member` says."""
    if image_member is None:
        return IMAGE_SUFFIXES
    return tuple(part.strip().lstrip(".").lower() for part in image_member.split(";"))


def _what_it_holds(samples: dict[str, dict[str, TarMember]], wanted: tuple[str, ...]) -> str:
    suffixes = sorted({suffix for sample in samples.values() for suffix in sample})
    found = ", ".join(suffixes[:_SUFFIXES_IN_MESSAGE])
    text = f"its members end in {found}, images must end in {', '.join(wanted)}"
    if any(is_image_path(suffix) for suffix in suffixes):
        text += (
            "; the suffix is all behind the first dot, so image names must have no other dot: rename them, or choose "
            "with source.image_member"
        )
    return text


def _peek(location: str) -> tuple[int | str | None, str]:
    """Return the first label of a tar, and the name of a mask that stands before it, as far as it is looked into."""
    mask = ""
    with place_of(location).open() as file:
        reader = TarReader(file, location)
        for count, member in enumerate(iter_members(file, label=location)):
            label = _read_label(member, reader)
            mask = mask or (member.name if member.name.lower().endswith(_MASK_ENDS) else "")
            if label is not None or count >= _MEMBERS_TO_PEEK:
                return label, mask
    return None, mask


def _names_among(labels: set[int | str]) -> set[str]:
    """Return the class names among labels; numbers are names, too, where there are only such."""
    names = {label for label in labels if isinstance(label, str)}
    return {str(label) for label in labels} if all(map(are_numbers, names)) else names


def _all_labels(shards: list[TarShard]) -> set[int | str]:
    by_location = {shard.location: shard for shard in shards}
    if is_remote(shards[0].location):
        logger.info("reading %d remote tars for the names of their classes; numbers would not need it", len(shards))
    return set().union(*for_each(lambda location: _labels_of(by_location[location]), list(by_location)))


def _labels_of(shard: TarShard) -> set[int | str]:
    with shard.open(read_ahead=True) as reader:
        _, samples, labels = _walk_samples(reader)
    found = (_label_of(sample, labels) for sample in samples.values() if shard._image(sample))
    return {label for label in found if label is not None and label != UNLABELLED}


def _walk_samples(reader: TarReader) -> tuple[TarIndex, dict[str, dict[str, TarMember]], dict[int, int | str]]:
    """Walk a tar; return its members, its samples, and by offset what its label members say."""
    labels: dict[int, int | str] = {}

    def note_label(member: TarMember) -> None:
        label = _read_label(member, reader)
        if label is not None:
            labels[member.offset] = label

    index = walk_tar(reader.file, label=reader.label, on_member=note_label)
    return index, group_samples(index.members, label=reader.label), labels


def _label_of(sample: dict[str, TarMember], labels: dict[int, int | str]) -> int | str | None:
    offsets = (sample[suffix].offset for suffix in _LABEL_PARSERS if suffix in sample)
    return next((labels[offset] for offset in offsets if offset in labels), None)


def _read_label(member: TarMember, reader: TarReader) -> int | str | None:
    parts = split_name(member.name)
    parse = _LABEL_PARSERS.get(parts[1]) if parts else None
    if parse is None or member.size > _MAX_LABEL_BYTES:
        return None
    data = reader.read_range(member.offset, member.size)
    try:
        value = parse(data)
        if isinstance(value, list):
            return joined_label(value, f"{reader.label}: {member.name}")
    except (UnicodeDecodeError, ValueError, RecursionError):
        # Foreign metadata need not concern us: a sample with unreadable metadata is a sample without a label.
        logger.warning("%s: %s is not readable as a label", reader.label, member.name)
        return None
    if isinstance(value, str):
        return as_label(value.strip()) if value.strip() else None
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_WHOLE:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text_label(data: bytes) -> str:
    return data.decode("utf-8-sig")


def _json_label(data: bytes) -> object:
    content = json.loads(data)
    return content.get("label", content.get("labels")) if isinstance(content, dict) else None


_LABEL_PARSERS: dict[str, Callable[[bytes], object]] = {"cls": _text_label, "json": _json_label}
"""Suffixes of members that may hold the label, in order of preference."""
