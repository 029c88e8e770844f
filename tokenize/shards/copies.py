"""Remote image tars as temporary local files: each is fetched once, front to back, the next one in advance.

Walking a tar, reading its labels and decoding its images in several threads would read a remote tar three times, in
small pieces. So it is copied first, in large pieces, several at a time, to a file without a name, which is gone when it
is closed or the process is killed. Needs room for two image tars per rank. Local tars are opened where they are.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar, cast

from beit.common.errors import InputError
from beit.common.sources.tars import TarCopy, TarShard
from beit.common.storage.paths import is_remote
from beit.common.storage.place import place_of
from beit.common.storage.threads import threads
from beit.tokenize.shards.crops import CropTar

Tar = TypeVar("Tar", bound=TarShard | CropTar)

_POLL_SECONDS = 0.5


class TarCopies:
    """Fetches remote image tars.

    Args:
        folder: For the temporary files; has room for two tars.
        check_stop: Called while waiting; raises to give up.
    """

    def __init__(self, folder: Path, check_stop: Callable[[], None]) -> None:
        self._folder = folder
        self._check_stop = check_stop
        self._fetched: dict[str, Future[TarCopy]] = {}
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what is being fetched."""
        self._is_closed = True
        self._forget()

    @contextmanager
    def at_hand(self, tar: Tar, following: TarShard | CropTar | None = None) -> Iterator[Tar]:
        """Give a tar with its copy at hand, waiting until all of it is here; a local one is where it is.

        Args:
            tar: To read now.
            following: The one that is likely next, which is fetched meanwhile.
        Raises:
            OSError: it cannot be read, or there is no room for it.
        """
        if not is_remote(tar.location):
            yield tar
            return
        self._begin(tar.location)
        copy = self._wait_for(tar.location)
        with copy.file:
            self._forget()  # what was fetched in advance and then done by another rank
            if following is not None and is_remote(following.location):
                self._begin(following.location)
            yield replace(tar, copy=copy)

    def _begin(self, location: str) -> None:
        if location not in self._fetched:
            self._fetched[location] = threads().submit(self._fetch, location)

    def _forget(self) -> None:
        """Close what has been fetched, now or when it is."""
        while self._fetched:
            _, future = self._fetched.popitem()
            if not future.cancel():
                future.add_done_callback(_close)

    def _wait_for(self, location: str) -> TarCopy:
        future = self._fetched[location]
        while not future.done():
            self._check_stop()
            wait([future], timeout=_POLL_SECONDS)
        del self._fetched[location]
        return future.result()

    def _fetch(self, location: str) -> TarCopy:
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder))
        try:
            hasher = hashlib.sha256()
            for piece in place_of(location).pieces():
                if self._is_closed:
                    raise InputError(f"{location} is not wanted any more")  # nobody sees it: the run is ending
                hasher.update(piece)
                file.write(piece)
            file.flush()
        except BaseException as error:
            file.close()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                error.filename = str(self._folder)  # "no space left" alone does not tell where
            raise
        return TarCopy(file, hasher.hexdigest())


def _close(future: Future[TarCopy]) -> None:
    if future.exception() is None:
        future.result().file.close()
