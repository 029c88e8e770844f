"""environment.json and origin.json: where, when and by which code a run was started, and at which checkpoint it began.

environment.json   `run_id`, the identity of the run, and `starts`, one entry for each
origin.json        the checkpoint that --resume named last, while the run goes on from there
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beit import __version__
from beit.common.errors import InputError
from beit.common.runs.layout import RUN_ID
from beit.common.storage.documents import parse_json, read_json, reading, write_json

STARTS, RUN_PATH = "starts", "run"
"""The entries of environment.json, one for each start; in an entry, the run directory as that machine knows it."""
PACKAGES = ("torch", "deepspeed", "numpy", "pillow", "webdataset", "pyarrow", "safetensors")
_SECRETS = (
    (re.compile(r"://[^/@\s]+@"), "://***@"),
    (re.compile(r"(?i)((?:token|secret|password|passwd|api_?key|access_key|signature)[^=\s]*=)[^&\s]+"), r"\1***"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The checkpoint that a run was told to go on from."""

    commit: str
    """Identity of its commit record."""
    step: int
    """Its step."""
    named: str
    """What --resume named, in full: a checkpoint or a run."""


def read_origin(file: Path) -> Origin | None:
    """Return where a run began; None where it began at zero, or nothing says it."""
    if not file.is_file():
        return None
    document = read_json(file)
    with reading(file, way_out="delete it, and name with --resume what the run is to go on from"):
        origin = Origin(**document)
        if not (isinstance(origin.step, int) and isinstance(origin.commit, str) and isinstance(origin.named, str)):
            raise TypeError("a value is of the wrong kind")
    return origin


def write_origin(file: Path, origin: Origin) -> None:
    """Write down where a run begins."""
    write_json(file, asdict(origin))


def parse_environment(data: bytes, *, label: str) -> dict[str, Any]:
    """Read an environment.json; `label` is its path."""
    document = parse_json(data, label=label)
    is_sound = isinstance(document, dict) and isinstance(document.get(RUN_ID, ""), str)
    starts = document.get(STARTS, []) if is_sound else None
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(f"{label} is damaged: it is no record of starts; restore it, or delete it to begin a new one")
    return dict(document)


def read_environment(file: Path) -> dict[str, Any]:
    """Read an environment.json; empty where there is none."""
    return parse_environment(file.read_bytes(), label=str(file)) if file.is_file() else {}


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
