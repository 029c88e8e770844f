"""Saving and restoring a training: collects the state over all ranks, and survives a full disk once.

The files are `common/runs/checkpoint.py`, the tensors `portable_state.py`, the copy elsewhere `common/runs/mirror.py`;
at which steps to save is decided by `trainer.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from beit.common.errors import InputError, RunFailed
from beit.common.processes.distributed import World
from beit.common.rng import stable_hash64
from beit.common.runs.checkpoint import Checkpoint, PortableState, save_checkpoint
from beit.common.runs.environment import versions
from beit.common.runs.layout import COMMIT, MICRO_BATCH
from beit.common.runs.mirror import RunMirror
from beit.common.runs.run_dir import RunDirectory
from beit.common.storage.documents import reading
from beit.common.training.config import CheckpointConfig
from beit.common.training.engine import Engine
from beit.common.training.portable_state import gather_state, scatter_state
from beit.common.training.task import Task

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2.0  # between two looks at a copy under way; arbitrary
_LAST_WAIT_SECONDS = 20.0
MAX_FAILED_SAVES = 2
"""In a row; one may be a passing lack of space, a second would risk losing everything since the last good one."""


class Saver:
    """Writes and reads the checkpoints of one run; every rank calls every method."""

    def __init__(
        self, task: Task, *, engine: Engine, run: RunDirectory, world: World, config: CheckpointConfig
    ) -> None:
        self._task, self._engine, self._run, self._world, self._config = task, engine, run, world, config
        self._failed_saves = 0
        is_copied = run.sync_to is not None and world.is_main
        self._mirror = RunMirror(str(run.sync_to)) if is_copied else None
        self.saved_step = -1
        """Of the newest committed checkpoint; -1 before the first."""

    def restore(self) -> Checkpoint | None:
        """Load the run's checkpoint into the engine and return it; None when the run starts from zero."""
        checkpoint = self._run.checkpoint
        if checkpoint is None:
            return None
        with checkpoint.reader("model") as model, checkpoint.reader("optimizer") as optimizer:
            known = set(optimizer.keys())
            scatter_state(
                self._engine, model.get_tensor, lambda key: optimizer.get_tensor(key) if key in known else None
            )
        if checkpoint.path.parent.resolve() == self._run.checkpoints.resolve():
            self.saved_step = checkpoint.step
        if self._world.is_main:
            logger.info("continuing at step %d from %s", checkpoint.step, checkpoint.path)
            before, now = checkpoint.record.get("precision", self._engine.precision), self._engine.precision
            if before != now:
                logger.warning("the checkpoint was trained in %s, this machine goes on in %s", before, now)
        return checkpoint

    def restore_random_state(self, *, seed: int, step: int) -> None:
        """Put the random generators where the checkpoint left them, or seed them anew per rank.

        They drive drop path only; with another number of ranks their states have no meaning.
        """
        checkpoint = self._run.checkpoint
        if checkpoint is None or checkpoint.record["world_size"] != self._world.world_size:
            torch.manual_seed(stable_hash64(seed, "training", self._world.rank, step) >> 1)
            return
        prefix = f"rank{self._world.rank}/"
        states = {
            name.removeprefix(prefix): state
            for name, state in checkpoint.rng_states().items()
            if name.startswith(prefix)
        }
        self.set_random_state(states)

    def set_random_state(self, states: Mapping[str, torch.Tensor]) -> None:
        """Put this rank's generators where they were when `random_state` returned `states`."""
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self._world.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self._world.device)

    def random_state(self) -> dict[str, torch.Tensor]:
        """Return the states of this rank's generators."""
        states = {"cpu": torch.get_rng_state()}
        if self._world.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._world.device)
        return states

    def finish(self) -> str | None:
        """Wait until the run's copy is complete; returns what went wrong with it, on every rank."""
        if self._run.sync_to is None:
            return None
        if self._mirror is not None and not self._mirror.wait(_PATIENCE_SECONDS):
            logger.info("waiting for the copy to %s", self._mirror.url)
        # Short waits: the others must not run into the time limit of a collective.
        while not self._world.broadcast(self._mirror is None or self._mirror.wait(_PATIENCE_SECONDS)):
            pass
        failure: str | None = self._world.broadcast(None if self._mirror is None else self._mirror.failure)
        return failure

    def close(self) -> None:
        """After a failure, give the copy under way a moment; a launcher kills the last ranks after half a minute."""
        if self._mirror is not None and not self._mirror.wait(_LAST_WAIT_SECONDS):
            logger.warning("the newest checkpoint may not have reached %s", self._mirror.url)

    def copy_what_is_missing(self) -> None:
        """Copy the restored checkpoint, if an earlier process could not."""
        mirror = self._mirror
        if self._run.sync_to is None or self.saved_step < 0:
            return
        if self._world.run_on_main(lambda: self.saved_step > mirror.newest_step() if mirror else False):
            self._copy(self.saved_step)

    def copy_again(self) -> None:
        """Copy what has changed since the last save, on rank 0, if there was one."""
        if self.saved_step >= 0:
            self._copy(self.saved_step)

    def _copy(self, step: int) -> None:
        if self._mirror is None:
            return
        try:
            self._mirror.offer(self._run.path, step)
        except OSError as error:
            self._mirror.failure = str(error)
            logger.warning("the checkpoint of step %d was not copied (%s)", step, error)

    def save(
        self, step: int, *, counters: Mapping[str, Any], required: bool, best: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Write the task's artifacts and commit a checkpoint of `step`.

        Args:
            step: Optimizer steps completed.
            counters: JSON-able state of the loop; `evaluation`, the latest metrics, goes to the artifacts too.
            best: Rank 0: weights of the evaluation in `counters["best"]`, which then make the artifacts.
            required: No further attempt will follow: fail at once.
        Raises:
            RunFailed: weights are not finite, or saving failed twice in a row; older checkpoints are intact.
        """
        state = gather_state(self._engine)
        random_states = self._world.gather(self.random_state())
        record = {
            "data": self._task.data.state(step),
            **counters,
            MICRO_BATCH: self._task.data.plan.micro_batch_size,
            "world_size": self._world.world_size,
            "zero_stage": self._engine.zero_stage,
            "precision": self._engine.precision,
            "versions": versions(),
        }
        failure = self._world.run_on_main(lambda: self._write(step, state, random_states, record, best))
        if failure is None:
            self.saved_step, self._failed_saves = step, 0
            return
        self._failed_saves += 1
        if required or self._failed_saves >= MAX_FAILED_SAVES:
            raise RunFailed(f"checkpoint at step {step} failed ({failure}); make room and run the same command")
        if self._world.is_main:
            logger.warning("checkpoint at step %d failed (%s); training goes on", step, failure)

    def _write(
        self,
        step: int,
        state: PortableState | None,
        random_states: list[dict[str, torch.Tensor]],
        record: dict[str, Any],
        best: Mapping[str, torch.Tensor] | None,
    ) -> str | None:
        """Rank 0: write everything; returns what went wrong with the disk, if anything did."""
        assert state is not None
        if not state.is_finite():
            raise RunFailed(f"weights at step {step} are not finite and were not saved; resume from the last save")
        rng = {f"rank{rank}/{name}": value for rank, entry in enumerate(random_states) for name, value in entry.items()}
        try:
            # First, so that a run killed in between makes them again; after the last commit nothing would.
            if best is None:
                self._task.save_artifacts(state.weights_in_use(), self._run.path, step, record["evaluation"])
            else:
                chosen = record["best"]
                self._task.save_artifacts(dict(best), self._run.path, chosen["step"], chosen["metrics"])
            save_checkpoint(
                self._run.checkpoints,
                step=step,
                state=state,
                rng=rng,
                record=record,
                keep=self._config.keep,
                keep_every=self._config.keep_every_steps,
                best=best,
            )
        except OSError as error:
            return str(error)
        self._copy(step)
        return None


def check_shapes(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Refuse a checkpoint of a model of another shape; before the model is partitioned."""
    present = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    with checkpoint.reader("model") as reader:
        saved = {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}
    names = [name for name in {**saved, **present} if saved.get(name) != present.get(name)]
    if names:
        first = names[0]
        raise InputError(
            f"{checkpoint.path} is of a model of another shape: {len(names)} tensors differ, such as {first} "
            f"({saved.get(first, 'absent')} there, {present.get(first, 'absent')} here); use the settings it was "
            "trained with, or start a new run"
        )


def check_record(checkpoint: Checkpoint) -> None:
    """Refuse a record that the loop could not go on from; one of before, which has no hash, may have been edited."""
    record, numbers = checkpoint.record, []
    with reading(checkpoint.path / COMMIT, way_out="delete this checkpoint to go on from the one before"):
        _ = record["data"].keys()
        best = record.get("best") or {"step": 0, "evals_since": 0, "metrics": {}}
        numbers += [
            record["world_size"],
            record.get(MICRO_BATCH, 1),
            record["nonfinite"]["total"],
            *record["nonfinite"]["recent"],
        ]
        numbers += [best["step"], best["evals_since"]]
        numbers += dict(record.get("rhythm", {})).values()
        measured = [*record["evaluation"].values(), *best["metrics"].values(), best.get("value")]
        for value in (*numbers, *(value for value in measured if value is not None)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{value!r} is no number")
