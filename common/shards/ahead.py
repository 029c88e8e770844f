"""Byte ranges of remote shards: from the cache where they are there, else from the server; a thread fills the cache.

Reading never waits for the cache: until a shard has arrived, its samples come as byte ranges. What can go wrong with
the cache costs speed only, except for one thing: a shard that is not what the store's index says stops the reading.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from beit.common.errors import InputError
from beit.common.shards.cache import DamagedShard, Fill, RemoteShard, ShardCache
from beit.common.shards.file_pool import pread
from beit.common.storage.place import ByteRange, RemoteError, read_ranges

logger = logging.getLogger(__name__)


class ShardRange(NamedTuple):
    """Bytes of a remote shard."""

    shard: RemoteShard
    offset: int
    length: int


class RemoteShards:
    """Reads of one thread; the thread that fills the cache is its own affair.

    Args:
        cache: Where shards are kept; None reads everything from the server.
    """

    def __init__(self, cache: ShardCache | None) -> None:
        self._cache = cache
        self._filler = _CacheFiller(cache) if cache is not None else None
        self._descriptors: dict[RemoteShard, int] = {}
        self._expected: tuple[RemoteShard, ...] = ()
        self._ahead: dict[ShardRange, bytes] = {}

    def __repr__(self) -> str:
        return f"RemoteShards(cache={self._cache!r}, open={len(self._descriptors)})"

    def __del__(self) -> None:
        """Let go of the shards in use."""
        self.close()

    def read(self, ranges: Sequence[ShardRange]) -> list[bytes]:
        """Return the content of each range; what has to come from the server is asked for together.

        Raises:
            DamagedShard: a shard is not what the store's index says.
        """
        found = {wanted: data for wanted in ranges if (data := self._at_hand(wanted)) is not None}
        missing = [wanted for wanted in dict.fromkeys(ranges) if wanted not in found]
        found.update(zip(missing, self._fetch(missing), strict=True))
        return [found[wanted] for wanted in ranges]

    def read_ahead(self, ranges: Iterable[ShardRange]) -> None:
        """Fetch what is not in the cache now, in one go, for reads that follow; replaces what was fetched before."""
        missing = [wanted for wanted in dict.fromkeys(ranges) if self._descriptor(wanted.shard) is None]
        self._ahead = dict(zip(missing, self._fetch(missing), strict=True))

    def expect(self, shards: Sequence[RemoteShard]) -> None:
        """Say which shards are in use or will be soon, the most urgent first; others are let go of."""
        if tuple(shards) == self._expected:
            return
        self._expected = tuple(shards)
        self._close_all_but(shards)
        if self._filler is not None:
            self._filler.want(shards)

    def close(self) -> None:
        """Close all files and stop filling the cache."""
        if self._filler is not None:
            self._filler.stop()
        self._close_all_but(())

    def _at_hand(self, wanted: ShardRange) -> bytes | None:
        if wanted in self._ahead:
            return self._ahead.pop(wanted)
        descriptor = self._descriptor(wanted.shard)
        data = None if descriptor is None else pread(descriptor, wanted.offset, wanted.length)
        return data if data is not None and len(data) == wanted.length else None  # the server has the last word

    def _descriptor(self, shard: RemoteShard) -> int | None:
        if self._filler is None or self._cache is None:
            return None
        self._filler.raise_failure(shard)
        if shard not in self._descriptors:
            descriptor = self._cache.open(shard)
            if descriptor is None:
                return None
            if shard not in self._expected:  # at most one is kept open: an evaluation passes through all of them
                self._close_all_but(self._expected)
            self._descriptors[shard] = descriptor
        return self._descriptors[shard]

    def _close_all_but(self, shards: Iterable[RemoteShard]) -> None:
        for shard in self._descriptors.keys() - set(shards):
            os.close(self._descriptors.pop(shard))

    def _fetch(self, ranges: Sequence[ShardRange]) -> list[bytes]:
        answers = read_ranges([ByteRange(r.shard.url, r.offset, r.offset + r.length) for r in ranges])
        for wanted, data in zip(ranges, answers, strict=True):
            if len(data) != wanted.length:
                raise InputError(
                    f"{wanted.shard.url} ends before byte {wanted.offset + wanted.length}, so it changed after it was "
                    "indexed; run beit verify on the store"
                )
        return answers


class _CacheFiller:
    """A thread that fetches shards in the order they are wanted. It starts with the first wish and ends with `stop`."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._changed = threading.Condition()
        self._pending: deque[RemoteShard] = deque()
        self._keep: frozenset[str] = frozenset()
        self._wanted_bytes = 0
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._has_warned = False
        self._damaged: dict[RemoteShard, DamagedShard] = {}
        self._failure: Exception | None = None

    def want(self, shards: Sequence[RemoteShard]) -> None:
        """Replace the list of shards to fetch."""
        with self._changed:
            self._pending = deque(shards)
            self._keep = frozenset(shard.cache_name for shard in shards)
            self._wanted_bytes = sum(shard.size for shard in shards)
            if self._thread is None and shards and not self._is_stopped:
                self._thread = threading.Thread(target=self._run, name="shard cache", daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the shard it is at."""
        with self._changed:
            self._is_stopped = True
            self._pending.clear()
            self._changed.notify()

    def raise_failure(self, shard: RemoteShard) -> None:
        """Raise what the thread found wrong with a shard, or with itself."""
        if self._failure is not None:
            raise RuntimeError("the thread that fills the shard cache failed") from self._failure
        if shard in self._damaged:
            raise self._damaged[shard]

    def _run(self) -> None:
        while (shard := self._next()) is not None:
            try:
                outcome = self._cache.fill(shard, keep=self._keep)
            except DamagedShard as error:
                self._damaged[shard] = error
            except (InputError, RemoteError) as error:
                logger.warning("%s; its samples are read one by one", error)
            except OSError as error:
                logger.warning(
                    "the shard cache in %s cannot be used (%s); reading without it", self._cache.folder, error
                )
                self.stop()
            except Exception as error:  # a bug: to be raised where it is seen
                self._failure = error
                self.stop()
            else:
                if outcome is Fill.NO_ROOM and not self._has_warned:
                    self._has_warned = True
                    logger.warning(
                        "the shard cache in %s is full: reader.cache_bytes is %d, the shards in use and the next ones "
                        "have %d bytes; samples of those that find no room are read one by one",
                        self._cache.folder,
                        self._cache.limit_bytes,
                        self._wanted_bytes,
                    )

    def _next(self) -> RemoteShard | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or bool(self._pending))
            return None if self._is_stopped else self._pending.popleft()
