"""The run directory: created, resumed or refused, never overwritten.

Checkpoints in it are `checkpoint.py`, who started it and from where is `environment.py`, its copy elsewhere
`mirror.py`, metrics `metrics.py`; pictures and encoders are the stages' own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.common.config import config_to_toml
from beit.common.errors import InputError, require
from beit.common.processes.distributed import World
from beit.common.runs.changes import FREE_KEYS, Change, check_changes, find_changes, matches
from beit.common.runs.checkpoint import (
    Checkpoint,
    commit_identity,
    find_checkpoint,
    resolve_checkpoint,
    set_later_aside,
)
from beit.common.runs.environment import (
    RUN_PATH,
    STARTS,
    Origin,
    environment,
    read_environment,
    read_origin,
    write_origin,
)
from beit.common.runs.layout import (
    CHECKPOINTS,
    COMMIT,
    CONFIG,
    ENCODER,
    ENVIRONMENT,
    FEATURES,
    LAST,
    MODEL,
    ORIGIN,
    RUN_ID,
)
from beit.common.runs.mirror import RunMirror
from beit.common.storage.documents import but_is, write_json
from beit.common.storage.files import existing, remove_stale, require_writable, write_atomic
from beit.common.storage.locks import sole_use
from beit.common.storage.paths import is_remote, require_local

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDirectory:
    """A run that may be written to."""

    path: Path
    """The directory."""
    checkpoint: Checkpoint | None
    """Where to continue; None for a start from zero."""
    sync_to: str | None = None
    """Where the run is copied to (`mirror.py`)."""
    changes: tuple[Change, ...] = ()
    """Settings that are not those of the run that is continued."""
    origin: Origin | None = None
    """What --resume names, where the run is to begin there, now."""
    is_fetched: bool = False
    """Whether the directory was empty, and all in it comes from the copy."""

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / CHECKPOINTS


def open_run(
    path: Path, config: Any, *, world: World, resume: str, free_keys: Sequence[str] = (), sync_to: str | None = None
) -> RunDirectory:
    """Find where an existing run goes on, or a place for a new one; the same answer on every rank.

    Nothing in the directory is rewritten yet (`begin_run` does that), so that a run that may not go on is left as it
    was. Only what a copy has more is fetched, if settings allow the run to go on.

    Args:
        path: The run directory.
        config: All settings, a dataclass.
        world: The ranks; rank 0 does the work.
        resume: "auto": continue if there is something to continue. "never": only a new or empty directory.
            Else the path of a checkpoint or run to continue from, also with other settings. A run that was told so
            before, with these settings, goes on from its newest checkpoint: a command may be repeated.
        free_keys: Further settings that may differ in "auto": names, or prefixes ending in a dot.
        sync_to: Folder or URL of the run's copy; "auto" fetches what it has more than the directory.
    """
    return world.run_on_main(lambda: _open(path, config, resume, free_keys, sync_to))


def check_run(path: Path, config: Any, *, resume: str, sync_to: str | None = None) -> None:
    """Refuse what `open_run` refuses; nothing is fetched, and nothing written."""
    _open(path, config, resume, (), sync_to, fetches=False)


def check_directory(path: Path, *, resume: str) -> None:
    """Refuse a directory that cannot be that of a run, whatever the settings are."""
    require_local(path, str(path))
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a new directory for the run")
    there = existing(path.absolute())
    require(there.is_dir(), f"{path}: {there} is a file, in which no folder can be; name another place for the run")
    require_writable(there, str(path))
    is_run = (path / CONFIG).is_file()
    if not is_run and not _is_as_new(path):
        raise InputError(
            f"{path} is not empty and not a run (no config.toml){but_is(path)}; name a new or empty directory"
        )
    if is_run and resume == "never":
        raise InputError(f"{path} already holds a run, and --resume never forbids to continue it; name a new directory")


def begin_run(run: RunDirectory, config: Any, *, world: World, chosen: Mapping[str, Any] | None = None) -> None:
    """Create the directory of a run and write settings and environment, once nothing speaks against it any more.

    `chosen` is what the settings left open, by name; it is kept with the start.
    """
    world.run_on_main(lambda: _begin(run, config, world, chosen or {}))
    _make_visible(run, world)


def abandon_run(run: RunDirectory, *, world: World) -> None:
    """Empty a directory again that was filled from a copy, for a run that then may not go on."""
    if run.is_fetched and world.is_main:
        for entry in run.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _open(
    path: Path, config: Any, resume: str, free_keys: Sequence[str], sync_to: str | None, *, fetches: bool = True
) -> RunDirectory:
    check_directory(path, resume=resume)
    is_run = (path / CONFIG).is_file()
    copy = None if sync_to is None else _open_copy(sync_to, path)
    is_copied = copy is not None and copy.look(path).has_settings
    if is_copied and resume == "never":
        raise InputError(f"run.sync_to ({sync_to}) already holds a run, and --resume never forbids to continue it")
    if resume == "never" or not (is_run or is_copied):
        checkpoint = None if resume in ("never", "auto") else _named(resume)
        return _begin_at(path, config, checkpoint, resume, sync_to)
    with tempfile.TemporaryDirectory() as scratch:
        saved = path
        if copy is not None and not is_run:
            saved = Path(scratch)
            copy.fetch_settings(saved)
        if resume != "auto" and not _was_told_before(saved, resume, config, free_keys):
            require(is_run, f"run.sync_to ({sync_to}) already holds a run; name a new or empty place")
            return _begin_at(path, config, _named(resume), resume, sync_to)
    return _go_on(path, config, free_keys, copy, is_run=is_run, fetches=fetches)


def _go_on(
    path: Path, config: Any, free_keys: Sequence[str], copy: RunMirror | None, *, is_run: bool, fetches: bool
) -> RunDirectory:
    """Continue a run where it got to, here or in its copy."""
    checkpoint = _newest(path, may_fail=copy is not None)
    have = -1 if checkpoint is None else checkpoint.step
    if copy is not None and copy.is_further(path, have):
        with tempfile.TemporaryDirectory() as scratch:
            copy.fetch_settings(Path(scratch))
            changes = find_changes(Path(scratch) / CONFIG, config, run=copy.url)
            check_changes(changes, copy.url, is_on_purpose=False, free_keys=free_keys, is_copy=True)
        if fetches:
            copy.fetch(path, have=have)
            checkpoint = _newest(path)
    else:
        changes = find_changes(path / CONFIG, config)
        check_changes(changes, path, is_on_purpose=False, free_keys=free_keys)
        checkpoint = checkpoint or _newest(path) or _origin_of(path)
    return RunDirectory(
        path=path,
        checkpoint=checkpoint,
        sync_to=None if copy is None else copy.url,
        changes=tuple(changes),
        is_fetched=not is_run,
    )


def _begin_at(path: Path, config: Any, checkpoint: Checkpoint | None, resume: str, sync_to: str | None) -> RunDirectory:
    """Start at zero, or at a checkpoint that the user named, whose settings may differ on purpose."""
    changes: list[Change] = []
    origin = None
    if checkpoint is not None:
        source = checkpoint.path.resolve().parent.parent
        if (source / CONFIG).is_file():
            changes = find_changes(source / CONFIG, config)
            check_changes(changes, source, is_on_purpose=True, free_keys=())
        origin = Origin(commit=checkpoint.identity, step=checkpoint.step, named=os.path.realpath(resume))
    return RunDirectory(path=path, checkpoint=checkpoint, sync_to=sync_to, changes=tuple(changes), origin=origin)


def _is_as_new(path: Path) -> bool:
    """Tell whether nothing is in a directory but what a start leaves that was killed before it wrote the settings."""
    names = [entry.name for entry in path.iterdir()] if path.exists() else []
    return all(name in (ENVIRONMENT, ORIGIN) or ".tmp." in name for name in names)


def _open_copy(sync_to: str, path: Path) -> RunMirror:
    copy = RunMirror(sync_to)
    if not is_remote(copy.url) and path.resolve() in (Path(copy.url).resolve(), *Path(copy.url).resolve().parents):
        raise InputError(f"run.sync_to ({copy.url}) must not be in the run itself ({path}); name another place")
    return copy


def _newest(path: Path, *, may_fail: bool = False) -> Checkpoint | None:
    try:
        return find_checkpoint(path / CHECKPOINTS)
    except InputError:
        if not may_fail:
            raise
        return None  # the copy may have one that is intact


def _named(resume: str) -> Checkpoint:
    if not Path(resume).exists():
        raise InputError(f"--resume {resume} does not exist; use auto, never, or the path of a checkpoint or run")
    return resolve_checkpoint(Path(resume))


def _was_told_before(saved: Path, resume: str, config: Any, free_keys: Sequence[str]) -> bool:
    """Tell whether this --resume began the way that the run is on: the same command is run again, to go on.

    With other settings it is another way, from that checkpoint once more.
    """
    origin = read_origin(saved / ORIGIN)
    if origin is None:
        return False
    commit = Path(resume) / COMMIT
    # Of the run itself, the checkpoint may have had to make room for newer ones meanwhile.
    is_same = origin.named == os.path.realpath(resume)
    if commit.is_file() and commit_identity(commit) != origin.commit:
        is_same = False
    elif commit.is_file():
        is_same = True
    bound = [change.name for change in find_changes(saved / CONFIG, config, run=resume)]
    if not is_same or not all(matches(name, (*FREE_KEYS, *free_keys)) for name in bound):
        return False
    logger.info("--resume %s is where this run began; it goes on from its newest checkpoint", resume)
    return True


def _origin_of(path: Path) -> Checkpoint | None:
    """Return where a run was told to begin that has no checkpoint of its own yet."""
    origin = read_origin(path / ORIGIN)
    if origin is None:
        return None
    require(
        Path(origin.named).exists(),
        f"{path} was to go on from {origin.named}, which is gone, and has no checkpoint of its own yet; name another "
        "with --resume, or start a new run in a new directory",
    )
    return resolve_checkpoint(Path(origin.named))


def _begin(run: RunDirectory, config: Any, world: World, chosen: Mapping[str, Any]) -> None:
    is_new = not (run.path / CONFIG).is_file()
    run.path.mkdir(parents=True, exist_ok=True)
    with sole_use(run.path):  # a training that is under way goes by what is written here
        _remove_leavings(run)
        copy = None if run.sync_to is None else RunMirror(run.sync_to)
        earlier: Mapping[str, Any] = read_environment(run.path / ENVIRONMENT)
        if not (earlier or is_new or copy is None):
            earlier = copy.look(run.path).environment  # somebody deleted the record; the copy knows whose it is
        environment_now = _record_environment(run, earlier, world, chosen)
        try:
            if copy is not None:
                copy.claim(environment_now)
        except InputError:
            if is_new:
                (run.path / ENVIRONMENT).unlink()
                with suppress(OSError):
                    run.path.rmdir()
            raise
        # Settings last: killed before, the run is on its old way, or back at the checkpoint under its old settings.
        if run.checkpoint is not None:
            _leave_behind(run, run.checkpoint, copy)
        if run.origin is not None:
            write_origin(run.path / ORIGIN, run.origin)
        elif is_new:
            (run.path / ORIGIN).unlink(missing_ok=True)
        write_atomic(run.path / CONFIG, config_to_toml(config).encode())
        if copy is not None:
            copy.announce(run.path)


def _remove_leavings(run: RunDirectory) -> None:
    """Remove what earlier processes of this run were writing when they were killed."""
    for folder in (run.path, *(run.path / name for name in (ENCODER, MODEL, LAST, FEATURES, CHECKPOINTS))):
        remove_stale(folder, is_ours=True)
    for unfinished in run.checkpoints.glob("*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _leave_behind(run: RunDirectory, checkpoint: Checkpoint, copy: RunMirror | None) -> None:
    """Set aside what this run has beyond the checkpoint it goes on from, first in the copy, which could bring it back.

    All that the run has, if it goes on from a checkpoint of another one.
    """
    is_own = checkpoint.path.parent.resolve() == run.checkpoints.resolve()
    last = checkpoint.step if is_own else -1
    if copy is not None:
        copy.set_later_aside(last)
    set_later_aside(run.checkpoints, last)


def _make_visible(run: RunDirectory, world: World) -> None:
    """See to it that every machine has the checkpoint, whose files every rank reads."""
    checkpoint = run.checkpoint
    if checkpoint is None or world.world_size == 1:
        return
    is_here = (checkpoint.path / COMMIT).is_file()
    if run.sync_to is not None and not is_here and world.local_rank == 0:
        RunMirror(run.sync_to).fetch(run.path, step=checkpoint.step)
    world.gather(None)  # the other ranks of that machine wait here
    blind = [rank for rank, sees in enumerate(world.gather((checkpoint.path / COMMIT).is_file())) if not sees]
    if blind:
        raise InputError(
            f"{checkpoint.path} is not visible to rank {', '.join(map(str, blind))}; put the run on a file system that "
            "all machines share, or set run.sync_to"
        )


def _record_environment(
    run: RunDirectory, earlier: Mapping[str, Any], world: World, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Add this start to the record of the run as it was earlier, and return all of it."""
    start = environment() | {
        RUN_PATH: str(run.path.absolute()),
        "world_size": world.world_size,
        "device": str(world.device.type),
        **chosen,
        "resumed_from": str(run.checkpoint.path) if run.checkpoint else None,
        "changed": {change.name: [change.before, change.now] for change in run.changes},
    }
    run_id = earlier.get(RUN_ID) or secrets.token_hex(8)
    document = {RUN_ID: run_id, STARTS: [*earlier.get(STARTS, []), start]}
    write_json(run.path / ENVIRONMENT, document)
    return document
