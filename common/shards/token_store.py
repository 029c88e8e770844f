"""A token store in memory: samples by position, with their views, grids and image bytes.

Not here: opening one (`common/store.py`), checking what was found (`checks.py`).
"""

from __future__ import annotations

import hashlib
import operator
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.shards.ahead import RemoteShards, ShardRange
from beit.common.shards.cache import DamagedShard, RemoteShard, ShardCache
from beit.common.shards.file_pool import FilePool
from beit.common.shards.schema import INDEX_FILE, TOKENS_DIR, ShardRow, StoreInfo, index_digest
from beit.common.shards.tables import SampleTable, ShardTable, check_sample_table, decode_samples
from beit.common.storage.paths import is_remote, resolve_location, resolve_reference
from beit.common.storage.place import place_of, read_files
from beit.common.storage.samples import NO_LABEL, Record, locate, shard_starts
from beit.common.views import VIEW_DTYPE

_CACHED_TABLES = 128
"""Sample tables kept in memory, about 150 kB each; four sampling windows of 32 shards."""
_LEFT_BEHIND = ("_files", "_remote", "_tables", "_max_tables", "_expected", "_hashed")
Part = Literal["image", "token_ids", "views"]
"""Of a sample; an image lies in the image tar, the others in the token tar."""


class _OpenShard(NamedTuple):
    """What every read of a shard needs, found once."""

    stem: str
    table: SampleTable
    files: dict[Part, str | RemoteShard]
    """Path where the tar lies on this machine, else where and how it is fetched."""


class TokenStore:
    """A finished token store. Sized, iterable and indexable; pickles small, so workers may hold it.

    Args:
        location: Folder or URL of the store.
        info: Its settings.
        shards: Its shard table.
    """

    def __init__(self, location: str, info: StoreInfo, shards: Iterable[ShardRow]) -> None:
        self.location = location
        self.info = info
        self.shards = shards if isinstance(shards, ShardTable) else ShardTable.from_rows(shards)
        self.index_sha256 = index_digest(self.shards, info.held_out)
        """Identity of samples and tokens; equal for copies of a store."""
        self._image_root = resolve_reference(location, info.image_root)
        self._starts = shard_starts(self.shards.num_samples)
        self.cache: ShardCache | None = None
        """Where whole shards of a remote store are kept; None reads every sample from the server."""
        self._start_empty()

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files and cached tables behind."""
        return {name: value for name, value in self.__dict__.items() if name not in _LEFT_BEHIND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with no file open."""
        self.__dict__.update(state)
        self._start_empty()

    def _start_empty(self) -> None:
        self._files = FilePool()
        self._remote = RemoteShards(self.cache)
        self._tables: OrderedDict[int, _OpenShard] = OrderedDict()
        self._max_tables = _CACHED_TABLES
        self._expected: list[int] = []
        self._hashed: set[int] = set()

    def __repr__(self) -> str:
        return f"TokenStore({self.location!r}, samples={len(self)}, shards={len(self.shards)}, views={self.info.views})"

    def __len__(self) -> int:
        """Return the number of usable samples, held-out ones included."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample `index` in store order.

        Returns:
            key (str), image (PIL, RGB), token_ids (K, g, g) uint16, views (K,) of `VIEW_DTYPE`, label (int or None). A
            materialised store has no image; there `image` is the crop of view 0, and `crops` (list) those of all views.
        Raises:
            IndexError: there is no such sample.
            BadSample: the image or its tokens are damaged.
        """
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(f"a sample's position is a whole number, got {index!r}; take several one by one") from None
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} in a store of {len(self)} samples")
        shard_id, row = self.locate(position)
        table = self.samples(shard_id)
        views = range(self.info.views if self.info.is_materialized else 1)
        images = [decode_image(self.read_image(shard_id, row, view_k), self.info.decoding) for view_k in views]
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

    def locate(self, position: int) -> tuple[int, int]:
        """Return shard and row, in the shard's sample table, of the sample at a position in store order."""
        return locate(self._starts, position)

    @property
    def is_remote(self) -> bool:
        """Whether tokens or images come from a server."""
        return is_remote(self.location) or is_remote(self._image_root)

    @property
    def has_token_sums(self) -> bool:
        """Whether tokens are checked as they are read, by the first shard; earlier versions wrote no checksums."""
        return self.samples(0).token_sums is not None

    def shard_sizes(self, *, held_out: bool) -> NDArray[np.int64]:
        """Return the samples of every shard that are held out, or those that are not, int64 (S,)."""
        held = self.shards.num_held_out
        return held if held_out else self.shards.num_samples - held

    def use_cache(self, cache: ShardCache) -> None:
        """Keep whole shards of a remote store on a local disk; `expect_shards` says which."""
        self.cache = cache
        self._remote.close()
        self._remote = RemoteShards(cache)

    def samples(self, shard_id: int) -> SampleTable:
        """Return the sample table of a shard; the last used ones stay in memory."""
        return self._open(shard_id).table

    def name(self, shard_id: int, row: int) -> tuple[str, str]:
        """Return the stem of a sample's shard and its key, which together name it."""
        shard = self._open(shard_id)
        return shard.stem, shard.table.key[row]

    def read_table(self, shard_id: int) -> SampleTable:
        """Read a sample table without keeping it; unlike everything else here, from any thread."""
        return self._decode_table(shard_id, place_of(self._table_location(shard_id)).read())

    def load_tables(self, shard_ids: Iterable[int]) -> None:
        """Have the sample tables of several shards at hand; those of a remote store come in one go."""
        missing = [shard_id for shard_id in shard_ids if shard_id not in self._tables]
        if not missing or not is_remote(self.location):
            return
        self._max_tables = max(self._max_tables, len(missing))
        contents = read_files([self._table_location(shard_id) for shard_id in missing])
        for shard_id, data in zip(missing, contents, strict=True):
            self._keep_table(shard_id, self._decode_table(shard_id, data))

    def expect_shards(self, shard_ids: Sequence[int]) -> None:
        """Take note of the shards that are read now and next, the most urgent first; the others are let go of.

        With a cache, those of a remote store are fetched into it in the background. Of a local store, the operating
        system is asked to have the token tars in memory; image tars may be larger than it. A token tar of a store
        without checksums for its views is hashed once, when its shard is first read from.
        """
        if shard_ids == self._expected:
            return
        new = set(shard_ids) - set(self._expected)
        self._expected = list(shard_ids)
        self._max_tables = max(_CACHED_TABLES, len(shard_ids))
        shards = []
        parts: tuple[Part, ...] = ("token_ids", "image") if self.info.views else ("image",)
        for shard_id in shard_ids:
            for part in parts:
                file = self._file(part, shard_id)
                if isinstance(file, RemoteShard):
                    shards.append(file)
                elif part == "token_ids" and shard_id in new:
                    self._files.advise(file)
        self._remote.expect(shards)

    def read_ahead(self, samples: Iterable[tuple[int, int, int]], *, tokens_only: bool = False) -> None:
        """Fetch what is remote of samples that are read next, in one go.

        Args:
            samples: Shard, row and view of each.
            tokens_only: Neither their images nor the records of their views.
        """
        parts: tuple[Part, ...] = ("token_ids",) if tokens_only else ("image", "token_ids", "views")
        if not self.info.views:
            parts = parts[:0] if tokens_only else parts[:1]
        ranges = []
        for shard_id, row, view_k in samples:
            shard = self._open(shard_id)
            for part in parts:
                file = shard.files[part]
                if isinstance(file, RemoteShard):
                    ranges.append(ShardRange(file, *self._range(part, shard.table, row, view_k)))
        self._remote.read_ahead(ranges)

    def image_location(self, shard_id: int) -> str:
        """Return path or URL of a shard's image tar."""
        return resolve_location(self._image_root, self.shards[shard_id].image_file)

    def token_location(self, shard_id: int) -> str:
        """Return path or URL of a shard's token tar."""
        return resolve_location(self.location, f"{TOKENS_DIR}/{self.shards[shard_id].token_file}")

    def read_image(self, shard_id: int, row: int, view_k: int = 0) -> bytes:
        """Return the encoded image of a sample: in a materialised store the crop of view `view_k`."""
        return self._read("image", shard_id, row, view_k)

    def read_token_ids(self, shard_id: int, row: int, view_k: int | None = None) -> NDArray[np.uint16]:
        """Return the token ids of all views, (K, g, g), or of one, (g, g); only the bytes asked for are read.

        Raises:
            BadSample: an id lies outside the vocabulary (reason "token-ids").
        """
        table, grid_size = self.samples(shard_id), self.info.grid_size
        data = self._read("token_ids", shard_id, row, view_k)
        token_ids = np.frombuffer(data, dtype="<u2").astype(np.uint16).reshape(-1, grid_size, grid_size)
        vocab_size = self.info.tokenizer.vocab_size if self.info.tokenizer else 0
        if token_ids.size and int(token_ids.max()) >= vocab_size:
            raise BadSample(
                "token-ids",
                f"{self.token_location(shard_id)}: {table.key[row]!r} has token id {int(token_ids.max())}, "
                f"the vocabulary has {vocab_size}",
            )
        self._prove("token_ids", shard_id, row, view_k, data)
        return token_ids if view_k is None else token_ids[0]

    def read_views(self, shard_id: int, row: int) -> np.ndarray[Any, np.dtype[np.void]]:
        """Return the views of a sample, (K,) of `VIEW_DTYPE`."""
        return self._read_views(shard_id, row, None).copy()

    def read_record(self, shard_id: int, row: int, view_k: int) -> Record:
        """Read one sample under one view, as for the epoch of that number.

        Args:
            shard_id: Row of the shard table.
            row: Row of the shard's sample table.
            view_k: Which of the K views; ignored when the store has none.
        Raises:
            BadSample: the tokens are damaged.
        """
        shard, token_ids, view = self._open(shard_id), None, None
        if self.info.views:
            token_ids = self.read_token_ids(shard_id, row, view_k)
            view = self._read_views(shard_id, row, view_k)[0]
        return Record(
            key=shard.table.key[row],
            shard=shard.stem,
            epoch=view_k,
            view_index=view_k,
            image_bytes=self.read_image(shard_id, row, view_k),
            token_ids=token_ids,
            view=view,
            label=_label(shard.table, row),
            decoding=self.info.decoding,
        )

    def _open(self, shard_id: int) -> _OpenShard:
        if shard_id not in self._tables:
            self._keep_table(shard_id, self.read_table(shard_id))
        self._tables.move_to_end(shard_id)
        return self._tables[shard_id]

    def _table_location(self, shard_id: int) -> str:
        return resolve_location(self.location, f"{TOKENS_DIR}/{self.shards[shard_id].stem}.samples.parquet")

    def _file(self, part: Part, shard_id: int) -> str | RemoteShard:
        row = self.shards[shard_id]
        if part == "image":
            location = self.image_location(shard_id)
            remote = RemoteShard(location, row.image_bytes, row.image_sha256, row.image_header_sha256)
        else:
            location = self.token_location(shard_id)
            remote = RemoteShard(location, row.token_bytes, row.token_sha256)
        return remote if is_remote(location) else location

    def _range(self, part: Part, table: SampleTable, row: int, view_k: int | None) -> tuple[int, int]:
        """Return offset and length in the tar of what a sample has for one of the K views, or for all of them."""
        if part == "image":
            return image_range(table, row, view_k or 0)
        offsets, lengths = (table.tok_off, table.tok_len) if part == "token_ids" else (table.view_off, table.view_len)
        offset, length = int(offsets[row]), int(lengths[row])
        if view_k is None:
            return offset, length
        length //= self.info.views
        return offset + view_k * length, length

    def _read(self, part: Part, shard_id: int, row: int, view_k: int | None) -> bytes:
        if part != "image" and not self.info.views:
            return b""
        shard = self._open(shard_id)
        file, (offset, length) = shard.files[part], self._range(part, shard.table, row, view_k)
        if isinstance(file, RemoteShard):
            return self._remote.read([ShardRange(file, offset, length)])[0]
        return self._files.read(file, offset, length)

    def _read_views(self, shard_id: int, row: int, view_k: int | None) -> np.ndarray[Any, np.dtype[np.void]]:
        data = self._read("views", shard_id, row, view_k)
        self._prove("views", shard_id, row, view_k, data)
        return np.frombuffer(data, dtype=VIEW_DTYPE)

    def _prove(self, part: Part, shard_id: int, row: int, view_k: int | None, data: bytes) -> None:
        """Check what was read of a token tar against the checksums of its views.

        Where the sample table has none, the whole tar is hashed, once, if it is here and in use now; of a remote one
        the cache does it.
        """
        shard = self._open(shard_id)
        sums = shard.table.token_sums
        if sums is None:
            self._prove_tar(shard_id, shard.files[part])
            return
        views = range(self.info.views) if view_k is None else (view_k,)
        size, column = len(data) // len(views), 0 if part == "token_ids" else 1
        for number, view in enumerate(views):
            if zlib.crc32(data[number * size : (number + 1) * size]) != sums[row, view, column]:
                self._refuse(shard_id, shard.table.key[row])

    def _prove_tar(self, shard_id: int, file: str | RemoteShard) -> None:
        if shard_id in self._hashed or isinstance(file, RemoteShard) or shard_id not in self._expected:
            return
        if self._token_sha256(shard_id) != self.shards[shard_id].token_sha256:
            self._refuse(shard_id)
        self._hashed.add(shard_id)

    def _token_sha256(self, shard_id: int) -> str:
        hasher = hashlib.sha256()
        for piece in place_of(self.token_location(shard_id)).pieces():
            hasher.update(piece)
        return hasher.hexdigest()

    def _refuse(self, shard_id: int, key: str | None = None) -> NoReturn:
        location, noticed = self.token_location(shard_id), "" if key is None else f" (noticed at {key!r})"
        if self._token_sha256(shard_id) != self.shards[shard_id].token_sha256:
            raise DamagedShard(
                f"{location} is damaged: its sha256 is not what the store's index says{noticed}; restore it, or run "
                "beit verify on the store"
            )
        raise DamagedShard(
            f"{location} arrived damaged{noticed}, although the tar itself is what it should be; look at memory, disk "
            "and network, and run the same command again"
        )

    def _keep_table(self, shard_id: int, table: SampleTable) -> None:
        image, tokens = self._file("image", shard_id), self._file("token_ids", shard_id)
        files: dict[Part, str | RemoteShard] = {"image": image, "token_ids": tokens, "views": tokens}
        self._tables[shard_id] = _OpenShard(self.shards[shard_id].stem, table, files)
        while len(self._tables) > self._max_tables:
            self._tables.popitem(last=False)

    def _decode_table(self, shard_id: int, data: bytes) -> SampleTable:
        row, location = self.shards[shard_id], self._table_location(shard_id)
        if hashlib.sha256(data).hexdigest() != row.samples_sha256:
            raise InputError(f"{location} is not the file that {INDEX_FILE} names; run beit tokenize again to mend it")
        table = decode_samples(data, label=location)
        check_sample_table(table, row, self.info, label=location)
        return table


def image_range(table: SampleTable, row: int, view_k: int = 0) -> tuple[int, int]:
    """Return offset and length, in its tar, of the encoded image that a view is rendered from."""
    if table.img_off.ndim == 1:
        return int(table.img_off[row]), int(table.img_len[row])
    return int(table.img_off[row, view_k]), int(table.img_len[row, view_k])


def _label(table: SampleTable, row: int) -> int | None:
    label = int(table.label[row])
    return None if label == NO_LABEL else label
