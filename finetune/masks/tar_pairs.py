"""WebDataset tars in which an image and its mask are members of one sample: `0001.jpg` beside `0001.seg.png`.

All tars are walked once; where images and masks stand in them is kept in the cache, so that remote tars need not be
fetched again.

    <cache>/tar-pairs/v1/<digest>.arrow   one record batch per tar, a row per pair; what has no partner in its metadata
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from beit.common.errors import InputError, require
from beit.common.progress import Progress
from beit.common.sources.config import SourceConfig
from beit.common.sources.opening import open_source
from beit.common.sources.tars import TarReader, TarShard, suffixes_of
from beit.common.sources.types import SampleRef, SourceKind, listing_digest
from beit.common.storage.files import atomic_file, default_cache_dir
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.matching import is_folder, list_folder
from beit.common.storage.paths import is_remote, normalise, split_query
from beit.common.storage.place import RemoteError
from beit.common.storage.tar_walk import group_samples, walk_tar
from beit.common.storage.threads import threads
from beit.finetune.masks.class_table import table_beside
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.types import MaskedSource

logger = logging.getLogger(__name__)

MASK_MEMBERS = "seg.png;mask.png"
"""What follows the key in the names of masks, in order of preference."""
_MEMBERS_IN_MESSAGE = 6
_VERSION = "v1"
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *((f"{what}_{part}", kind) for what in ("image", "mask") for part, kind in
          (("offset", pa.int64()), ("size", pa.int64()), ("name", pa.string()))),
    ]
)  # fmt: skip


def looks_like_tars(data: str) -> bool:
    """Tell whether these are tars, or a folder of tars."""
    path = split_query(data)[0]
    if path.lower().endswith(".tar"):
        return True
    return is_folder(normalise(path)) and any(
        file.path.lower().endswith(".tar") for file in list_folder(normalise(path))
    )


def open_tar_pairs(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedSource:
    """Open tars of images and masks.

    Args:
        data: As `open_source` takes tars.
        settings: `mask_member` says which member is the mask.
        reading: `image_member` says which is the image.
    """
    source = open_source(data, image_member=reading.image_member)
    require(source.kind == "tar", f"{data} holds no tars; name a folder of tars, or tars")
    masks = suffixes_of(settings.mask_member or MASK_MEMBERS)
    members = _Members(tuple(suffix for suffix in suffixes_of(reading.image_member) if suffix not in masks), masks)
    tars = [shard for shard in source.shards if isinstance(shard, TarShard)]
    digest = listing_digest(source.root, [], labels=[source.digest, f"images {members.images} masks {members.masks}"])
    found = _all_pairs(tars, members, digest)
    name = split_query(data)[0]
    require(any(len(pairs.table) for pairs in found), _nothing_matches(name, found, members))
    return MaskedSource(
        images=replace(
            source,
            shards=[TarPairShard(tar, members, False, pairs.table) for tar, pairs in zip(tars, found, strict=True)],
            class_names=None,
            digest=digest,
        ),
        masks=tuple(TarPairShard(tar, members, True, pairs.table) for tar, pairs in zip(tars, found, strict=True)),
        table=table_beside(source.root),
        without_mask=tuple(path for pairs in found for path in pairs.without_mask),
        without_image=tuple(path for pairs in found for path in pairs.without_image),
        notes=tuple(f"{name}: {note}" for note in _notes(found)),
    )


class _Members(NamedTuple):
    """What follows the key in the names of images and of masks, each in order of preference."""

    images: tuple[str, ...]
    masks: tuple[str, ...]


class _Pairs(NamedTuple):
    """What one tar holds."""

    table: pa.RecordBatch
    """`_SCHEMA`."""
    without_mask: list[str]
    """Names of the images."""
    without_image: list[str]
    """Names of the masks."""
    suffixes: list[str]
    """Of all members."""
    several: list[list[str]]
    """Where a sample has several images: what follows their keys, the one that is taken first."""


@dataclass(frozen=True, slots=True)
class TarPairShard:
    """The images or the masks of one tar, of the samples that have both."""

    tar: TarShard
    members: _Members
    is_mask: bool
    known: pa.RecordBatch | None = field(default=None, compare=False, repr=False)
    """Where they stand; other processes, which seldom ask, walk again."""

    kind: ClassVar[SourceKind] = "tar"
    row_group: ClassVar[int] = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tar, self.members, self.is_mask)

    @property
    def name(self) -> str:
        """Stem of the tar's name."""
        return self.tar.name

    @property
    def location(self) -> str:
        """Path or URL of the tar."""
        return self.tar.location

    def refs(self) -> list[SampleRef]:
        """List the images, or the masks, in order."""
        table = self.known if self.known is not None else _walk(self.tar, self.members).table
        part = "mask" if self.is_mask else "image"
        columns = [table[name].to_pylist() for name in ("key", f"{part}_offset", f"{part}_size", f"{part}_name")]
        return [SampleRef(key, offset, size, None, name) for key, offset, size, name in zip(*columns, strict=True)]

    def open(self) -> AbstractContextManager[TarReader]:
        """Open the tar for reading."""
        return self.tar.open()


def _all_pairs(tars: list[TarShard], members: _Members, digest: str) -> list[_Pairs]:
    """Return what the tars hold, from the cache or by walking through all of them."""
    folder = default_cache_dir() / "tar-pairs" / _VERSION
    kept = folder / f"{digest}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / f"{digest}.lock"):  # of several ranks one walks, the others wait for it
            found = _read_kept(kept)
            if found is None:
                found = list(_walk_all(tars, members))
                schema = _SCHEMA.with_metadata({"others": json.dumps([pairs[1:] for pairs in found])})
                with atomic_file(kept) as out, pa.ipc.new_file(out, schema) as writer:
                    for pairs in found:
                        writer.write_batch(pairs.table)
            return found
    except OSError as error:
        if isinstance(error, RemoteError):
            raise
        raise InputError(
            f"cannot keep where images and masks stand in {folder} ({error}); point BEIT_CACHE at a folder with space"
        ) from None


def _read_kept(kept: Path) -> list[_Pairs] | None:
    if not kept.exists():
        return None
    try:
        with pa.memory_map(str(kept)) as mapped:
            file = pa.ipc.open_file(mapped)
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
            others = json.loads(file.schema.metadata[b"others"])
        return [_Pairs(batch, *other) for batch, other in zip(batches, others, strict=True)]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        logger.warning("what was kept in %s is damaged (%s); walking the tars again", kept, error)
        return None


def _walk_all(tars: list[TarShard], members: _Members) -> Iterator[_Pairs]:
    with Progress(len(tars), unit="tars", description="pairing") as progress:
        walk = partial(_walk, members=members)
        for pairs in threads().imap(walk, tars) if is_remote(tars[0].location) else map(walk, tars):
            yield pairs
            progress.update(1)


def _walk(tar: TarShard, members: _Members) -> _Pairs:
    """Walk a tar front to back, and pair its members."""
    with tar.open(read_ahead=True) as reader:
        walked = walk_tar(reader.file, label=reader.label).members
    rows: list[dict[str, Any]] = []
    found = _Pairs(pa.RecordBatch.from_pylist([], schema=_SCHEMA), [], [], [], [])
    for key, sample in group_samples(walked, label=tar.location).items():
        images = [suffix for suffix in members.images if suffix in sample]
        mask = next((sample[suffix] for suffix in members.masks if suffix in sample), None)
        found.suffixes.extend(sample.keys() - set(found.suffixes))
        if images and mask is not None:
            row: dict[str, Any] = {"key": key}
            for part, member in (("image", sample[images[0]]), ("mask", mask)):
                row |= {f"{part}_offset": member.offset, f"{part}_size": member.size, f"{part}_name": member.name}
            rows.append(row)
            if len(images) > 1:
                found.several.append(images)
        elif images:
            found.without_mask.append(sample[images[0]].name)
        elif mask is not None:
            found.without_image.append(mask.name)
    return found._replace(table=pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))


def _notes(found: list[_Pairs]) -> list[str]:
    several = [choice for pairs in found for choice in pairs.several]
    if not several:
        return []
    first, *others = several[0]
    return [
        f"{len(several)} samples have several images, of which {first} is taken, not {', '.join(others)}; "
        "source.image_member chooses another"
    ]


def _nothing_matches(name: str, found: list[_Pairs], members: _Members) -> str:
    suffixes = sorted({suffix for pairs in found for suffix in pairs.suffixes})
    listed = ", ".join(suffixes[:_MEMBERS_IN_MESSAGE]) or "nothing"
    images = [path for pairs in found for path in pairs.without_mask]
    if not images:
        return (
            f"{name} holds no images beside masks: members end in {listed}, and images must end in "
            f"{', '.join(members.images)} (all behind the first dot counts); source.image_member names another"
        )
    # What is itself the image of a sample, as in tars with folders of images and of masks, is no mask beside one.
    taken = {suffix for suffix in suffixes if any(path.lower().endswith(f".{suffix}") for path in images)}
    others = [suffix for suffix in suffixes if suffix.endswith("png") and suffix not in taken]
    return (
        f"{name}: none of {len(images)} images has a mask: members end in {listed}, and masks must end in "
        f"{' or '.join(members.masks)}; data.mask_member names another"
        + (f", such as data.mask_member={others[0]}" if others else "; an image and its mask share all before that")
    )
