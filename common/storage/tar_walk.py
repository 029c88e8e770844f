"""A strict walk over the headers of an uncompressed tar: where every payload lies, or one clear error.

Stock readers take a cut or damaged tar for a shorter one, without any error; offsets, counts and digests that end up in
a manifest must not. So the walk asks for valid header checksums, payloads inside the file, and an end-of-archive marker
with nothing behind it. Damage inside payloads is not visible here: sha256 and crc32 find that. Also here: how members
are named and grouped into samples, as `webdataset` does it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from beit.common.errors import LFS_ADVICE, InputError, is_lfs_pointer

BLOCK_BYTES = 512

_MAX_EXTENSION_BYTES = 1 << 20
"""Longest long-name or pax record that is read into memory. Arbitrary; real ones are a few hundred bytes."""

_MAX_DIGITS = 20  # a 64-bit number; Python refuses to parse very long ones
_ZERO_BLOCK = bytes(BLOCK_BYTES)
_TAIL_CHUNK_BYTES = 1 << 16
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_PAYLOAD = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, directories, pipes
_GROUPED_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META_NAME = re.compile(r"__[^/]*__(?:$|/)")


@dataclass(frozen=True, slots=True)
class TarMember:
    """One regular file of a tar."""

    name: str
    offset: int
    """Byte offset of the payload from the start of the tar."""
    size: int
    """Payload length in bytes."""


@dataclass(frozen=True, slots=True)
class TarIndex:
    """All regular members of a complete tar, in order."""

    members: list[TarMember]
    header_sha256: str
    """Digest over every header block: changes with any name, size, time or order of members."""
    size_bytes: int
    """Length of the whole file."""


@dataclass(slots=True)
class _Header:
    kind: bytes
    name: str
    size: int


def walk_tar(file: BinaryIO, *, label: str, on_member: Callable[[TarMember], object] | None = None) -> TarIndex:
    """Read every header of a tar and return its regular members.

    Links, devices and directories are passed over. GNU and pax long names are understood.

    Args:
        file: Seekable binary file, local or remote; the position is left anywhere.
        label: What to call the file in errors, its path or URL.
        on_member: Called with every member when the walk is there, where reading it is cheapest.
    Returns:
        Members in file order with payload offsets and sizes.
    """
    hasher = hashlib.sha256()
    members = []
    for member in iter_members(file, label=label, on_block=hasher.update):
        members.append(member)
        if on_member is not None:
            on_member(member)
    return TarIndex(members=members, header_sha256=hasher.hexdigest(), size_bytes=file.seek(0, os.SEEK_END))


def iter_members(
    file: BinaryIO, *, label: str, on_block: Callable[[bytes], object] | None = None
) -> Iterator[TarMember]:
    """Yield the regular members one by one, as `walk_tar` lists them; only the end proves that the tar is complete.

    Args:
        file: Seekable binary file.
        label: What to call the file in errors.
        on_block: Called with every header block and extended header read.
    """
    reader = _BlockReader(file, label, on_block or (lambda block: None))
    position = 0
    pending_name: str | None = None
    pending_size: int | None = None
    while (block := reader.block(position)) != _ZERO_BLOCK:
        header = _parse_header(block, position, label)
        payload = position + BLOCK_BYTES
        if header.kind in (b"L", b"x"):
            extension = reader.extension(payload, header.size)
            if header.kind == b"L":
                pending_name = _decode_name(extension.split(b"\0", 1)[0], label)
            else:
                pending_name, pending_size = _parse_pax(extension, pending_name, label)
        elif header.kind == b"S":
            raise InputError(f"{label} holds a sparse member at byte {position}; write the tar without --sparse")
        elif header.kind not in (b"K", b"g"):
            size = header.size if pending_size is None else pending_size
            header = _Header(header.kind, pending_name or header.name, 0 if header.kind in _WITHOUT_PAYLOAD else size)
            pending_name = pending_size = None
            reader.require_payload(payload, header)
            if header.kind in _REGULAR and not header.name.endswith("/"):
                yield TarMember(name=_checked_name(header.name, label), offset=payload, size=header.size)
        position = payload + -(-header.size // BLOCK_BYTES) * BLOCK_BYTES
    reader.require_zeros_from(position)


class _BlockReader:
    """Reads at offsets and turns every missing byte into the same "truncated" error."""

    def __init__(self, file: BinaryIO, label: str, on_block: Callable[[bytes], object]) -> None:
        self._file = file
        self._label = label
        self._on_block = on_block
        self._size = file.seek(0, os.SEEK_END)

    def block(self, position: int) -> bytes:
        if position == 0 and self._size == 0:
            raise InputError(f"{self._label} is empty; make or copy it again")
        if position + BLOCK_BYTES > self._size:
            if position == 0 and is_lfs_pointer(self._read(0, self._size)):
                raise InputError(f"{self._label} {LFS_ADVICE}")
            where = "has no end-of-archive marker" if position >= self._size else "ends inside a member header"
            raise self._truncated(f"it {where}")
        block = self._read(position, BLOCK_BYTES)
        self._on_block(block)
        return block

    def extension(self, position: int, size: int) -> bytes:
        if size > _MAX_EXTENSION_BYTES:
            raise InputError(f"{self._label} has an extended header of {size} bytes at byte {position}; refused")
        if position + size > self._size:
            raise self._truncated("it ends inside an extended header")
        data = self._read(position, size)
        self._on_block(data)
        return data

    def require_payload(self, position: int, header: _Header) -> None:
        if position + header.size > self._size:
            raise self._truncated(f"it ends inside member {header.name!r}")

    def require_zeros_from(self, position: int) -> None:
        while position < self._size:
            chunk = self._read(position, min(_TAIL_CHUNK_BYTES, self._size - position))
            if chunk.strip(b"\0"):
                raise InputError(
                    f"{self._label} is damaged: the end-of-archive marker is followed by data near byte {position}; "
                    "copy it again (tars that were joined with cat must be given one by one)"
                )
            position += len(chunk)

    def _read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        parts = []
        while size > 0:
            part = self._file.read(size)
            if not part:
                raise self._truncated("it became shorter while it was read")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _truncated(self, detail: str) -> InputError:
        return InputError(f"{self._label} is truncated: {detail} (size {self._size} bytes); copy or make it again")


def _parse_header(block: bytes, position: int, label: str) -> _Header:
    try:
        stored = _parse_number(block[148:156])
        size = _parse_number(block[124:136])
    except ValueError:
        stored, size = -1, -1
    if size < 0 or not _checksum_holds(block, stored):
        if position == 0 and block[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise InputError(f"{label} is a compressed tar, which cannot be read at offsets; unpack it first")
        if position == 0 and is_lfs_pointer(block):
            raise InputError(f"{label} {LFS_ADVICE}")
        what = "is not a tar" if position == 0 else f"is damaged: the header at byte {position} has a wrong checksum"
        raise InputError(f"{label} {what}; copy or make it again")
    name = block[0:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[257:263] == b"ustar\0":  # GNU headers keep times in the place of the prefix
        name = prefix + b"/" + name
    return _Header(kind=block[156:157], name=name.decode("utf-8", "surrogateescape"), size=size)


def _checksum_holds(block: bytes, stored: int) -> bool:
    # The sum is taken with its own eight bytes counted as spaces; a few old writers summed signed bytes.
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    return stored == unsigned or stored == unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


def _parse_number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, GNU and star: sizes of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _parse_pax(data: bytes, name: str | None, label: str) -> tuple[str | None, int | None]:
    size: int | None = None
    while data:
        # One record is "<length> <keyword>=<value>\n", its length included.
        digits, _, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) <= _MAX_DIGITS else 0
        record = data[len(digits) + 1 : length]
        keyword, separator, value = record[:-1].partition(b"=")
        if not separator or not record.endswith(b"\n") or length > len(data):
            raise InputError(f"{label} is damaged: a pax header is malformed; copy or make it again")
        if keyword == b"path":
            name = _decode_name(value, label)
        elif keyword == b"size" and value.isdigit() and len(value) <= _MAX_DIGITS:
            size = int(value)
        elif keyword.startswith(b"GNU.sparse"):
            raise InputError(f"{label} holds a sparse member; write the tar without --sparse")
        data = data[length:]
    return name, size


def _decode_name(raw: bytes, label: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InputError(f"{label} holds a member name that is not UTF-8 ({raw[:80]!r}); rename it") from None


def _checked_name(name: str, label: str) -> str:
    if any(
        ord(character) < 32 or 127 <= ord(character) < 160 or "\ud800" <= character <= "\udfff" for character in name
    ):
        raise InputError(f"{label} holds a member name with control characters or not in UTF-8 ({name!r}); rename it")
    if ".." in name.split("/"):
        raise InputError(f'{label} holds a member name that leaves its folder ({name!r}); names must not contain ".."')
    return name


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member name into sample key and lower-case suffix, or return None where webdataset ignores the member.

    The key is the path up to the first dot of its last component. Names like `__meta__` and hidden files have none; of
    hidden files in sub-folders, such as the `._x.jpg` of macOS, webdataset makes samples without an image.
    """
    match = _GROUPED_NAME.fullmatch(name)
    if match is None or match.group(1).endswith("/") or _META_NAME.match(name):
        return None
    return match.group(1), match.group(2).lower()


def group_samples(members: list[TarMember], *, label: str) -> dict[str, dict[str, TarMember]]:
    """Group consecutive members with the same key into samples, as webdataset does.

    Returns:
        For each key, in file order, its members by suffix.
    """
    samples: dict[str, dict[str, TarMember]] = {}
    previous: str | None = None
    for member in members:
        parts = split_name(member.name)
        if parts is None:
            continue
        key, suffix = parts
        if suffix in samples.get(key, ()):
            raise InputError(f"{label} holds sample {key!r} twice (member {member.name!r}); keys must be unique")
        if key != previous and key in samples:
            raise InputError(
                f"{label} holds sample {key!r} twice: its files do not stand together ({member.name!r} is apart), and "
                f"keys must be unique; sort it: mkdir x && tar -xf {shlex.quote(label.rsplit('/', 1)[-1])} -C x && "
                "tar --sort=name -cf sorted.tar -C x ."
            )
        samples.setdefault(key, {})[suffix] = member
        previous = key
    return samples
