"""Reading a token store: settings, shard table, samples on demand, and single records by (shard, row, view).

    >>> store = open_store("store/")
    >>> store[0]["image"], store[0]["token_ids"].shape
    (<PIL.Image.Image ...>, (16, 14, 14))

Here: everything that turns the files of a store into arrays and bytes. Not here: the order samples are read in
(`sampler.py`), rendering a view (`views.py`), writing (`beit.tokenize`). Every byte is described in
docs/store-format.md.

K views per image, g tokens per side.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, InputError, require
from beit.common.images import decode_image
from beit.common.locations import is_remote, match_files, normalise, open_binary
from beit.common.sample_table import NO_LABEL, SampleTable, decode_index, decode_samples
from beit.common.shard_io import FilePool, location_exists, read_whole, resolve_location
from beit.common.store_schema import (
    INDEX_FILE,
    STORE_FILE,
    TOKENS_DIR,
    ShardRow,
    StoreInfo,
    from_json,
    index_digest,
)
from beit.common.table_checks import check_sample_table
from beit.common.tar_walk import walk_tar
from beit.common.views import VIEW_DTYPE

logger = logging.getLogger(__name__)

_CACHED_TABLES = 128
"""Sample tables kept in memory, about 150 kB each; four sampling windows of 32 shards."""
_CHECK_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRecord:
    """One sample under one view, as stored."""

    key: str
    """Unique in its shard."""
    image_bytes: bytes
    """Encoded image; in a materialised store, the crop of this view."""
    token_ids: NDArray[np.uint16] | None
    """Visual token ids (g, g) of the view; None when the store has no tokens."""
    view: np.void | None
    """`VIEW_DTYPE` record; None when the store has no tokens."""
    label: int | None
    """Class id, if known."""


class TokenStore:
    """A finished token store. Sized, iterable and indexable; pickles small, so workers may hold it.

    Args:
        location: Folder or URL of the store.
        info: Its settings.
        shards: Its shard table.
    """

    def __init__(self, location: str, info: StoreInfo, shards: list[ShardRow]) -> None:
        self.location = location
        self.info = info
        self.shards = shards
        self.index_sha256 = index_digest(shards, info.held_out)
        """Identity of samples and tokens; equal for copies of a store."""
        self._image_root = resolve_location(location, info.image_root)
        self._ends = np.cumsum([row.num_samples for row in shards])
        self._files = FilePool()
        self._tables: OrderedDict[int, SampleTable] = OrderedDict()

    def __reduce__(self) -> tuple[type[TokenStore], tuple[str, StoreInfo, list[ShardRow]]]:
        """Leave open files and cached tables behind."""
        return type(self), (self.location, self.info, self.shards)

    def __repr__(self) -> str:
        """Show where and how much."""
        return f"TokenStore({self.location!r}, samples={len(self)}, shards={len(self.shards)}, views={self.info.views})"

    def __len__(self) -> int:
        """Return the number of usable samples, held-out ones included."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample `index` in store order.

        Returns:
            key (str), image (PIL, RGB), token_ids (K, g, g) uint16, views (K,) of `VIEW_DTYPE`, label (int or None). A
            materialised store has no image; there `image` is the crop of view 0, and `crops` (list) those of all views.
        Raises:
            IndexError: there is no such sample.
            BadSample: the image or its tokens are damaged.
        """
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} in a store of {len(self)} samples")
        shard_id = int(np.searchsorted(self._ends, position, side="right"))
        row = position - int(self._ends[shard_id]) + self.shards[shard_id].num_samples
        table = self.samples(shard_id)
        views = range(self.info.views if self.info.is_materialized else 1)
        images = [decode_image(self.read_image(shard_id, row, view_k)) for view_k in views]
        sample = {
            "key": table.key[row],
            "image": images[0],
            "token_ids": self.read_token_ids(shard_id, row),
            "views": self.read_views(shard_id, row),
            "label": _label(table, row),
        }
        return sample | ({"crops": images} if self.info.is_materialized else {})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield every sample in store order."""
        return (self[index] for index in range(len(self)))

    def samples(self, shard_id: int) -> SampleTable:
        """Return the sample table of a shard; the last used ones stay in memory.

        Raises:
            InputError: the table is missing or is not the one that was indexed.
        """
        if shard_id in self._tables:
            self._tables.move_to_end(shard_id)
            return self._tables[shard_id]
        row = self.shards[shard_id]
        location = resolve_location(self.location, f"{TOKENS_DIR}/{row.stem}.samples.parquet")
        data = read_whole(location)
        if hashlib.sha256(data).hexdigest() != row.samples_sha256:
            raise InputError(f"{location} is not the file that {INDEX_FILE} names; run beit tokenize again to mend it")
        table = decode_samples(data, label=location)
        check_sample_table(table, row, self.info, label=location)
        self._tables[shard_id] = table
        if len(self._tables) > _CACHED_TABLES:
            self._tables.popitem(last=False)
        return table

    def image_location(self, shard_id: int) -> str:
        """Return path or URL of a shard's image tar."""
        return resolve_location(self._image_root, self.shards[shard_id].image_file)

    def token_location(self, shard_id: int) -> str:
        """Return path or URL of a shard's token tar."""
        return resolve_location(self.location, f"{TOKENS_DIR}/{self.shards[shard_id].token_file}")

    def read_image(self, shard_id: int, row: int, view_k: int = 0) -> bytes:
        """Return the encoded image of a sample: in a materialised store the crop of view `view_k`."""
        offset, length = self.samples(shard_id).image_range(row, view_k)
        return self._files.read(self.image_location(shard_id), offset, length)

    def read_token_ids(self, shard_id: int, row: int, view_k: int | None = None) -> NDArray[np.uint16]:
        """Return the token ids of all views, (K, g, g), or of one, (g, g); only the bytes asked for are read.

        Raises:
            BadSample: an id lies outside the vocabulary (reason "token-ids").
        """
        table, grid_size = self.samples(shard_id), self.info.grid_size
        data = self._read_member(shard_id, int(table.tok_off[row]), int(table.tok_len[row]), view_k)
        token_ids = np.frombuffer(data, dtype="<u2").astype(np.uint16).reshape(-1, grid_size, grid_size)
        vocab_size = self.info.tokenizer.vocab_size if self.info.tokenizer else 0
        if token_ids.size and int(token_ids.max()) >= vocab_size:
            raise BadSample(
                "token-ids",
                f"{self.token_location(shard_id)}: {table.key[row]!r} has token id {int(token_ids.max())}, "
                f"the vocabulary has {vocab_size}",
            )
        return token_ids if view_k is None else token_ids[0]

    def read_views(self, shard_id: int, row: int) -> np.ndarray[Any, np.dtype[np.void]]:
        """Return the views of a sample, (K,) of `VIEW_DTYPE`."""
        table = self.samples(shard_id)
        data = self._read_member(shard_id, int(table.view_off[row]), int(table.view_len[row]), None)
        return np.frombuffer(data, dtype=VIEW_DTYPE).copy()

    def read_record(self, shard_id: int, row: int, view_k: int) -> StoreRecord:
        """Read one sample under one view.

        Args:
            shard_id: Row of the shard table.
            row: Row of the shard's sample table.
            view_k: Which of the K views; ignored when the store has none.
        Raises:
            BadSample: the tokens are damaged.
            InputError: a file is missing or shorter than it was.
        """
        table, token_ids, view = self.samples(shard_id), None, None
        if self.info.views:
            token_ids = self.read_token_ids(shard_id, row, view_k)
            data = self._read_member(shard_id, int(table.view_off[row]), int(table.view_len[row]), view_k)
            view = np.frombuffer(data, dtype=VIEW_DTYPE)[0]
        return StoreRecord(
            key=table.key[row],
            image_bytes=self.read_image(shard_id, row, view_k),
            token_ids=token_ids,
            view=view,
            label=_label(table, row),
        )

    def check_images(self) -> None:
        """Check that every image tar is the one that was tokenised: its size, and its headers where it was touched.

        Raises:
            InputError: a tar is missing or has changed; names it.
        """
        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            for _ in pool.map(self._check_image_tar, range(len(self.shards))):
                pass

    def _read_member(self, shard_id: int, offset: int, length: int, view_k: int | None) -> bytes:
        if not self.info.views:
            return b""
        if view_k is not None:
            length //= self.info.views
            offset += view_k * length
        return self._files.read(self.token_location(shard_id), offset, length)

    def _check_image_tar(self, shard_id: int) -> None:
        row, location = self.shards[shard_id], self.image_location(shard_id)
        found = match_files(location)[0]
        changed = f"{location} changed after it was tokenised"
        way_out = "restore it, or tokenise it into a new store"
        require(found.size == row.image_bytes, f"{changed} ({row.image_bytes} bytes then, {found.size} now); {way_out}")
        if row.image_stamp in ("", found.version):
            return
        logger.info("%s was touched after it was tokenised; checking its headers", location)
        with open_binary(location) as file:
            digest = walk_tar(file, label=location).header_sha256
        require(digest == row.image_header_sha256, f"{changed} (other members, same size); {way_out}")


def open_store(path: str | Path, *, check_images: bool = True) -> TokenStore:
    """Open a finished token store for reading.

    Args:
        path: Folder or URL.
        check_images: Also check that the image tars are there and unchanged, by size and time. Loader workers, which
            receive a checked store, do not come here.
    Returns:
        The store; nothing but settings and shard table is read yet.
    Raises:
        InputError: not a store, a store of another format version, an unfinished one, or image tars that changed.
    """
    # Links are resolved first: image_root is relative to where the store really lies.
    location = str(path) if is_remote(str(path)) else os.path.realpath(normalise(str(path)))
    info = read_store_info(location)
    require(
        info.held_out.threshold is not None and location_exists(resolve_location(location, INDEX_FILE)),
        f"{path} is unfinished: it has no {INDEX_FILE}; run beit tokenize again to finish it",
    )
    index_location = resolve_location(location, INDEX_FILE)
    shards = decode_index(read_whole(index_location), label=index_location)
    require(
        len(shards) == info.source.num_shards,
        f"{index_location} has {len(shards)} shards, {STORE_FILE} says {info.source.num_shards}; "
        "run beit tokenize again to mend it",
    )
    store = TokenStore(location, info, shards)
    if check_images:
        store.check_images()
    return store


def read_store_info(location: str) -> StoreInfo:
    """Read store.json of a finished or unfinished store.

    Raises:
        InputError: there is none, or it is malformed or of another version.
    """
    path = resolve_location(location, STORE_FILE)
    if not location_exists(path):
        raise InputError(f"{location} is not a token store: it has no {STORE_FILE}; make one with beit tokenize")
    try:
        document = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8, and of numbers with 5000 digits
        raise InputError(f"{path} is not valid JSON ({error}); restore it or tokenise into a new folder") from None
    return from_json(StoreInfo, path, document)


def _label(table: SampleTable, row: int) -> int | None:
    label = int(table.label[row])
    return None if label == NO_LABEL else label
