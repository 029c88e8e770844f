"""Checkpoints on disk: complete and committed, or absent; portable over ranks and ZeRO stages; no pickle.

`checkpoints/step_N/` holds model.safetensors, optimizer.safetensors, rng.safetensors, where the best weights are kept
best.safetensors, and COMMIT.json (`commits.py`), which lists size and sha256 of the others. It is written under
`step_N.tmp` and renamed when COMMIT.json is durable, so a killed save leaves nothing that looks like a checkpoint. What
the tensors are is `common/training/portable_state.py`; when to save is `common/training/trainer.py`.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from beit.common.errors import InputError, require
from beit.common.runs.commits import TAG, Way, commit_bytes, committed_steps, parse_commit, read_way, tagged_steps
from beit.common.runs.layout import CHECKPOINTS, COMMIT, LATEST
from beit.common.storage.files import fault_point, fsync_directory, sha256_file, write_atomic
from beit.common.storage.tensor_check import write_safetensors

logger = logging.getLogger(__name__)
_ASIDE, _BEST = "rejected_", "best.safetensors"
_ROOM = 1.2
"""Free space to begin a checkpoint with, relative to its size; the rest is for what else is written meanwhile."""
RngStates = Mapping[str, torch.Tensor]
"""`rank0/cpu`, `rank0/cuda`, ...: generator states, uint8."""
AVERAGE = "ema"
"""Name of the running average beside AdamW's states `exp_avg` and `exp_avg_sq`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A committed checkpoint whose files were verified."""

    path: Path
    """Its directory."""
    step: int
    """Optimizer steps completed."""
    record: dict[str, Any]
    """What the trainer stored beside the tensors."""
    identity: str
    """Of its commit record."""
    has_best: bool = False
    """Whether the weights of the best evaluation are in it."""

    def reader(self, name: str) -> Any:
        """Open `model` or `optimizer` for reading tensor by tensor; a context manager."""
        return safe_open(self.path / f"{name}.safetensors", framework="pt")

    def best_weights(self) -> dict[str, torch.Tensor] | None:
        """Return the weights of the best evaluation so far; None where the run keeps none, or had none yet."""
        return load_file(self.path / _BEST) if self.has_best else None

    def rng_states(self) -> dict[str, torch.Tensor]:
        """Return the generator states of all ranks."""
        states: dict[str, torch.Tensor] = load_file(self.path / "rng.safetensors")
        return states


def save_checkpoint(
    root: Path,
    *,
    step: int,
    state: PortableState,
    rng: RngStates,
    record: Mapping[str, Any],
    keep: int,
    keep_every: int | None = None,
    best: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write and commit one checkpoint, then delete all but the newest `keep`.

    Args:
        root: The run's `checkpoints` directory.
        step: Optimizer steps completed; names the checkpoint.
        state: Weights and moments.
        rng: Generator states of all ranks.
        record: JSON-able rest: data position, counters, versions.
        keep: Committed checkpoints to leave.
        keep_every: Leave also the first one at or after every so many steps.
        best: Weights of the best evaluation so far, if the run keeps them.
    Returns:
        The committed directory.
    Raises:
        OSError: it could not be written; nothing of it is left, and older checkpoints are untouched.
    """
    target = root / f"step_{step}"
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    contents = {"model": state.model, "optimizer": state.optimizer, "rng": dict(rng)}
    contents |= {} if best is None else {"best": dict(best)}
    try:
        temporary.mkdir(parents=True)
        _require_room(temporary, contents)
        files = [_write_tensors(temporary / f"{name}.safetensors", tensors) for name, tensors in contents.items()]
        earlier = {before: identity for before, identity in way_of(root).identities.items() if before < step}
        commit = commit_bytes(step=step, files=files, record=record, ancestors=earlier)
        write_atomic(temporary / COMMIT, commit)
        fault_point("commit")
        _set_aside(target)  # a damaged predecessor of the same number
        os.replace(temporary, target)
        fsync_directory(root)
        fault_point("committed")
        write_atomic(root / LATEST, f"{target.name}\n".encode())
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _prune(root, keep, keep_every)
    return target


def find_checkpoint(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies; None when there never was one."""
    tags = tagged_steps(root)
    for _, path in reversed(tags):
        try:
            return open_checkpoint(path)
        except InputError as error:
            logger.warning("checkpoint rejected: %s", error)
    if tags:
        raise InputError(
            f"{root} holds {len(tags)} checkpoints, none of them intact; restore one or delete it to start anew"
        )
    return None


def open_checkpoint(path: Path, *, step: int | None = None) -> Checkpoint:
    """Verify one checkpoint: its commit record, and size and sha256 of every file.

    Args:
        path: Its folder.
        step: Which it must be, where the folder's name does not say it.
    """
    require((path / COMMIT).is_file(), f"{path} has no {COMMIT}; it was never completed or is not a checkpoint")
    tag = TAG.fullmatch(path.name)
    commit = parse_commit(
        (path / COMMIT).read_bytes(), label=str(path / COMMIT), step=int(tag[1]) if tag is not None else step
    )
    names = {entry["name"] for entry in commit.files}
    extra = sorted(file.name for file in path.glob("*.safetensors") if file.name not in names)
    require(not extra, f"{path / COMMIT} is damaged: it does not list {', '.join(extra)}")
    for entry in commit.files:
        file, size = path / entry["name"], entry["size"]
        require(file.is_file(), f"{file} is missing")
        found = file.stat().st_size
        require(found == size, f"{file} has {found} bytes instead of {size}")
        require(sha256_file(file) == entry["sha256"], f"{file} is damaged: its sha256 is not the recorded one")
    return Checkpoint(
        path=path, step=commit.step, record=commit.record, identity=commit.identity, has_best=_BEST in names
    )


def resolve_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint a user named: its directory, a `checkpoints` directory, or a run (newest of these)."""
    if (path / COMMIT).exists() or TAG.fullmatch(path.name):
        return open_checkpoint(path)
    checkpoint = find_checkpoint(path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path)
    if checkpoint is None:
        raise InputError(f"--resume {path} holds no checkpoint; name a run, or one of its checkpoints/step_N")
    return checkpoint


def set_later_aside(root: Path, step: int) -> None:
    """Rename checkpoints beyond `step`, which a run resumed there leaves behind, so that no later resume picks them.

    The newest first: killed midway, what is left is still the beginning of one way.
    """
    for number, path in reversed(tagged_steps(root)):
        if number > step:
            fault_point("aside")
            _set_aside(path)


def commit_identity(file: Path) -> str | None:
    """Return the identity that a commit record has, read from its file; None if it is damaged."""
    try:
        return parse_commit(file.read_bytes(), label=str(file)).identity
    except InputError:
        return None


def way_of(root: Path) -> Way:
    """Return the way that the checkpoints in a folder tell."""
    return read_way(committed_steps(root), lambda step: (root / f"step_{step}" / COMMIT).read_bytes())


def step_of(name: str) -> int | None:
    """Return the step of a file of a checkpoint, from its path relative to the run; None for any other file."""
    parts = name.split("/")
    match = TAG.fullmatch(parts[1]) if len(parts) == 3 and parts[0] == CHECKPOINTS else None
    return int(match[1]) if match else None


def _require_room(directory: Path, contents: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Fail before a long write that cannot succeed."""
    needed = sum(tensor.nbytes for tensors in contents.values() for tensor in tensors.values())
    free = shutil.disk_usage(directory).free
    if free < _ROOM * needed:
        reason = f"{os.strerror(errno.ENOSPC)}: a checkpoint of {needed / 1e6:.0f} MB needs {_ROOM} times that"
        raise OSError(errno.ENOSPC, f"{reason}, {free / 1e6:.0f} MB are free", str(directory.parent))


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    write_safetensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()})
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"name": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}


def _set_aside(path: Path) -> None:
    if path.exists():
        aside = path.with_name(_ASIDE + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def _prune(root: Path, keep: int, keep_every: int | None) -> None:
    tags = tagged_steps(root)
    milestones: dict[int, int] = {}
    for step, _ in tags:
        milestones.setdefault(step // (keep_every or step + 1), step)  # without milestones, all are number 0
    spared = {step for number, step in milestones.items() if number > 0}
    obsolete = (
        [path for step, path in tags[:-keep] if step not in spared]
        + list(root.glob(f"{_ASIDE}*"))
        + list(root.glob("*.tmp"))
    )
    for path in obsolete:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class PortableState:
    """Everything the optimizer and the model know, as CPU tensors."""

    model: dict[str, torch.Tensor]
    """The model's state dict: parameters (float32) and buffers."""
    optimizer: dict[str, torch.Tensor]
    """`exp_avg/NAME` and `exp_avg_sq/NAME` shaped as parameter NAME, `step/NAME` scalar; absent before an update. Of
    what Muon trains `momentum_buffer/NAME` alone.
    Where weights are averaged (`common/training/ema.py`), `ema/NAME`, too, also of running statistics, and the scalar
    `ema_updates`; in float16 `loss_scale`."""

    def weights_in_use(self) -> dict[str, torch.Tensor]:
        """Return the model's state dict as it is measured and given away: averages where there are any."""
        prefix = f"{AVERAGE}/"
        averages = {key.removeprefix(prefix): value for key, value in self.optimizer.items() if key.startswith(prefix)}
        return self.model | averages

    def is_finite(self) -> bool:
        """True when no weight and no moment is NaN or infinite."""
        tensors = [*self.model.values(), *self.optimizer.values()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())
