"""Finishing a store: which samples are held out, and the shard table, both built from the manifests."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.common.bad_samples import BadSampleLog
from beit.common.errors import InputError, require
from beit.common.files import write_atomic, write_json
from beit.common.sample_table import SampleTable, decode_index, decode_samples, encode_index
from beit.common.store_schema import (
    INDEX_FILE,
    STORE_FILE,
    TOKENS_DIR,
    ShardManifest,
    ShardRow,
    StoreInfo,
    held_out_count,
    manifest_path,
    read_document,
    to_json,
)
from beit.tokenize.leases import Leases

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinishedStore:
    """The content of a finished store."""

    rows: list[ShardRow]
    skipped: Counter[str]
    """Images without tokens, by reason."""


def index_stamp(store: Path) -> tuple[int, int] | None:
    """Return what tells this index.parquet from one that replaces it; None if there is none."""
    try:
        status = (store / INDEX_FILE).stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def finish_store(
    store: Path, stems: list[str], leases: Leases, *, budget: float, stamp_before: tuple[int, int] | None = None
) -> FinishedStore | None:
    """Write the held-out threshold and the shard table, once every shard is committed.

    Every rank calls this at its end. The first one reads all manifests and sample tables; what it wrote while the
    others were still running is good for them, too.

    Args:
        store: Folder of the store.
        stems: All shards, in order.
        leases: Of this process.
        budget: Share of unusable images that is tolerated.
        stamp_before: `index_stamp` when this process began; an older index is written anew.
    Returns:
        What the store holds, or None while shards are missing.
    Raises:
        InputError: no image was usable, or too few were, or a manifest does not belong here.
    """
    with leases.step("store"):
        info = read_document(StoreInfo, store / STORE_FILE)
        folder = store / TOKENS_DIR
        if not all(manifest_path(folder, stem).exists() for stem in stems):
            return None
        if index_stamp(store) not in (None, stamp_before) and _is_newest(store, stems):
            rows = decode_index((store / INDEX_FILE).read_bytes(), label=str(store / INDEX_FILE))
            with_skipped = [row.stem for row in rows if row.num_skipped]
            return FinishedStore(rows, _count_skipped(_read_manifests(folder, with_skipped)))
        manifests = _read_manifests(folder, stems)
        _check_manifests(store, info, manifests, budget)
        hashes = [_load_samples(folder, manifest).key_hash for manifest in manifests]
        threshold = held_out_threshold(hashes, info)
        info = replace(info, held_out=replace(info.held_out, threshold=threshold))
        rows = [index_row(manifest, keys, threshold) for manifest, keys in zip(manifests, hashes, strict=True)]
        write_json(store / STORE_FILE, to_json(info))
        write_atomic(store / INDEX_FILE, encode_index(rows))
        leases.sweep()
    return FinishedStore(rows, _count_skipped(manifests))


def _is_newest(store: Path, stems: list[str]) -> bool:
    """Tell whether the shard table is younger than all manifests, by the times of one file system."""
    written = (store / INDEX_FILE).stat().st_mtime_ns
    return all(manifest_path(store / TOKENS_DIR, stem).stat().st_mtime_ns <= written for stem in stems)


def _read_manifests(folder: Path, stems: list[str]) -> list[ShardManifest]:
    return [read_document(ShardManifest, manifest_path(folder, stem)) for stem in stems]


def _count_skipped(manifests: list[ShardManifest]) -> Counter[str]:
    return Counter(sample.reason for manifest in manifests for sample in manifest.skipped)


def held_out_threshold(hashes: list[NDArray[np.uint64]], info: StoreInfo) -> int:
    """Return the threshold below which exactly the wanted number of key hashes lies.

    Raises:
        InputError: there is no sample at all.
    """
    everything = np.concatenate(hashes)
    require(len(everything) > 0, "no image of the source is usable; see the warnings above")
    count = held_out_count(len(everything), info.held_out)
    return int(np.partition(everything, count)[count])


def _check_manifests(store: Path, info: StoreInfo, manifests: list[ShardManifest], budget: float) -> None:
    settings = info.settings_sha256()
    num_skipped = sum(len(manifest.skipped) for manifest in manifests)
    num_images = num_skipped + sum(manifest.num_samples for manifest in manifests)
    allowed = BadSampleLog(num_images, budget).allowed
    require(
        num_skipped <= allowed,
        f"{num_skipped} of {num_images} images cannot be used, but bad_sample_budget ({budget:g}) allows {allowed}; "
        "repair or remove them, or raise the budget",
    )
    for manifest in manifests:
        if manifest.settings_sha256 != settings:
            raise InputError(f"shard {manifest.stem} of {store} was written with other settings; tokenise anew")


def _load_samples(folder: Path, manifest: ShardManifest) -> SampleTable:
    path = folder / manifest.samples.name
    data = path.read_bytes()
    require(
        hashlib.sha256(data).hexdigest() == manifest.samples.sha256,
        f"{path} is damaged; run beit tokenize again to mend it",
    )
    return decode_samples(data, label=str(path))


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
