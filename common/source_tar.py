"""Tar shards as a source of images: samples grouped as webdataset groups them, images read at their offsets."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, ClassVar

from beit.common.errors import BadSample, InputError
from beit.common.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from beit.common.locations import FileInfo, is_remote, open_binary
from beit.common.source_types import SampleRef, Source, SourceKind, SourceShard, listing_digest
from beit.common.tar_walk import TarIndex, TarMember, group_samples, iter_members, split_name, walk_tar

logger = logging.getLogger(__name__)

_MAX_LABEL_BYTES = 1 << 20
_MEMBERS_TO_PEEK = 64
"""Members of the first tar that are searched for a label, to learn whether labels are names. Arbitrary."""

_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MAX_LABEL = 1 << 62


class TarReader:
    """An open tar; reads are independent of each other and may come from several threads."""

    nbytes: ClassVar[int] = 0

    def __init__(self, file: BinaryIO, label: str) -> None:
        self._file = file
        self._label = label
        self._descriptor = None if is_remote(label) else file.fileno()
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
            raise BadSample("truncated", f"{self._label} became shorter: {len(data)} of {ref.length} bytes")
        return data

    def read_range(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`."""
        if self._descriptor is not None:
            return os.pread(self._descriptor, length, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)


@dataclass(frozen=True, slots=True)
class TarShard:
    """One image tar."""

    name: str
    location: str
    class_names: tuple[str, ...] | None = None
    """Sorted names that text labels are numbered by."""

    kind: ClassVar[SourceKind] = "tar"
    row_group: ClassVar[int] = 0

    def refs(self) -> list[SampleRef]:
        """List the samples that have an image.

        Raises:
            InputError: the tar is truncated, damaged, holds unusable names or no images.
        """
        return self.scan()[0]

    def scan(self) -> tuple[list[SampleRef], TarIndex]:
        """Walk the tar once and return its samples together with the walk's result.

        Raises:
            InputError: as for `refs`.
        """
        with open_binary(self.location) as file:
            index = walk_tar(file, label=self.location)
            samples = group_samples(index.members, label=self.location)
            reader = TarReader(file, self.location)
            refs = [
                SampleRef(key, image.offset, image.size, self._class_id(key, _read_label(sample, reader)), image.name)
                for key, sample in samples.items()
                if (image := _image_member(sample)) is not None
            ]
        if samples and not refs:
            found = sorted({suffix for sample in samples.values() for suffix in sample})[:5]
            raise InputError(
                f"{self.location} holds no images: its members end in {', '.join(found)}, "
                f"images must end in {', '.join(IMAGE_SUFFIXES)}"
            )
        if len(refs) < len(samples):
            logger.info("%s: %d samples without an image left out", self.location, len(samples) - len(refs))
        return refs, index

    @contextmanager
    def open(self) -> Iterator[TarReader]:
        """Open the tar for reading images."""
        with open_binary(self.location) as file:
            yield TarReader(file, self.location)

    def _class_id(self, key: str, label: int | str | None) -> int | None:
        if isinstance(label, str):
            if self.class_names is None or label not in self.class_names:
                raise self._mixed_labels(key, label)
            return self.class_names.index(label)
        if label is not None and self.class_names is not None:
            raise self._mixed_labels(key, label)
        return label if label is None or label >= 0 else None

    def _mixed_labels(self, key: str, label: int | str) -> InputError:
        expected = "numbers or nothing" if self.class_names is None else "class names"
        return InputError(
            f"{self.location} labels sample {key!r} with {label!r}, while the first tar has {expected}; "
            "use one kind of label in all tars"
        )


def open_tars(files: list[FileInfo], root: str) -> Source:
    """Return a source over image tars.

    Where labels are class names, every tar is walked once to number them; numbers are taken as they are.

    Raises:
        InputError: a tar is damaged, as far as it was read.
    """
    shards = [TarShard(name=_stem(file.path), location=file.path) for file in files]
    class_names = None
    if isinstance(_first_label(shards[0].location), str):
        class_names = tuple(sorted(set().union(*(_label_names(shard.location) for shard in shards))))
        shards = [replace(shard, class_names=class_names) for shard in shards]
    typed: list[SourceShard] = list(shards)
    return Source(
        kind="tar",
        root=root,
        shards=typed,
        class_names=list(class_names) if class_names is not None else None,
        digest=listing_digest(root, files),
    )


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".tar")


def _image_member(sample: dict[str, TarMember]) -> TarMember | None:
    return next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)


def _first_label(location: str) -> int | str | None:
    with open_binary(location) as file:
        reader = TarReader(file, location)
        for count, member in enumerate(iter_members(file, label=location)):
            parts = split_name(member.name)
            label = _read_label({parts[1]: member}, reader) if parts else None
            if label is not None or count >= _MEMBERS_TO_PEEK:
                return label
    return None


def _label_names(location: str) -> set[str]:
    with open_binary(location) as file:
        samples = group_samples(walk_tar(file, label=location).members, label=location)
        reader = TarReader(file, location)
        labels = (_read_label(sample, reader) for sample in samples.values() if _image_member(sample))
        return {label for label in labels if isinstance(label, str)}


def _read_label(sample: dict[str, TarMember], reader: TarReader) -> int | str | None:
    parsers: tuple[tuple[str, Callable[[bytes], object]], ...] = (("cls", bytes.decode), ("json", _json_label))
    for suffix, parse in parsers:
        member = sample.get(suffix)
        if member is None or member.size > _MAX_LABEL_BYTES:
            continue
        try:
            value = parse(reader.read_range(member.offset, member.size))
        except (ValueError, RecursionError):
            # Foreign metadata need not concern us: a sample with unreadable metadata is a sample without a label.
            logger.warning("%s is not readable as a label", member.name)
            continue
        if isinstance(value, str) and value.strip():
            text = value.strip()
            return int(text) if _NUMBER.fullmatch(text) else text
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_LABEL:
            return value
    return None


def _json_label(data: bytes) -> object:
    content = json.loads(data)
    return content.get("label") if isinstance(content, dict) else None
