"""The health of a token store by a look at every file and a few samples; every byte is read by `beit verify`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from beit.common.errors import BadSample, InputError
from beit.common.overview.doctor.findings import Finding, fault, refused, warning, well
from beit.common.overview.doctor.machine.space import look_at_disk
from beit.common.pages.numbers import count
from beit.common.shards.schema import INDEX_FILE, LEASE_PREFIX, TOKENS_DIR, StoreInfo
from beit.common.storage.paths import is_remote, normalise, resolve_location
from beit.common.storage.place import MissingFile, place_of

_SHARDS_TRIED = 8
"""Of which one sample each is read and rendered; evenly spread."""
_BUSY_SECONDS = 60.0
"""A lease that stood still for longer has lost its holder (`tokenize/store/leases.py`)."""
_MANIFEST = ".manifest.json"


def look_at_store(named: str) -> Iterator[Finding]:
    """Are its files those of the index, and does it render here what was tokenised?"""
    from beit.common.store import open_store, read_store_info

    location = normalise(named)
    location = location if is_remote(location) else os.path.realpath(location)
    info = read_store_info(location)
    if info.held_out.threshold is None or not place_of(resolve_location(location, INDEX_FILE)).exists():
        yield from _unfinished(named, location, info)
        return
    store = open_store(location)  # looks at size and time of every file
    yield well("store", f"{named}: {_described(info, len(store), len(store.shards))}")
    yield from _samples(store)
    yield from _tokenizer(info)


def _described(info: StoreInfo, num_samples: int, num_shards: int) -> str:
    kind = ", materialised" if info.is_materialized else ""
    words = f", {info.grid_size} x {info.grid_size} words of {info.tokenizer.vocab_size}" if info.tokenizer else ""
    views = f"{count(info.views, 'view')} of {info.img_size} px{words}{kind}" if info.views else "no tokens"
    return f"{count(num_samples, 'image')} in {count(num_shards, 'shard')}, {views}; every file has its size and time"


def _unfinished(named: str, location: str, info: StoreInfo) -> Iterator[Finding]:
    try:
        done = sum(name.endswith(_MANIFEST) for name in (place_of(location) / TOKENS_DIR).names())
    except (InputError, MissingFile):
        done = 0
    what = f"{named} is unfinished: {done} of {count(info.source.num_shards, 'shard')} are tokenised"
    if not is_remote(location) and _is_leased(Path(location)):
        yield warning("store", f"{what}; a beit tokenize is at work on it", "wait for its end")
        return
    yield fault("store", what, f"beit tokenize with the same source and settings into {shlex.quote(named)}")
    if not is_remote(location):
        yield from look_at_disk(Path(location), f"the disk of {named}", topic="store")


def _is_leased(folder: Path) -> bool:
    """Whether a process says that it is at work: leases are written anew every few seconds."""
    leases = folder.glob(f"{LEASE_PREFIX}*")
    return any(time.time() - lease.stat().st_mtime < _BUSY_SECONDS for lease in leases)


def _samples(store: object) -> Iterator[Finding]:
    """Yield whether a few samples are what was tokenised, down to the pixels of a view."""
    import numpy as np

    from beit.common.shards.checks import check_vocabulary
    from beit.common.shards.token_store import TokenStore
    from beit.common.views import compute_canary, replay_versions, replay_view

    assert isinstance(store, TokenStore)
    info = store.info
    if info.views and compute_canary() != info.canary:
        here = ", ".join(f"{name} {version}" for name, version in replay_versions().items())
        then = ", ".join(info.versions) or "unknown versions"
        yield warning(
            "store",
            f"views are rendered otherwise here ({here}) than where they were tokenised ({then}): training refuses",
            "install those versions, or --set data.replay=tolerant",
        )
        return
    if info.views:
        check_vocabulary(store)
    num_shards = len(store.shards)
    shards = sorted(set(np.linspace(0, num_shards - 1, min(num_shards, _SHARDS_TRIED)).astype(int).tolist()))
    tried = 0
    for shard_id in shards:
        for row in [len(store.samples(shard_id)) // 2] if len(store.samples(shard_id)) else []:
            try:
                record = store.read_record(shard_id, row, info.views // 2)
                if record.view is not None:
                    replay_view(record.image_bytes, record.view, img_size=info.img_size, decoding=info.decoding)
            except BadSample as error:
                place = store.image_location(shard_id)
                yield fault("store", f"{place}: {store.name(shard_id, row)[1]}: {error}", "beit verify tells all of it")
                return
            tried += 1
    yield well("store", f"{count(tried, 'sample')} read and rendered as tokenised; beit verify reads all")


def _tokenizer(info: StoreInfo) -> Iterator[Finding]:
    """Yield whether pictures and audits find the tokenizer."""
    if info.tokenizer is None:
        return
    from beit.common.tokenizer import load_store_tokenizer

    try:
        load_store_tokenizer(info.tokenizer)
    except InputError as error:
        found = refused("store", error)
        yield warning("store", f"training goes on without it, pictures and audits do not: {found.what}", found.mend)
        return
    yield well("store", f"its tokenizer, {info.tokenizer.name}, is here")
