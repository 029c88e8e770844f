"""Leases: which process is at work on which shard, or on which step that is done once, of a store.

A lease is a small file in the store, created exclusively, whose content its holder changes every few seconds. A holder
that died on this machine is known at once; of one on another machine, it is known when its lease has stood still for a
minute of the observer's own clock, so clocks need not agree. Advisory locks (flock, fcntl) are not used: they are
missing, or mean nothing between machines, on some network file systems.

Leases save work; correctness does not hang on them. If a process that was suspended loses its lease and wakes up again,
two processes write one shard: under different temporary names, with equal bytes, each renamed, or put into an object
store, as a whole. The same holds for stores behind URLs that cannot create a file exclusively.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.config import config_from_dict
from beit.common.errors import InputError
from beit.common.processes.signals import is_alive
from beit.common.shards.schema import LEASE_PREFIX
from beit.common.storage.files import machine_id
from beit.common.storage.place import MissingFile, Place, RemoteError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""Between two signs of life. Arbitrary; a few small writes per minute and process cost a file server nothing."""
EXPIRY_SECONDS = 60.0
"""A lease that stood still that long has lost its holder. Arbitrary; far above what caches of NFS hide (30 s)."""

_AT_WORK = "work."
"""Before the random rest of a name that stands for no shard or step: its holder is at work on the store."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 5.0
_FILE_BYTES = 512  # of fixed length, so that a beat is one overwrite in place
_SAME_START_SECONDS = 10.0  # a process's start time moves when the clock is set


class LeaseLost(Exception):
    """Another process took the lease while this one was suspended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """What a lease file says of the process that holds it."""

    nonce: str
    """Random; tells this lease from every other."""
    machine: str
    """Boot and process namespace: where `pid` means something."""
    host: str
    """For people."""
    pid: int
    """Process id."""
    started: float
    """Start of the process, in seconds since 1970; tells it from a later one with the same id."""
    beat: int = 0
    """Changes with every sign of life."""

    def encode(self) -> bytes:
        """Return the content of the lease file."""
        return json.dumps(asdict(self)).encode().ljust(_FILE_BYTES)

    def is_dead(self) -> bool:
        """Tell whether this is known of the process for sure: it ran on this machine and is gone."""
        if self.machine != machine_id():
            return False
        if not is_alive(self.pid):
            return True
        with suppress(psutil.Error):
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > _SAME_START_SECONDS)
        return False


class Leases:
    """The leases of one process on one store; as a context manager, kept alive inside and given back at its end.

    Args:
        store: Where they are kept.
        raise_if_stopped: Called while waiting; raises if somebody asked to stop.
        beat_seconds: Between two signs of life.
        expiry_seconds: After which a lease without one may be taken.
    """

    def __init__(
        self,
        store: Place,
        raise_if_stopped: Callable[[], None] = lambda: None,
        *,
        beat_seconds: float = BEAT_SECONDS,
        expiry_seconds: float = EXPIRY_SECONDS,
    ) -> None:
        self._store = store
        self._raise_if_stopped = raise_if_stopped
        self._beat_seconds, self._expiry_seconds = beat_seconds, expiry_seconds
        self._held: dict[str, Holder] = {}
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="beit-leases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back whatever is still held."""
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def claim(self, name: str) -> bool:
        """Take the lease of a shard or step, unless a live process holds it; return whether it is held now."""
        holder = _this_process()
        content = holder.encode()
        if not self._create(name, content) and not self._take_if_dead(name, content):
            return False
        self._seen.pop(name, None)
        with self._lock:
            self._held[name] = holder
        return True

    def is_free(self, name: str) -> bool:
        """Tell whether no live process holds a lease."""
        content = self._read(name)
        return content is None or self._is_dead(name, content)

    def release(self, name: str) -> None:
        """Give a lease back, if it is held."""
        with self._lock:
            holder = self._held.pop(name, None)
            if holder is None:
                return
            try:
                if _nonce(self._read(name)) == holder.nonce:
                    self._lease(name).remove()
            except (RemoteError, InputError) as error:  # what the run came to is more important
                logger.warning("the lease of %s stays behind until it expires: %s", name, error)

    def require_held(self, name: str) -> None:
        """Check that a lease is still this process's, before something is committed under it.

        Raises:
            LeaseLost: it is another's.
        """
        holder = self._held[name]
        if _nonce(self._read(name)) != holder.nonce:
            raise LeaseLost(f"{name} was taken over by another process while this one stood still")

    def show_at_work(self) -> None:
        """Show others until the end that this process goes by the settings of the store as they are now."""
        self.claim(f"{_AT_WORK}{secrets.token_hex(8)}")

    def others_at_work(self) -> bool:
        """Tell whether another live process shows that; of one on another machine, it may take a minute to know."""
        names = [file.path.removeprefix(LEASE_PREFIX) for file in self._store.files()]
        return any(self._is_watched_alive(name) for name in names if name.startswith(_AT_WORK))

    def _is_watched_alive(self, name: str) -> bool:
        first = self._read(name)
        holder = _decode(first)
        if first is None or (holder is not None and holder.machine == machine_id()):
            return not self.is_free(name)
        self.wait_for(lambda: self._read(name) != first or self.is_free(name), [name])
        return not self.is_free(name)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Do a step that is done once for all processes; the others wait, and find it done."""
        self.wait_for(lambda: self.claim(name), [name])
        try:
            yield
        finally:
            self.release(name)

    def wait_for(self, condition: Callable[[], bool], names: list[str]) -> None:
        """Wait until `condition` holds, which depends on the holders of the leases `names`; say so if it takes long."""
        wait, started, told = _FIRST_WAIT_SECONDS, time.monotonic(), False
        while not condition():
            self._raise_if_stopped()
            if not told and time.monotonic() - started > _LONGEST_WAIT_SECONDS:
                told = True
                logger.info("waiting for %s", "; ".join(self._describe(name) for name in names[:3]))
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def sweep(self) -> None:
        """Remove what killed processes left, once all shards are committed and no lease on them means anything."""
        for file in self._store.files():
            name = file.path.removeprefix(LEASE_PREFIX)
            if name != file.path and name not in self._held:
                self._lease(name).remove()

    def _lease(self, name: str) -> Place:
        return self._store / f"{LEASE_PREFIX}{name}"

    def _read(self, name: str) -> bytes | None:
        try:
            return self._lease(name).read()
        except MissingFile:
            return None

    def _create(self, name: str, content: bytes) -> bool:
        # A storage without conditional requests: at least what was there before is seen, and who came last.
        return self._read(name) is None and self._lease(name).create(content) and self._read(name) == content

    def _take_if_dead(self, name: str, own: bytes) -> bool:
        """Take a lease whose holder is gone; False if it is not, or if another process was faster."""
        content = self._read(name)
        if content is None:
            return self._create(name, own)  # given back this moment
        if not self._is_dead(name, content):
            return False
        is_taken = self._lease(name).take(own, _is_of(_nonce(content)))
        if is_taken:
            logger.info("taking over %s from %s, which is gone", name, _who(content))
        return is_taken

    def _is_dead(self, name: str, content: bytes) -> bool:
        holder = _decode(content)
        if holder is not None and holder.is_dead():
            return True
        if name not in self._seen or self._seen[name][0] != content:
            self._seen[name] = (content, time.monotonic())
            return False
        return time.monotonic() - self._seen[name][1] > self._expiry_seconds

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            with self._lock:
                for name, holder in self._held.items():
                    self._held[name] = replace(holder, beat=holder.beat + 1)
                    with suppress(OSError, InputError):  # away for a moment; the next beat may reach the server
                        self._lease(name).replace(self._held[name].encode(), _is_of(holder.nonce))

    def _describe(self, name: str) -> str:
        content = self._read(name)
        return f"{name} ({_who(content)})" if content is not None else name


def _is_of(nonce: str | None) -> Callable[[bytes], bool]:
    return lambda content: _nonce(content) == nonce


def _decode(content: bytes | None) -> Holder | None:
    """Return what a lease says; None while it is being written, or if something else stands there."""
    try:
        return config_from_dict(Holder, json.loads(content or b""))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _nonce(content: bytes | None) -> str | None:
    holder = _decode(content)
    return holder.nonce if holder else None


def _who(content: bytes) -> str:
    holder = _decode(content)
    return f"process {holder.pid} on {holder.host}" if holder else "an unknown process"


def _this_process() -> Holder:
    return Holder(
        nonce=secrets.token_hex(16),
        machine=machine_id(),
        host=socket.gethostname(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
    )
