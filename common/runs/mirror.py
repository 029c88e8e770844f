"""A copy of a run at another place, kept up to date in the background, so that a machine that vanishes loses nothing.

What is copied, to any folder or URL that can be written: committed checkpoints, each with its COMMIT.json last, and
before that settings, metrics and artifacts. Not TensorBoard's files, which metrics.jsonl can replace. Checkpoints that
the run no longer keeps are removed from the copy, too.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, require
from beit.common.runs.checkpoint import open_checkpoint, step_of, way_of
from beit.common.runs.commits import Way, committed_steps, read_way
from beit.common.runs.environment import RUN_PATH, STARTS, parse_environment, read_environment
from beit.common.runs.layout import (
    CHECKPOINTS,
    COMMIT,
    CONFIG,
    ENVIRONMENT,
    ORIGIN,
    PROFILE,
    RUN_ID,
    TENSORBOARD,
    WANDB,
)
from beit.common.storage.documents import json_bytes
from beit.common.storage.files import atomic_file, fault_point
from beit.common.storage.local_place import LocalPlace
from beit.common.storage.paths import is_remote, normalise
from beit.common.storage.place import MissingFile, copy_file, place_of, read_files

logger = logging.getLogger(__name__)
_OUTBOX = ".outgoing"
_LEFT_OUT = (TENSORBOARD, WANDB, PROFILE, CHECKPOINTS)
_GROWING = ".jsonl"
"""Ending of files that are appended to; all others are replaced, so that a link to them is a snapshot."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyState:
    """What is in the place of a copy."""

    names: list[str] = field(default_factory=list)
    """Relative names of its files."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Whose it is."""
    has_settings: bool = False
    """Whether there is a run, and not only the name of one that was about to begin."""


class RunMirror:
    """The copy of one run.

    Args:
        url: Folder or URL of the copy; nothing else may be in there.
    """

    def __init__(self, url: str) -> None:
        self.url = normalise(url)
        self._place = place_of(self.url)
        self._lock = threading.Condition()
        self._pending: Path | None = None
        self._is_busy = False
        self._thread: threading.Thread | None = None
        self._offers = 0
        self._sent: dict[str, tuple[int, int]] = {}
        self.failure: str | None = None
        """What went wrong with the newest copy; None while all is well."""

    def __repr__(self) -> str:
        return f"RunMirror({self.url!r})"

    # Reading

    def look(self, run: Path) -> CopyState:
        """Return what is in the place, and refuse it if that is not a copy of `run`, or of what `run` may become.

        Args:
            run: The run directory; may be missing or empty.
        """
        names = self._names()
        if not names:
            return CopyState()
        require(
            ENVIRONMENT in names,
            f"run.sync_to ({self.url}) is not empty and not a copy of a run; name a new or empty place",
        )
        theirs, mine = self._environment(), read_environment(run / ENVIRONMENT)
        here = way_of(run / CHECKPOINTS)
        there = self._way(names, here)
        is_known = bool(mine) or bool(here.identities.items() & there.identities.items()) or not here.identities
        if not is_known or (mine and mine.get(RUN_ID) != theirs.get(RUN_ID)):
            raise self._is_of_another(run, theirs)
        parted = here.parting(there)
        if parted is not None:
            raise InputError(
                f"run.sync_to ({self.url}) went another way than {run}, since step {parted}; name another place, or "
                f"delete the checkpoints after step {parted} of the one that is not to go on"
            )
        return CopyState(names=names, environment=theirs, has_settings=CONFIG in names)

    def is_further(self, run: Path, have: int) -> bool:
        """Tell whether the copy has something to go on from that `run` has not.

        Args:
            run: The run directory.
            have: Its newest intact checkpoint; -1 for none.
        """
        state = self.look(run)
        newest = max(_steps(state.names), default=-1)
        if newest >= 0 or (run / CONFIG).is_file():
            return newest > have
        # Settings alone: of this run before its first checkpoint, or of another one that is about to have one.
        starts = state.environment.get(STARTS, [])
        path = starts[-1].get(RUN_PATH) if starts else None
        if path not in (None, str(run.absolute())):
            raise self._is_of_another(run, state.environment)
        return True

    def fetch_settings(self, folder: Path) -> None:
        """Copy the settings of the run, and where it began, into a folder, to be looked at."""
        names = self._names()
        for name in (CONFIG, ORIGIN):
            if name in names:
                self._get(name, folder / name)

    def fetch(self, run: Path, *, step: int | None = None, have: int | None = None) -> None:
        """Bring `run` up to date where the copy is further than it; does nothing where it is not.

        Args:
            run: The run directory; may be missing or empty.
            step: Only this checkpoint will do; None takes the newest that is whole.
            have: Newest intact checkpoint of `run`; None takes the newest that is committed.
        Raises:
            InputError: the copy is of another run, holds something else, cannot be read, or is damaged.
            OSError: the files cannot be written.
        """
        names = self.look(run).names
        if have is None:
            have = max(committed_steps(run / CHECKPOINTS), default=-1)
        newer = [found for found in _steps(names) if found > have and step in (None, found)]
        if not newer and (run / CONFIG).is_file():
            return
        logger.info("%s is further than %s; copying it", self.url, run)
        others = [name for name in names if not name.startswith(f"{CHECKPOINTS}/")]
        for name in sorted(others, key=lambda name: name not in (CONFIG, ENVIRONMENT, ORIGIN)):
            self._get(name, run / name)
        for found in sorted(newer, reverse=True):
            if self._fetch_checkpoint(run / CHECKPOINTS, found, names):
                return
        if have < 0 and newer:
            raise InputError(f"{self.url} holds {len(newer)} checkpoints, none of them intact; start anew elsewhere")

    def newest_step(self) -> int:
        """Return the step of the newest committed checkpoint of the copy; -1 for none."""
        return max(_steps(self._names()), default=-1)

    def _environment(self) -> dict[str, Any]:
        place = self._place / ENVIRONMENT
        return parse_environment(place.read(), label=place.location)

    def _way(self, names: list[str], here: Way) -> Way:
        """Return the way that the copy tells, as far as it can be compared with that of the run."""
        steps = _steps(names)
        wanted = [step for step in steps if step in here.identities or step == max(steps)]
        records = [self._place / f"{CHECKPOINTS}/step_{step}/{COMMIT}" for step in wanted]
        found = dict(zip(wanted, read_files([record.location for record in records]), strict=True))
        return read_way(wanted, found.__getitem__)

    def _is_of_another(self, run: Path, theirs: Mapping[str, Any]) -> InputError:
        starts = theirs.get(STARTS) or [{}]
        known = f" ({starts[-1][RUN_PATH]})" if RUN_PATH in starts[-1] else ""
        return InputError(
            f"run.sync_to ({self.url}) is the copy of another run{known} than {run}; name a new or empty place"
        )

    def _fetch_checkpoint(self, root: Path, step: int, names: list[str]) -> bool:
        """Copy one checkpoint under a temporary name, verify and rename it; tell whether it was whole."""
        target = root / f"step_{step}"
        temporary = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        prefix = f"{CHECKPOINTS}/{target.name}/"
        for name in names:
            if name.startswith(prefix):
                self._get(name, temporary / name.removeprefix(prefix))
        try:
            open_checkpoint(temporary, step=step)
        except InputError as error:
            logger.warning("checkpoint of %s rejected: %s", self.url, error)
            shutil.rmtree(temporary, ignore_errors=True)
            return False
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        return True

    def _names(self) -> list[str]:
        """List the copy's files, relative to it."""
        return sorted(file.path for file in self._place.walk()) if self._place.is_folder() else []

    def _get(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            copy_file(self._place / name, file)

    # Writing

    def claim(self, environment: Mapping[str, Any]) -> None:
        """Make the place that of the run, or of this start of it, unless it is another run's.

        Args:
            environment: The run's environment.json, this start its last.
        """
        place, data = self._place / ENVIRONMENT, json_bytes(environment)
        try:
            if place.create(data):
                return
            before = place.read()
            theirs = parse_environment(before, label=place.location)
            if theirs.get(RUN_ID) != environment[RUN_ID]:
                raise self._is_of_another(Path(environment[STARTS][-1][RUN_PATH]), theirs)
            if isinstance(place, LocalPlace):
                place.write(data)
            elif not place.replace(data, lambda found: found == before):
                raise InputError(f"run.sync_to ({self.url}): another process begins there now; run the command again")
        except (OSError, NotImplementedError) as error:
            raise self._unwritable(error) from None

    def announce(self, run: Path) -> None:
        """Write the run's settings, so that a machine that has nothing can go on."""
        try:
            for name in (ORIGIN, CONFIG):
                if (run / name).is_file():
                    self._put(run / name, name)
        except (OSError, NotImplementedError) as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())
        return InputError(f"run.sync_to ({self.url}) cannot be written ({reason}); check the credentials")

    def set_later_aside(self, step: int) -> None:
        """Take away the records of checkpoints beyond `step`, the newest first, so that nobody goes on from there."""
        for later in sorted(_steps(self._names()), reverse=True):
            if later > step:
                fault_point("aside")
                self._remove(f"{CHECKPOINTS}/step_{later}/{COMMIT}")

    def offer(self, run: Path, step: int) -> None:
        """Copy the checkpoint of `step` and what belongs to it, in the background; an older one not begun is dropped.

        Raises:
            OSError: there is no room for the links to what is to be copied.
        """
        if self._thread is None:
            shutil.rmtree(run / _OUTBOX, ignore_errors=True)  # of a killed process
        self._offers += 1  # what is offered again may still be under way from the first time
        outgoing = run / _OUTBOX / str(self._offers)
        for name in _files_of(run, step):
            _snapshot(run / name, outgoing / name)
        with self._lock:
            if self._pending is not None:
                shutil.rmtree(self._pending, ignore_errors=True)
            self._pending, self.failure = outgoing, None
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="run-mirror", daemon=True)
                self._thread.start()
            self._lock.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait for the copies under way, at most this long; tell whether there are none left."""
        with self._lock:
            return self._lock.wait_for(lambda: self._pending is None and not self._is_busy, seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._is_busy = False
                self._lock.notify_all()
                self._lock.wait_for(lambda: self._pending is not None)
                outgoing, self._pending, self._is_busy = self._pending, None, True
            assert outgoing is not None
            failure = None
            try:
                self._send(outgoing)
            except Exception as error:  # whatever it is, the training itself is well
                failure = " ".join(str(error).split()) or type(error).__name__
                logger.warning("the run was not copied to %s (%s); tried again after the next save", self.url, failure)
            shutil.rmtree(outgoing, ignore_errors=True)
            with self._lock:
                self.failure = failure

    def _send(self, outgoing: Path) -> None:
        """Copy a snapshot: first what is replaced, then the checkpoint, its commit record last; then tidy up."""
        self._require_claim(outgoing)
        names = [path.relative_to(outgoing).as_posix() for path in outgoing.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (name.startswith(CHECKPOINTS), name.endswith(COMMIT), name)):
            status = (outgoing / name).stat()
            mark = (status.st_size, status.st_mtime_ns)
            if self._sent.get(name) != mark:
                self._put(outgoing / name, name)
                self._sent[name] = mark
        kept = {step_of(name) for name in names} | committed_steps(outgoing.parent.parent / CHECKPOINTS)
        obsolete = [name for name in self._names() if step_of(name) is not None and step_of(name) not in kept]
        for name in sorted(obsolete, key=lambda name: not name.endswith(COMMIT)):
            self._remove(name)
            self._sent.pop(name, None)

    def _require_claim(self, outgoing: Path) -> None:
        """Insist on being the one who copies there: by another start since, this process has lost the place."""
        mine = read_environment(outgoing / ENVIRONMENT)
        try:
            theirs = self._environment()
        except MissingFile:  # somebody emptied the place
            self.claim(mine)
            return
        if theirs != mine:
            starts = theirs.get(STARTS) or [{}]
            raise InputError(f"it belongs to {starts[-1].get(RUN_PATH, 'another run')} since {starts[-1].get('time')}")

    def _put(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            (self._place / name).write_file(file)

    def _remove(self, name: str) -> None:
        (self._place / name).remove()
        if not is_remote(self.url):
            with suppress(OSError):  # of the last file of a folder, the folder, too
                (Path(self.url) / name).parent.rmdir()


def _steps(names: list[str]) -> list[int]:
    """Return the steps of the committed checkpoints among relative file names."""
    steps = (step_of(name) for name in names if name.endswith(f"/{COMMIT}"))
    return [step for step in steps if step is not None]


def _files_of(run: Path, step: int) -> Iterator[str]:
    """Yield the relative names of what belongs to a checkpoint: its own files, and all others of the run."""
    for path in sorted((run / CHECKPOINTS / f"step_{step}").iterdir()):
        yield path.relative_to(run).as_posix()
    for top in sorted(run.iterdir()):
        if top.name.startswith(".") or top.name in _LEFT_OUT:
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and ".tmp." not in path.name:
                yield path.relative_to(run).as_posix()


def _snapshot(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != _GROWING:
        try:
            os.link(path, target)
            return
        except OSError:
            pass  # a file system without links: copy
    shutil.copy2(path, target)
