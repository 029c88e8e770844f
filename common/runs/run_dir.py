"""The run directory: created, resumed or refused, never overwritten; with the settings and the environment of the run.

Checkpoints in it are `checkpoint.py`, metrics `metrics.py`; pictures and encoders are the stages' own.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit import __version__
from beit.common.config import config_to_toml
from beit.common.errors import InputError
from beit.common.processes.distributed import World
from beit.common.runs.changes import Change, check_changes, find_changes
from beit.common.runs.checkpoint import Checkpoint, find_checkpoint, resolve_checkpoint
from beit.common.runs.layout import CHECKPOINTS, COMMIT, CONFIG, ENCODER, ENVIRONMENT, FEATURES, LAST, MODEL, RUN_ID
from beit.common.runs.mirror import RunMirror
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import remove_stale, write_atomic
from beit.common.storage.locks import sole_use
from beit.common.storage.paths import is_remote

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "deepspeed", "numpy", "pillow", "webdataset", "pyarrow", "safetensors")
_SECRETS = (
    (re.compile(r"://[^/@\s]+@"), "://***@"),
    (re.compile(r"(?i)((?:token|secret|password|passwd|api_?key|access_key|signature)[^=\s]*=)[^&\s]+"), r"\1***"),
)


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

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / CHECKPOINTS


def open_run(
    path: Path, config: Any, *, world: World, resume: str, free_keys: Sequence[str] = (), sync_to: str | None = None
) -> RunDirectory:
    """Find where an existing run goes on, or a place for a new one; the same answer on every rank.

    Nothing in the directory is rewritten yet (`begin_run` does that), so that a run that may not go on is left as it
    was. Only what a copy has more is fetched.

    Args:
        path: The run directory.
        config: All settings, a dataclass.
        world: The ranks; rank 0 does the work.
        resume: "auto": continue if there is something to continue. "never": only a new or empty directory.
            Else the path of a checkpoint or run to continue from, also with other settings.
        free_keys: Further settings that may differ in "auto": names, or prefixes ending in a dot.
        sync_to: Folder or URL of the run's copy; "auto" fetches what it has more than the directory.
    """
    return world.run_on_main(lambda: _open(path, config, resume, free_keys, sync_to))


def begin_run(run: RunDirectory, config: Any, *, world: World) -> None:
    """Create the directory of a run and write settings and environment, once nothing speaks against it any more."""
    world.run_on_main(lambda: _begin(run, config, world))
    _make_visible(run, world)


def _open(path: Path, config: Any, resume: str, free_keys: Sequence[str], sync_to: str | None) -> RunDirectory:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a new directory for the run")
    is_empty = not path.exists() or next(path.iterdir(), None) is None
    if not is_empty and not (path / CONFIG).is_file():
        raise InputError(f"{path} is not empty and not a run (no config.toml); name a new or empty directory")
    if not is_empty and resume == "never":
        raise InputError(f"{path} already holds a run, and --resume never forbids to continue it; name a new directory")
    copy = None if sync_to is None else RunMirror(sync_to)
    if copy is not None:
        if not is_remote(copy.url) and path.resolve() in (Path(copy.url).resolve(), *Path(copy.url).resolve().parents):
            raise InputError(f"run.sync_to ({copy.url}) must not be in the run itself ({path}); name another place")
        _meet_copy(copy, path, resume)
    checkpoint = _find(path, resume)
    changes = _changes(path, config, resume, checkpoint, free_keys)
    return RunDirectory(path=path, checkpoint=checkpoint, sync_to=sync_to, changes=tuple(changes))


def _begin(run: RunDirectory, config: Any, world: World) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    with sole_use(run.path):  # a training that is under way goes by what is written here
        _remove_leavings(run)
        write_atomic(run.path / CONFIG, config_to_toml(config).encode())
        _record_environment(run, world)
    if run.sync_to is not None:
        RunMirror(run.sync_to).announce(run.path)


def _remove_leavings(run: RunDirectory) -> None:
    """Remove what earlier processes of this run were writing when they were killed."""
    for folder in (run.path, *(run.path / name for name in (ENCODER, MODEL, LAST, FEATURES, CHECKPOINTS))):
        remove_stale(folder, is_ours=True)
    for unfinished in run.checkpoints.glob("*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _meet_copy(copy: RunMirror, path: Path, resume: str) -> None:
    """Fetch what the copy has more than the directory, where the run is to go on as far as it got."""
    if resume == "auto":
        copy.fetch(path)
    elif resume == "never" and copy.newest_step() >= 0:
        raise InputError(f"run.sync_to ({copy.url}) already holds a run, and --resume never forbids to continue it")
    else:
        copy.require_free(path)


def _changes(
    path: Path, config: Any, resume: str, checkpoint: Checkpoint | None, free_keys: Sequence[str]
) -> list[Change]:
    """Compare with the settings of the run that is continued, and refuse what must not change."""
    source = path if resume == "auto" or checkpoint is None else checkpoint.path.resolve().parent.parent
    if not (source / CONFIG).is_file():
        return []
    changes = find_changes(source / CONFIG, config)
    check_changes(changes, source, is_on_purpose=resume != "auto", free_keys=free_keys)
    return changes


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


def _find(path: Path, resume: str) -> Checkpoint | None:
    if resume == "never":
        return None
    if resume == "auto":
        return find_checkpoint(path / CHECKPOINTS)
    if not Path(resume).exists():
        raise InputError(f"--resume {resume} does not exist; use auto, never, or the path of a checkpoint or run")
    return resolve_checkpoint(Path(resume))


def _record_environment(run: RunDirectory, world: World) -> None:
    file = run.path / ENVIRONMENT
    earlier = read_json(file) if file.exists() else {}
    start = environment() | {
        "world_size": world.world_size,
        "device": str(world.device.type),
        "resumed_from": str(run.checkpoint.path) if run.checkpoint else None,
        "changed": {change.name: [change.before, change.now] for change in run.changes},
    }
    run_id = earlier.get(RUN_ID) or secrets.token_hex(8)
    write_json(file, {RUN_ID: run_id, "starts": [*earlier.get("starts", []), start]})


def environment() -> dict[str, Any]:
    """Describe the code and the machine: versions, git commit, command line with secrets blanked, time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [redact(argument) for argument in sys.argv],
        "beit": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change results."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def redact(argument: str) -> str:
    """Blank credentials in a command-line argument: user info of URLs, and values of names like token or secret."""
    for pattern, replacement in _SECRETS:
        argument = pattern.sub(replacement, argument)
    return argument


def _git_commit() -> str | None:
    """Return the commit of the source tree, with "-dirty" when files differ; None for an installed copy."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
