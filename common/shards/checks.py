"""Is a store, as it is found before a training, the one that was tokenised? What a look at every file can tell.

Reading terabytes at every start is no option: sizes, times and a few bytes are looked at here, every checksum by
`beit verify`, and every view that is used by its own checksum (`common/views.py`).
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from beit.common.errors import BadSample, InputError, require
from beit.common.shards.token_store import TokenStore, image_range
from beit.common.storage.files import sha256_of
from beit.common.storage.paths import is_remote
from beit.common.storage.place import ByteRange, place_of, read_ranges
from beit.common.storage.tar_walk import BLOCK_BYTES, walk_tar

logger = logging.getLogger(__name__)

_THREADS = 8
_REMOTE_THREADS = 32  # a request each, nearly all of it waiting
_CHECKED_HEADERS = 3
_CHECKED_SHARDS = 16
_LONGEST_PLAIN_NAME = 80
"""Characters of a key that surely stand, with a suffix, in the 100 bytes of a plain header."""
_FEW_BYTES = 4 << 30
"""Of a touched tar that is hashed: some seconds, in threads; arbitrary."""
_CHANGED = "changed after it was tokenised"
_WAY_OUT = "restore it, or tokenise it into a new store"


def check_files(store: TokenStore) -> None:
    """Check that image and token tars are there and are those of the index."""
    if store.info.views:
        _for_every_shard(store, _check_token_tar)
    check_image_tars(store)


def check_image_tars(store: TokenStore) -> None:
    """Check that every image tar is the one that was tokenised: its size, and its headers where it was touched.

    Of a remote tar that was touched, or copied, a few headers are looked at instead of all.
    """
    _for_every_shard(store, _check_image_tar)


def check_vocabulary(store: TokenStore) -> None:
    """Check the tokens of a few samples, spread over the shards, against the vocabulary that store.json states."""
    num_shards = len(store.shards)
    chosen = sorted(set(np.linspace(0, num_shards - 1, min(num_shards, _CHECKED_SHARDS)).astype(int).tolist()))
    store.load_tables(chosen)
    for shard_id in chosen:
        if len(store.samples(shard_id)):
            try:
                store.read_token_ids(shard_id, 0)
            except BadSample as error:
                raise InputError(f"{error.detail}; the store is damaged, or its store.json another store's") from None


def _for_every_shard(store: TokenStore, check: Callable[[TokenStore, int], None]) -> None:
    with ThreadPoolExecutor(_REMOTE_THREADS if store.is_remote else _THREADS) as pool:
        for _ in pool.map(lambda shard_id: check(store, shard_id), range(len(store.shards))):
            pass


def _check_token_tar(store: TokenStore, shard_id: int) -> None:
    expected, location = store.shards[shard_id].token_bytes, store.token_location(shard_id)
    found = place_of(location).stat().size
    require(
        found == expected,
        f"{location} has {found} bytes, {expected} when it was written; restore it, or run beit tokenize again",
    )


def _check_image_tar(store: TokenStore, shard_id: int) -> None:
    row, location = store.shards[shard_id], store.image_location(shard_id)
    found = place_of(location).stat()
    require(
        found.size == row.image_bytes,
        f"{location} {_CHANGED} ({row.image_bytes} bytes then, {found.size} now); {_WAY_OUT}",
    )
    if row.image_stamp in ("", found.version):
        return
    if is_remote(location):
        _check_some_headers(store, shard_id)
        return
    is_hashed = bool(row.image_sha256) and not store.info.views and row.image_bytes <= _FEW_BYTES
    part = "bytes" if is_hashed else "headers"
    logger.info("%s was touched after it was tokenised; checking its %s", location, part)
    with place_of(location).open() as file:
        if is_hashed:  # no view has a checksum that would find another image in the place of one
            require(sha256_of(file) == row.image_sha256, f"{location} {_CHANGED} (other bytes, same size); {_WAY_OUT}")
            return
        digest = walk_tar(file, label=location).header_sha256
    require(digest == row.image_header_sha256, f"{location} {_CHANGED} (other members, same size); {_WAY_OUT}")


def _check_some_headers(store: TokenStore, shard_id: int) -> None:
    """Check that a remote tar has the images of a few samples where the sample table says.

    All headers would be a request per image, or the whole tar; the checksum of every view finds the rest in use.
    """
    location, table = store.image_location(shard_id), store.read_table(shard_id)
    rows = sorted(set(np.linspace(0, len(table) - 1, _CHECKED_HEADERS).astype(int).tolist())) if len(table) else []
    places = [image_range(table, row) for row in rows]
    blocks = read_ranges([ByteRange(location, offset - BLOCK_BYTES, offset) for offset, _ in places])
    for row, (_, length), block in zip(rows, places, blocks, strict=True):
        key = str(table.key[row])
        require(
            _is_header_of(block, key, length),
            f"{location} {_CHANGED} (no image of {key!r} where it was, same size); {_WAY_OUT}",
        )


def _is_header_of(block: bytes, key: str, size: int) -> bool:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    # A long or foreign name stands in a record before this block, and only its beginning in here.
    is_plain = key.isascii() and len(key) < _LONGEST_PLAIN_NAME
    return header.size == size and (not is_plain or header.name.startswith(f"{key}."))
