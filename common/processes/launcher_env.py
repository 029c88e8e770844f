"""What launchers tell a rank through environment variables; torch-free, so that commands can ask at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from beit.common.errors import InputError


def under_launcher(variables: Mapping[str, str] = os.environ) -> bool:
    """True when some launcher started this process as one of its ranks, so that nothing is to be launched again."""
    return ("RANK" in variables and "WORLD_SIZE" in variables) or under_slurm(variables)


def launched_rank() -> int | None:
    """Return this process's rank under a launcher, as far as its variables tell at once; None for no launcher."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", ""))
    return int(rank) if rank.isdigit() else None


def launcher_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT from a launcher's variables.

    torchrun, deepspeed and Kubernetes operators set them; under SLURM's srun they are derived; otherwise this process
    is the only rank and meets nobody.
    """
    if "RANK" in variables and "WORLD_SIZE" in variables:
        names = {"LOCAL_RANK": "", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        names |= {name: variables[name] for name in ("RANK", "WORLD_SIZE", *names) if name in variables}
    elif under_slurm(variables):
        names = _slurm_environment(variables)
    else:
        names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        if not names[name].isdigit():
            raise InputError(f"environment variable {name} ({names[name]!r}) must be a number; check the launcher")
    if int(names["RANK"]) >= int(names["WORLD_SIZE"]):
        raise InputError(f"RANK ({names['RANK']}) must be below WORLD_SIZE ({names['WORLD_SIZE']}); check the launcher")
    return names


def under_slurm(variables: Mapping[str, str]) -> bool:
    """True for a task of an srun step; a batch script's own shell has no step task count."""
    return "SLURM_PROCID" in variables and "SLURM_STEP_NUM_TASKS" in variables


def _slurm_environment(variables: Mapping[str, str]) -> dict[str, str]:
    nodes = variables.get("SLURM_STEP_NODELIST", variables.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    # "gpu[003-007,9],cpu1" starts at gpu003.
    first = re.sub(r"\[(\w+)[^\]]*\].*", r"\1", nodes).partition(",")[0]
    job = int(variables.get("SLURM_JOB_ID", "0"))
    return {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": variables.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": variables.get("MASTER_ADDR", first),
        # The same on every task, and different for two jobs that share a machine.
        "MASTER_PORT": variables.get("MASTER_PORT", str(20000 + job % 20000)),
    }
