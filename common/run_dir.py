"""The run directory: created, resumed or refused, never overwritten; with the settings and the environment of the run.

Checkpoints in it are `checkpoint.py`, metrics `metrics.py`; pictures and encoders are the stages' own.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit import __version__
from beit.common.checkpoint import Checkpoint, find_checkpoint, resolve_checkpoint
from beit.common.config import config_to_dict, config_to_toml
from beit.common.distributed import World
from beit.common.errors import InputError
from beit.common.files import read_json, write_atomic, write_json

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "deepspeed", "numpy", "pillow", "webdataset", "pyarrow", "safetensors")
RHYTHM = (
    "train.micro_batch_size",
    "train.log_interval_steps",
    "train.eval_interval_steps",
    "train.early_stop_evals",
)
FREE_KEYS = (*RHYTHM, "train.collective_timeout_seconds", "checkpoint.", "deepspeed.", "speed.", "profile.")
"""Settings that may differ when a run is resumed: they change speed and rhythm, not what is learned."""
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

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"


def open_run(path: Path, config: Any, *, world: World, resume: str, free_keys: Sequence[str] = ()) -> RunDirectory:
    """Create the directory of a new run, or find where an existing one goes on; the same answer on every rank.

    Args:
        path: The run directory.
        config: All settings, a dataclass; written as config.toml.
        world: The ranks; rank 0 does the work.
        resume: "auto": continue if there is something to continue. "never": only a new or empty directory.
            Else the path of a checkpoint or run to continue from, also with other settings.
        free_keys: Further settings that may differ in "auto": names, or prefixes ending in a dot.
    Raises:
        InputError: the directory is not a run, has other settings, or its checkpoints are all damaged.
    """
    return world.run_on_main(lambda: _open(path, config, world, resume, (*FREE_KEYS, *free_keys)))


def _open(path: Path, config: Any, world: World, resume: str, free_keys: Sequence[str]) -> RunDirectory:
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a new directory for the run")
    is_empty = not path.exists() or next(path.iterdir(), None) is None
    if not is_empty and not (path / "config.toml").is_file():
        raise InputError(f"{path} is not empty and not a run (no config.toml); name a new or empty directory")
    if not is_empty and resume == "never":
        raise InputError(f"{path} already holds a run, and --resume never forbids to continue it; name a new directory")
    checkpoint = _find(path, resume)
    if not is_empty and resume == "auto":
        _require_same(path / "config.toml", config, free_keys)
    path.mkdir(parents=True, exist_ok=True)
    write_atomic(path / "config.toml", config_to_toml(config).encode())
    _record_environment(path / "environment.json", world, checkpoint)
    return RunDirectory(path=path, checkpoint=checkpoint)


def _find(path: Path, resume: str) -> Checkpoint | None:
    if resume == "never":
        return None
    if resume == "auto":
        return find_checkpoint(path / "checkpoints")
    if not Path(resume).exists():
        raise InputError(f"--resume {resume} does not exist; use auto, never, or the path of a checkpoint or run")
    return resolve_checkpoint(Path(resume))


def _require_same(config_file: Path, config: Any, free_keys: Sequence[str]) -> None:
    try:
        saved = _flatten(tomllib.loads(config_file.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{config_file} is not valid TOML ({error}); restore it or name a new directory") from None
    current = _flatten(config_to_dict(config))
    names = sorted(name for name in saved.keys() | current.keys() if saved.get(name) != current.get(name))
    bound = [
        name for name in names if not any(name == key or key[-1] == "." and name.startswith(key) for key in free_keys)
    ]
    if bound:
        listed = "; ".join(f"{name} was {saved.get(name)}, is {current.get(name)}" for name in bound)
        raise InputError(
            f"{config_file.parent} holds a run with other settings ({listed}); use the same, name a new directory, or "
            f"continue on purpose with --resume {config_file.parent}"
        )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _record_environment(file: Path, world: World, checkpoint: Checkpoint | None) -> None:
    starts = read_json(file)["starts"] if file.exists() else []
    start = environment() | {
        "world_size": world.world_size,
        "device": str(world.device.type),
        "resumed_from": str(checkpoint.path) if checkpoint else None,
    }
    write_json(file, {"starts": [*starts, start]})


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
