"""COMMIT.json, the record that a checkpoint is complete: read, checked, and what it says of the way a run went.

A record holds the hashes of the files, its own, and the identities of all checkpoints before it: so a run and its copy
know whether one is the other's past. Records of before say less and are read all the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit.common.errors import InputError, require
from beit.common.runs.layout import COMMIT
from beit.common.storage.documents import Format, canonical_sha256, json_bytes, parse_json

FORMAT = Format("beit-checkpoint", 1)
TAG = re.compile(r"step_(\d+)")
"""Name of the folder of a checkpoint."""
_SHA256, _ANCESTORS = "sha256", "ancestors"
_REQUIRED = ("model.safetensors", "optimizer.safetensors", "rng.safetensors")
_MOST_ANCESTORS = 1000
_IDENTITY_CHARS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitRecord:
    """What a COMMIT.json says, checked."""

    step: int
    """Optimizer steps completed."""
    files: list[dict[str, Any]]
    """name, size and sha256 of each."""
    record: dict[str, Any]
    """What the trainer stored beside the tensors."""
    identity: str
    """Short hash of the document."""
    ancestors: dict[int, str] | None
    """Identities of the checkpoints before this one, by step; None in records of before."""


def tagged_steps(root: Path) -> list[tuple[int, Path]]:
    """Return step and folder of everything in a folder that is named as a checkpoint, in the order of steps."""
    if not root.is_dir():
        return []
    matches = [(TAG.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def committed_steps(root: Path) -> set[int]:
    """Return the steps of the checkpoints that have a commit record; whether they are intact is not looked at."""
    return {number for number, path in tagged_steps(root) if (path / COMMIT).is_file()}


def commit_bytes(
    *, step: int, files: list[dict[str, Any]], record: Mapping[str, Any], ancestors: Mapping[int, str]
) -> bytes:
    """Return a COMMIT.json, whose own hash is part of it."""
    newest = sorted(ancestors.items())[-_MOST_ANCESTORS:]
    fields: dict[str, Any] = {**FORMAT.header(), "step": step, "files": files, "record": record}
    fields[_ANCESTORS] = {str(step): identity for step, identity in newest}
    document = parse_json(json_bytes(fields), label="record")  # as it will be read: keys are texts
    return json_bytes(document | {_SHA256: canonical_sha256(document)})


def parse_commit(data: bytes, *, label: str, step: int | None = None) -> CommitRecord:
    """Read a COMMIT.json.

    Args:
        data: Its content.
        label: Its path, for messages.
        step: What the folder's name says; None where it says nothing.
    """
    document = FORMAT.check(parse_json(data, label=label), label)
    stated = document.get(_SHA256)
    if _SHA256 in document:
        content = {name: value for name, value in document.items() if name != _SHA256}
        require(stated == canonical_sha256(content), f"{label} is damaged: it is not as it was written")
    files, record, found = document.get("files"), document.get("record"), document.get("step")
    require(_is_count(found), f"{label} is damaged: its step ({found!r}) is no number of steps")
    require(isinstance(record, dict), f"{label} is damaged: it has no record")
    require(
        isinstance(files, list) and all(map(_is_file, files)),
        f"{label} is damaged: its list of files is not one of names, sizes and sha256",
    )
    assert isinstance(found, int) and isinstance(record, dict) and isinstance(files, list)
    missing = sorted(set(_REQUIRED) - {entry["name"] for entry in files})
    require(not missing, f"{label} is damaged: it does not list {', '.join(missing)}")
    require(step in (None, found), f"{label} is of step {found}, its folder is of step {step}")
    identity = hashlib.sha256(data).hexdigest()[:_IDENTITY_CHARS]
    return CommitRecord(
        step=found, files=files, record=record, identity=identity, ancestors=_ancestors(document.get(_ANCESTORS))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_file(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    is_plain = "/" not in entry["name"] and entry["name"] not in ("", ".", "..")
    return is_plain and _is_count(entry.get("size")) and isinstance(entry.get("sha256"), str)


def _ancestors(value: Any) -> dict[int, str] | None:
    if not isinstance(value, dict):
        return None
    return {int(step): str(identity) for step, identity in value.items() if step.isascii() and step.isdecimal()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """The checkpoints that a run came by, as far as they are known."""

    identities: dict[int, str] = field(default_factory=dict)
    """Of each, by step."""
    is_whole: bool = False
    """Whether no step is left out, so that one that is not in there is of another way."""

    @property
    def newest(self) -> int:
        """The step it has come to; -1 for none."""
        return max(self.identities, default=-1)

    def parting(self, other: Way) -> int | None:
        """Return where two ways part: the last step that is known to both, 0 for the start; None if they do not."""
        common = sorted(self.identities.keys() & other.identities.keys())
        same = [step for step in common if self.identities[step] == other.identities[step]]
        shorter, longer = sorted((self, other), key=lambda way: way.newest)
        is_past = shorter.newest in longer.identities or not longer.is_whole or shorter.newest < 0
        # Of a very long way only the newest part is known.
        is_past |= len(longer.identities) > _MOST_ANCESTORS and shorter.newest < min(longer.identities)
        return None if len(same) == len(common) and is_past else max(same, default=0)


def read_way(steps: Iterable[int], read: Callable[[int], bytes]) -> Way:
    """Return the way that checkpoints tell; those whose record is damaged tell nothing.

    Args:
        steps: Of checkpoints with a record.
        read: Returns the record of a step.
    """
    commits = []
    for step in steps:
        try:
            commits.append(parse_commit(read(step), label=f"step_{step}", step=step))
        except InputError:
            continue
    identities: dict[int, str] = {}
    newest = max(commits, key=lambda commit: commit.step, default=None)
    if newest is not None and newest.ancestors is not None:
        identities |= newest.ancestors
    return Way(
        identities=identities | {commit.step: commit.identity for commit in commits},
        is_whole=newest is not None and newest.ancestors is not None,
    )
