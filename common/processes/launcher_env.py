"""What launchers tell a rank through environment variables; torch-free, so that commands can ask at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from beit.common.errors import InputError, require
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE

OF_ONE_RANK = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
"""Variables by which a launcher tells one rank its place; none of them is true of ranks that this process starts."""
_WHERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""Where ranks meet if their launcher does not say."""
_FIRST_COUNT = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """Names of the variables by which one kind of launcher tells a rank its place."""

    name: str
    """For messages."""
    rank: str
    world_size: str
    local_rank: str
    local_sizes: tuple[str, ...]
    """Ranks on this machine; the first that is set counts."""

    def is_there(self, variables: Mapping[str, str]) -> bool:
        """True when the variables are those of one of its ranks."""
        return self.rank in variables and self.world_size in variables

    def ranks_here(self, variables: Mapping[str, str]) -> int | None:
        """Return the number of ranks on this machine; None where the launcher does not say."""
        said = next((variables[name] for name in self.local_sizes if name in variables), "")
        count = _FIRST_COUNT.match(said)  # SLURM writes 4(x2),3
        return int(count[0]) if count else None

    @property
    def variables(self) -> str:
        """What says that there are ranks, for messages."""
        return f"{self.rank} and {self.world_size}"


LAUNCHERS = (
    Launcher(
        name="a launcher",  # torchrun, deepspeed, the operators of Kubernetes
        rank="RANK",
        world_size="WORLD_SIZE",
        local_rank="LOCAL_RANK",
        local_sizes=("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    ),
    Launcher(
        name="mpirun",  # of Open MPI
        rank="OMPI_COMM_WORLD_RANK",
        world_size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_sizes=("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    Launcher(
        name="srun",  # a batch script's own shell has no step task count
        rank="SLURM_PROCID",
        world_size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        local_sizes=("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"),
    ),
    Launcher(
        name="mpiexec",  # of MPICH, Intel MPI and their like
        rank="PMI_RANK",
        world_size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_sizes=("MPI_LOCALNRANKS",),
    ),
)
"""All that are known; what stands first is believed first: deepspeed runs below the others, mpirun below srun."""


def find_launcher(variables: Mapping[str, str] = os.environ) -> Launcher | None:
    """Return the launcher that started this process; None when nobody says that it is a rank."""
    return next((launcher for launcher in LAUNCHERS if launcher.is_there(variables)), None)


def under_launcher(variables: Mapping[str, str] = os.environ) -> bool:
    """True when some launcher started this process as one of several ranks, so that nothing is to be launched again.

    One rank of one is none: interactive shells of SLURM and pods of Kubernetes say that of every process.
    """
    launcher = find_launcher(variables)
    return launcher is not None and variables[launcher.world_size] != "1"


def is_to_start_ranks(gpus: int | None, hostfile: str | None, variables: Mapping[str, str] = os.environ) -> bool:
    """Tell whether --gpus or --hostfile ask this process to start ranks, rather than that it is one.

    Raises:
        InputError: a launcher has started ranks, and not those that are asked for.
    """
    if not (gpus or hostfile) or LAUNCHER_PID_VARIABLE in variables:  # the latter: it is one of those asked for
        return False
    launcher = find_launcher(variables)
    if launcher is None or not under_launcher(variables):
        return True
    asked = f"--hostfile {hostfile}" if hostfile else f"--gpus {gpus}"
    here, size = launcher.ranks_here(variables), variables[launcher.world_size]
    if not hostfile and gpus == here:
        return False
    where = "" if here is None else f", {here} of them on this machine"
    raise InputError(
        f"{asked} asks for ranks, but {launcher.variables} say that {launcher.name} has started {size}{where}; have it "
        f"start one per GPU and leave the option out, or unset {launcher.rank} if this is a shell, not a rank"
    )


def launched_rank() -> int | None:
    """Return this process's rank under a launcher, as far as its variables tell at once; None for no launcher.

    RANK alone says nothing: such a process is the only one, and is not to be silent like the second of several.
    """
    launcher = find_launcher()
    rank = os.environ[launcher.rank] if launcher else ""
    return int(rank) if rank.isdigit() else None


def launcher_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from a launcher's variables.

    torchrun, deepspeed and Kubernetes operators set them; under SLURM's srun and MPI's launchers they are derived;
    otherwise this process is the only rank and meets nobody.
    """
    launcher = find_launcher(variables)
    if launcher is None:
        return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    names = {"RANK": variables[launcher.rank], "WORLD_SIZE": variables[launcher.world_size]}
    names["LOCAL_RANK"] = variables.get(launcher.local_rank, "0" if launcher.name == "srun" else "")
    names |= _slurm_meeting_place(variables) if launcher.name == "srun" else _WHERE
    names |= {name: variables[name] for name in _WHERE if name in variables}
    own = {"RANK": launcher.rank, "WORLD_SIZE": launcher.world_size, "MASTER_PORT": "MASTER_PORT"}
    for name, told in own.items():
        if not names[name].isdigit():
            raise InputError(f"environment variable {told} ({names[name]!r}) must be a number; check the launcher")
    rank, size = int(names["RANK"]), int(names["WORLD_SIZE"])
    require(rank < size, f"{launcher.rank} ({rank}) must be below {launcher.world_size} ({size}); check the launcher")
    here = launcher.ranks_here(variables)
    require(
        not launcher.name.startswith("mpi") or "MASTER_ADDR" in variables or here in (size, None),
        f"{launcher.name} started {size} ranks on several machines; set MASTER_ADDR to the address of rank 0's",
    )
    return names


def _slurm_meeting_place(variables: Mapping[str, str]) -> dict[str, str]:
    nodes = variables.get("SLURM_STEP_NODELIST", variables.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    # "gpu[003-007,9],cpu1" starts at gpu003.
    first = re.sub(r"\[(\w+)[^\]]*\].*", r"\1", nodes).partition(",")[0]
    job = int(variables.get("SLURM_JOB_ID", "0"))
    # The port is the same on every task, and different for two jobs that share a machine.
    return {"MASTER_ADDR": first, "MASTER_PORT": str(20000 + job % 20000)}
