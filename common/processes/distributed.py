"""Ranks: who this process is, and the few collectives the trainings need on plain numbers and objects.

Control values (stop flags, metrics, objects) travel over gloo between host memories, so that they never wait for the
device. Gradients and parameters are DeepSpeed's business (`common/training/engine.py`). How ranks are started is
`launch.py`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from beit.common.errors import InputError
from beit.common.processes.cores import available_cores, cores_per_rank, keep_freed_memory
from beit.common.processes.launcher_env import launcher_environment
from beit.common.processes.rendezvous import meet

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

INIT_TIMEOUT_SECONDS = 600.0
"""Of collectives until training starts, while ranks open their data; see `World.shorten_timeouts`."""


_is_apart = False


@contextmanager
def apart() -> Iterator[None]:
    """Let forward passes inside the block wait for no other rank: they try whether something fits, and some may not."""
    global _is_apart
    before, _is_apart = _is_apart, True
    try:
        yield
    finally:
        _is_apart = before


def ranks_together() -> int:
    """Return how many ranks compute what is computed now, for layers that look across them; 0 inside `apart`."""
    if _is_apart:
        return 0
    return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The ranks of this run and this process's place among them."""

    rank: int
    """Of this process, over all machines."""
    local_rank: int
    """Of this process on its machine."""
    world_size: int
    """Number of ranks."""
    device: torch.device
    """Where this rank computes."""
    timeout_seconds: float = 300.0
    """How long a collective may wait once training runs."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and logs."""
        return self.rank == 0

    def shorten_timeouts(self) -> None:
        """Let collectives of every group, DeepSpeed's too, fail after `timeout_seconds`; call when training starts.

        Before that ranks may open their data minutes apart; afterwards a silent rank is a dead one.
        """
        if self.world_size > 1:
            for group in dist.distributed_c10d._world.pg_map:
                dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self.timeout_seconds), group)

    def announce(self) -> None:
        """Log how many ranks there are and what they compute on, among the first lines of a run; all ranks call it."""
        is_gpu = self.device.type == "cuda"
        mine = torch.cuda.get_device_name(self.device) if is_gpu else "CPU"
        seen: list[tuple[str, str]] = self.gather((socket.gethostname(), mine))
        machines, kinds = len({host for host, _ in seen}), ", ".join(sorted({kind for _, kind in seen}))
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        where = "this machine" if machines == 1 else f"{machines} machines"
        cores = f"{available_cores()} core{'s' * (available_cores() > 1)}"
        devices = f"{self.world_size} GPU{'s' * (self.world_size > 1)} of {where} ({kinds})"
        if self.is_main:
            logger.info("%s on %s", ranks, devices if is_gpu else f"the CPU of {where} ({cores})")

    def max_of(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise maximum over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def sum_of(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def mean_of(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise mean over all ranks, in float64."""
        return [value / self.world_size for value in self.sum_of(values)]

    def _reduce(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation)
        return [float(value) for value in tensor.tolist()]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the element-wise sum over all ranks of a tensor on this rank's device; the same bits on every rank."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's `value` (any picklable object) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, work: Callable[[], Result]) -> Result:
        """Run `work` on rank 0 only and return its result everywhere; its exception, too, is raised everywhere.

        Without the second half, a failure of rank 0 would leave the other ranks waiting for it.
        """
        if self.world_size == 1:
            return work()
        outcome: Any = None
        if self.is_main:
            try:
                outcome = None, work()
            except Exception as error:
                outcome = error, None
        shared: tuple[Exception | None, Result] = self.broadcast(outcome)
        failure, result = shared
        if failure is not None:
            raise failure
        return result


def init_distributed(*, timeout_seconds: float = 300.0, meeting_timeout_seconds: float = 120.0) -> World:
    """Join the ranks that a launcher started, or be the only rank; idempotent.

    Args:
        timeout_seconds: See `World`.
        meeting_timeout_seconds: How long to wait for ranks that have not come.
    Raises:
        InputError: what the launcher says cannot be, or not all ranks came.
        ResumableStop: asked to stop while waiting for them.
    """
    environment = launcher_environment(os.environ)
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    # Some launchers number ranks only globally.
    local_rank = int(environment["LOCAL_RANK"] or rank % max(1, torch.cuda.device_count()))
    # DeepSpeed insists on this one. The others are not set: a lone process must not pass for a rank to what it starts.
    os.environ["LOCAL_RANK"] = str(local_rank)
    device = _device(local_rank)
    if device.type == "cpu":
        prepare_cpu(world_size)
    if not dist.is_initialized():
        # Given here, not to DeepSpeed, which would ask mpi4py where no launcher set the variables, and whose own limits
        # for a rank that is missing have changed from version to version.
        address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        store: Store = HashStore()
        if world_size > 1:
            patience = meeting_timeout_seconds
            store = meet(rank=rank, world_size=world_size, address=address, port=port, timeout_seconds=patience)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=INIT_TIMEOUT_SECONDS),
        )
    return World(
        rank=rank, local_rank=local_rank, world_size=world_size, device=device, timeout_seconds=timeout_seconds
    )


def prepare_cpu(world_size: int = 1) -> None:
    """Have torch compute on the CPU with this rank's share of the cores, and keep the memory that it frees."""
    keep_freed_memory()
    # Ranks share the cores, and torch knows of no quota: each taking all of them makes all of them slow.
    share = cores_per_rank(world_size)
    if "OMP_NUM_THREADS" not in os.environ and (world_size > 1 or share < torch.get_num_threads()):
        torch.set_num_threads(share)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"local rank {local_rank} has no GPU of its own ({torch.cuda.device_count()} visible); "
            "start at most one rank per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
