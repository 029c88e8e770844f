"""`beit verify`: is a store what its manifests say, down to the last byte, and do its tables fit its tars?

A shard is checked from the cheap to the thorough: files and sizes, hashes, the members of both tars against the sample
table, token ids against the vocabulary. Comparing tokens with a new tokenisation is `audit.py`.

The files of a local store are read as they are. A remote one is checked shard by shard, each in a temporary folder laid
out like a store, so that the checks are the same and no more than one shard takes disk.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from beit.common.errors import BadSample, InputError, require
from beit.common.images.decode import decode_image
from beit.common.progress import Progress
from beit.common.shards.held_out import held_out_hash
from beit.common.shards.schema import (
    IMAGES_DIR,
    INDEX_FILE,
    TOKENS_DIR,
    TOKENS_SUFFIX,
    VIEWS_SUFFIX,
    ImageFile,
    ImageShardManifest,
    ShardManifest,
    ShardRow,
    StoreInfo,
    manifest_name,
)
from beit.common.shards.tables import SampleTable, ShardTable
from beit.common.shards.token_store import TokenStore, image_range
from beit.common.storage.documents import read_document
from beit.common.storage.files import sha256_of
from beit.common.storage.paths import is_remote, normalise, resolve_location, resolve_reference
from beit.common.storage.place import MissingFile, Place, copy_file, place_of
from beit.common.storage.tar_walk import TarMember, walk_tar
from beit.common.store import read_store_info
from beit.common.views import VIEW_DTYPE, crop_crc
from beit.tokenize.checking.audit import AuditResult, audit_store
from beit.tokenize.shards.crops import crop_suffix
from beit.tokenize.shards.encode import ViewEncoder
from beit.tokenize.shards.index import index_row
from beit.tokenize.store.documents import check_file

logger = logging.getLogger(__name__)
_SUFFIXES = (".manifest.json", ".samples.parquet", ".tar")
_PROBLEMS_SHOWN, _KEYS_SHOWN = 20, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What `beit verify` found."""

    problems: list[str]
    """One line each, naming the file; empty for a good store."""
    num_shards: int
    """Shards checked."""
    num_samples: int
    """Usable samples in them."""
    audit: AuditResult | None = None
    """Comparison with a new tokenisation, if one was asked for."""

    def as_text(self) -> str:
        """Return the lines a user sees."""
        lines = [f"{self.num_shards} shards, {self.num_samples} samples checked"]
        if self.audit is not None:
            lines.append(self.audit.as_text())
        if not self.problems:
            return "\n".join([*lines, "all files are what their manifests say"])
        shown = [f"  {problem}" for problem in self.problems[:_PROBLEMS_SHOWN]]
        more = len(self.problems) - len(shown)
        return "\n".join([*lines, f"{len(self.problems)} problems:", *shown, *([f"  and {more} more"] if more else [])])


def verify_store(store: str | Path, *, audit: int = 0, tokenizer: ViewEncoder | str | None = None) -> VerifyReport:
    """Check every shard of a store, finished or not.

    Args:
        store: Folder or URL of the store.
        audit: Random views to tokenise again; only done if nothing else is wrong.
        tokenizer: For the audit, instead of the one the store names: a name or path, or the tokenizer itself.
    Returns:
        The problems found, as text.
    """
    location = normalise(str(store))
    location = location if is_remote(location) else os.path.realpath(location)
    info = read_store_info(location)
    rows, problems = _read_index(location, info)
    stems = [row.stem for row in rows] if rows else _stems_with_manifest(location)
    problems += [f"{name} does not belong to the store; remove it" for name in _strays(location, set(stems))]
    local_info = replace(info, image_root=resolve_reference(location, info.image_root))
    num_samples = 0
    with Progress(len(stems), unit="shards", description="verify") as progress:
        for number, stem in enumerate(stems):
            try:
                with _local_shard(location, stem) as folder:
                    num_samples += _verify_shard(folder, local_info, stem, rows[number] if rows else None)
            except (InputError, BadSample, OSError) as error:
                problems.append(f"shard {stem}: {error}")
            progress.update(1)
    result = None
    if audit and not problems:
        result = audit_store(TokenStore(location, info, rows), count=audit, tokenizer=tokenizer)
        problems += result.problems
    return VerifyReport(problems=problems, num_shards=len(stems), num_samples=num_samples, audit=result)


def _read_index(location: str, info: StoreInfo) -> tuple[list[ShardRow], list[str]]:
    path = resolve_location(location, INDEX_FILE)
    if not place_of(path).exists() or info.held_out.threshold is None:
        return [], [f"the store is unfinished: it has no {INDEX_FILE}; run beit tokenize again to finish it"]
    try:
        rows = list(ShardTable.decode(place_of(path).read(), label=path))
    except InputError as error:
        return [], [str(error)]
    if len(rows) != info.source.num_shards:
        return rows, [f"{path} has {len(rows)} shards, store.json says {info.source.num_shards}"]
    return rows, []


def _stems_with_manifest(location: str) -> list[str]:
    suffix = _SUFFIXES[0]
    names = (place_of(location) / TOKENS_DIR).names()
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def _strays(location: str, stems: set[str]) -> Iterator[str]:
    """Yield files of no known shard, and what killed processes left; of a server that lists no folders, none."""
    for folder in (TOKENS_DIR, IMAGES_DIR):
        try:
            names = (place_of(location) / folder).names()
        except InputError as error:
            logger.info("not looking for files that do not belong to the store: %s", error)
            continue
        for name in names:
            stem = next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), None)
            if stem not in stems:
                yield f"{folder}/{name}"


def _verify_shard(location: str, info: StoreInfo, stem: str, row: ShardRow | None) -> int:
    """Check one shard and return its number of samples; the first thing that is wrong is raised."""
    folder = Path(location) / TOKENS_DIR
    manifest = read_document(ShardManifest, place_of(str(folder / manifest_name(stem))))
    require(manifest.settings_sha256 == info.settings_sha256(), "its manifest belongs to other settings")
    check_file(place_of(str(folder / manifest.samples.name)), manifest.samples)
    own_row = index_row(manifest, np.empty(0, np.uint64), 0)
    view = TokenStore(location, info, [own_row])
    if manifest.tokens is not None:
        with _naming_samples(view):
            check_file(place_of(str(folder / manifest.tokens.name)), manifest.tokens)
    if info.packing is not None:
        packed = read_document(ImageShardManifest, place_of(location) / f"{IMAGES_DIR}/{manifest_name(stem)}")
        require(
            packed.image == manifest.image, f"the manifests in {IMAGES_DIR} and {TOKENS_DIR} disagree on the image tar"
        )
    table = view.samples(0)
    hashes = np.array([held_out_hash(key, info.held_out_by) for key in table.key], dtype=np.uint64)
    require(bool((hashes == table.key_hash).all()), f"key hashes in {manifest.samples.name} are wrong")
    if row is not None:
        expected = replace(own_row, num_held_out=int(table.held_out(info.held_out.threshold).sum()))
        require(row == expected, f"{INDEX_FILE} does not agree with its manifest; run beit tokenize again to mend it")
    with _naming_samples(view):
        _verify_images(view.image_location(0), manifest.image, table)
    if manifest.tokens is not None:
        _verify_token_tar(view, table)
    return len(table)


@contextmanager
def _naming_samples(view: TokenStore) -> Iterator[None]:
    """Add to the error of a damaged tar which samples it concerns, as far as their contents tell."""
    try:
        yield
    except InputError as error:
        if "sha256" not in str(error):  # cut or missing: the error says enough
            raise
        keys = [repr(key) for row, key in enumerate(view.samples(0).key) if not _is_sound(view, row)]
        more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
        found = f"damaged samples: {', '.join(keys[:_KEYS_SHOWN])}{more}" if keys else "no sample shows which"
        raise InputError(f"{error}; {found}") from None


def _is_sound(view: TokenStore, row: int) -> bool:
    """Tell whether the tokens of a sample are tokens, and its image decodes to the crops that were tokenised."""
    try:
        view.read_token_ids(0, row)
        image = None
        for view_k in range(max(1, view.info.views)):
            if image is None or view.info.is_materialized:
                image = decode_image(view.read_image(0, row, view_k), view.info.decoding)
            record = view.read_record(0, row, view_k).view
            if record is not None and crop_crc(image, record) != int(record["crc_crop"]):
                return False
    except (BadSample, InputError):
        return False
    return True


def _verify_images(location: str, expected: ImageFile, table: SampleTable) -> None:
    size = place_of(location).stat().size
    require(size == expected.size, f"{location} has {size} bytes, {expected.size} when it was tokenised")
    with _at_hand(location) as file:
        index = walk_tar(file, label=location)
        file.seek(0)
        is_damaged = expected.sha256 and sha256_of(file) != expected.sha256
    require(index.header_sha256 == expected.header_sha256, f"{location} holds other members than when it was tokenised")
    require(not is_damaged, f"{location} is damaged: its sha256 has changed")
    members = {member.offset: member for member in index.members}
    num_crops = table.img_off.shape[1] if table.img_off.ndim == 2 else 0
    for row, key in enumerate(table.key):
        for view_k in range(num_crops or 1):
            offset, length = image_range(table, row, view_k)
            member = members.get(offset)
            start = f"{key}.{crop_suffix(view_k)}" if num_crops else f"{key}."
            fits = member is not None and member.size == length and member.name.startswith(start)
            require(fits, f"the sample table points at no image of {key!r} in {location}")


def _verify_token_tar(view: TokenStore, table: SampleTable) -> None:
    location, info = view.token_location(0), view.info
    with place_of(location).open() as file:
        members = walk_tar(file, label=location).members
    require(len(members) == 2 * len(table), f"{location} has {len(members)} members, {2 * len(table)} expected")
    lengths = (info.views * info.grid_size**2 * 2, info.views * VIEW_DTYPE.itemsize)
    for row, key in enumerate(table.key):
        tokens, views = members[2 * row], members[2 * row + 1]
        _require_array(tokens, f"{key}.{TOKENS_SUFFIX}", (int(table.tok_off[row]), int(table.tok_len[row])), lengths[0])
        _require_array(views, f"{key}.{VIEWS_SUFFIX}", (int(table.view_off[row]), int(table.view_len[row])), lengths[1])
        view.read_token_ids(0, row)  # raises if an id is outside the vocabulary


def _require_array(member: TarMember, name: str, place: tuple[int, int], length: int) -> None:
    ends_alike = sum(place) == member.offset + member.size
    require(
        member.name == name and place[1] == length and ends_alike,
        f"member {member.name} is not the array {name} of {length} bytes that the sample table points at",
    )


@contextmanager
def _local_shard(location: str, stem: str) -> Iterator[str]:
    """Yield a folder in which tokens/ and images/ hold the files of one shard, image tars apart.

    Args:
        location: Folder or URL of the store.
        stem: Name of the shard.
    """
    if not is_remote(location):
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="beit-verify-") as folder:
        try:
            _fetch_shard(place_of(location), stem, Path(folder))
            yield folder
        except (InputError, BadSample) as error:
            raise InputError(str(error).replace(folder, location)) from None


@contextmanager
def _at_hand(location: str) -> Iterator[BinaryIO]:
    """Yield a file opened for reading; of a remote one, a copy that is gone afterwards."""
    place = place_of(location)
    if not is_remote(location):
        with place.open() as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="beit-verify-") as copy:
        copy_file(place, copy)
        yield cast(BinaryIO, copy)


def _fetch_shard(store: Place, stem: str, folder: Path) -> None:
    for name in (TOKENS_DIR, IMAGES_DIR):
        (folder / name).mkdir()
        path = f"{name}/{manifest_name(stem)}"
        with suppress(MissingFile):  # said by the check that needs it
            (folder / path).write_bytes((store / path).read())
    manifest = read_document(ShardManifest, place_of(str(folder)) / f"{TOKENS_DIR}/{manifest_name(stem)}")
    for expected in (manifest.samples, manifest.tokens):
        if expected is not None:
            # Its schema lets through plain file names only, so a manifest cannot choose where something is written.
            with (folder / TOKENS_DIR / expected.name).open("wb") as file:
                copy_file(store / f"{TOKENS_DIR}/{expected.name}", file)
