"""Finishing a store: which samples are held out, and the shard table, both built from the manifests."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.reading.bad_samples import BadSampleLog, in_images, is_over
from beit.common.shards.held_out import HeldOutChoice, choose_held_out
from beit.common.shards.schema import (
    INDEX_FILE,
    STORE_FILE,
    TOKENS_DIR,
    ShardManifest,
    ShardRow,
    StoreInfo,
    manifest_name,
)
from beit.common.shards.tables import ShardTable, decode_samples, encode_index
from beit.common.storage.documents import parse_document, read_document, write_document
from beit.common.storage.place import FileStat, read_files
from beit.tokenize.store.documents import StoreFiles, stat_if_there
from beit.tokenize.store.leases import Leases

logger = logging.getLogger(__name__)

_TABLES_AT_ONCE = 128
"""Sample tables in memory while the index is built, about 150 kB each."""


@dataclass(frozen=True, slots=True)
class FinishedStore:
    """The content of a finished store."""

    rows: list[ShardRow]
    skipped: Counter[str]
    """Images without tokens, by reason."""


def finish_store(
    files: StoreFiles, stems: list[str], leases: Leases, *, budget: float, stamp_before: FileStat | None = None
) -> FinishedStore | None:
    """Write the held-out threshold and the shard table, once every shard is committed.

    Every rank calls this at its end. The first one reads all manifests and sample tables; what it wrote while the
    others were still running is good for them, too.

    Args:
        files: Of the store.
        stems: All shards, in order.
        leases: Of this process.
        budget: Share of unusable images that is tolerated.
        stamp_before: Stamp of the index when this process began; an older index is written anew.
    Returns:
        What the store holds, or None while shards are missing.
    """
    with leases.step("store"):
        info = read_document(StoreInfo, files / STORE_FILE)
        listed = {file.path: file for file in (files / TOKENS_DIR).files()}
        if not listed.keys() >= {manifest_name(stem) for stem in stems}:
            return None
        index, found = files / INDEX_FILE, stat_if_there(files / INDEX_FILE)
        if found not in (None, stamp_before) and _is_newest(found, [listed[manifest_name(stem)] for stem in stems]):
            rows = list(ShardTable.decode(index.read(), label=index.location))
            with_skipped = [row.stem for row in rows if row.num_skipped]
            return FinishedStore(rows, _count_skipped(info, _read_manifests(files, with_skipped)))
        manifests = _read_manifests(files, stems)
        _check_manifests(files, info, manifests, budget)
        hashes = _load_key_hashes(files, manifests)
        threshold = _hold_out(hashes, info).threshold
        info = replace(info, held_out=replace(info.held_out, threshold=threshold))
        rows = [index_row(manifest, keys, threshold) for manifest, keys in zip(manifests, hashes, strict=True)]
        write_document(files / STORE_FILE, info)
        index.write(encode_index(rows))
        leases.sweep()
    return FinishedStore(rows, _count_skipped(info, manifests))


def _read_manifests(files: StoreFiles, stems: list[str]) -> list[ShardManifest]:
    paths = [str(files / f"{TOKENS_DIR}/{manifest_name(stem)}") for stem in stems]
    contents = read_files(paths)
    return [parse_document(ShardManifest, data, label=path) for path, data in zip(paths, contents, strict=True)]


def _is_newest(index: FileStat, others: list[FileStat]) -> bool:
    """Tell whether the index is not older than any of the others, as far as is known.

    Many storages count in seconds. That a shard was tokenised again in the second in which the index was written is not
    seen then; its bytes are the same, unless the settings allow mixed executions.
    """
    times = [other.modified_ns for other in others]
    return index.modified_ns is not None and all(time is not None and time <= index.modified_ns for time in times)


def _count_skipped(info: StoreInfo, manifests: list[ShardManifest]) -> Counter[str]:
    """Count what has no tokens: an image that was cut, and of which nothing is there, in all of its tars once."""
    named = {
        ("" if info.is_cut else manifest.stem, sample.key): sample.reason
        for manifest in manifests
        for sample in manifest.skipped
    }
    return Counter(named.values())


def _hold_out(hashes: list[NDArray[np.uint64]], info: StoreInfo) -> HeldOutChoice:
    everything = np.concatenate(hashes)
    require(len(everything) > 0, "no image of the source is usable; see the warnings above")
    choice = choose_held_out(everything, info.held_out, info.held_out_by)
    if choice.warning:
        logger.warning("%s", choice.warning)
    return choice


def _check_manifests(files: StoreFiles, info: StoreInfo, manifests: list[ShardManifest], budget: float) -> None:
    settings = info.settings_sha256()
    skipped = [sample.share for manifest in manifests for sample in manifest.skipped]
    num_images = info.source.num_images or len(skipped) + sum(manifest.num_samples for manifest in manifests)
    allowed = BadSampleLog(num_images, budget).allowed
    require(
        not is_over(sum(skipped), allowed),
        f"{in_images(sum(skipped))} of {num_images} images cannot be used, but bad_sample_budget ({budget:g}) allows "
        f"{allowed}; repair or remove them, or raise the budget",
    )
    for manifest in manifests:
        if manifest.settings_sha256 != settings:
            raise InputError(
                f"shard {manifest.stem} of {files.location} was written with other settings; tokenise anew"
            )


def _load_key_hashes(files: StoreFiles, manifests: list[ShardManifest]) -> list[NDArray[np.uint64]]:
    hashes = []
    for start in range(0, len(manifests), _TABLES_AT_ONCE):
        some = manifests[start : start + _TABLES_AT_ONCE]
        paths = [str(files / f"{TOKENS_DIR}/{manifest.samples.name}") for manifest in some]
        for manifest, path, data in zip(some, paths, read_files(paths), strict=True):
            is_sound = hashlib.sha256(data).hexdigest() == manifest.samples.sha256
            require(is_sound, f"{path} is damaged; run beit tokenize again to mend it")
            hashes.append(decode_samples(data, label=path).key_hash)
    return hashes


def index_row(manifest: ShardManifest, key_hash: NDArray[np.uint64], threshold: int) -> ShardRow:
    """Return the row of one shard in the shard table."""
    tokens = manifest.tokens
    return ShardRow(
        stem=manifest.stem,
        image_file=manifest.image.name,
        token_file=tokens.name if tokens else "",
        num_samples=manifest.num_samples,
        num_skipped=len(manifest.skipped),
        num_held_out=int((key_hash < np.uint64(threshold)).sum()),
        image_bytes=manifest.image.size,
        token_bytes=tokens.size if tokens else 0,
        image_sha256=manifest.image.sha256,
        image_header_sha256=manifest.image.header_sha256,
        token_sha256=tokens.sha256 if tokens else "",
        samples_sha256=manifest.samples.sha256,
        image_stamp=manifest.image.stamp,
    )
