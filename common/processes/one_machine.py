"""Ranks on this machine, through the launcher of DeepSpeed.

Not here: several machines (`cluster.py`) and which of the two a command needs (`launch.py`).
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from beit.common.processes.launcher_env import OF_ONE_RANK
from beit.common.processes.rank_group import RankGroup
from beit.common.processes.rank_reports import REPORTS_VARIABLE, OutputFollower, judge, report_folder
from beit.common.processes.safe_path import SAFE_PATH
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE

_LAUNCHER_OPTIONS = ("--log_level", "critical", "--no_local_rank", "--module")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The machines of a run, as DeepSpeed's launcher wants to know them."""

    devices: dict[str, list[int | str]]
    """Devices to use by machine, in the order of the ranks; without GPUs, one number per rank."""
    address: str
    """Where the ranks meet."""
    port: int
    """And at which port."""
    is_served: bool = False
    """Somebody listens there already, of which torch has a variable of its own; otherwise rank 0 will."""

    def ranks_of(self, machine: str) -> range:
        """Return the ranks of one machine."""
        names = list(self.devices)
        first = sum(len(self.devices[name]) for name in names[: names.index(machine)])
        return range(first, first + len(self.devices[machine]))


def launch_machine(
    cluster: Cluster,
    machine: str,
    *,
    module: str,
    arguments: Sequence[str],
    is_orphaned: Callable[[], bool] = lambda: False,
) -> int:
    """Run a module as the ranks of this machine and return the worst of their exit codes; see also `RankGroup`."""
    ranks = cluster.ranks_of(machine)
    with report_folder() as reports:
        variables = {
            **SAFE_PATH,
            REPORTS_VARIABLE: str(reports),
            LAUNCHER_PID_VARIABLE: str(os.getpid()),
            "TORCHELASTIC_USE_AGENT_STORE": str(cluster.is_served),
            **({} if _visible_gpus() else {"DS_ACCELERATOR": "cpu"}),
        }
        follower = OutputFollower(reports, ranks)
        group = RankGroup(module, follow=follower.show, is_orphaned=is_orphaned)
        # Of ranks that somebody else has numbered; torchrun's words would also be believed by torch.
        stale = {name for name in os.environ if name in OF_ONE_RANK or name.startswith("TORCHELASTIC_")}
        environment = {name: value for name, value in os.environ.items() if name not in stale} | variables
        code = group.run([*_launcher(cluster, machine), module, *arguments], environment)
        follower.show(is_end=True)
        return judge(reports, ranks, asked_to_stop=group.asked_to_stop, launcher_code=code)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _launcher(cluster: Cluster, machine: str) -> list[str]:
    """Return DeepSpeed's launcher for one machine, up to the module; it starts one rank per listed device.

    Called without the `deepspeed` runner in front, which would ignore CUDA_VISIBLE_DEVICES here, take seconds more, and
    report success when this part is killed. As a module: the script need not be on PATH.
    """
    world = base64.urlsafe_b64encode(json.dumps(cluster.devices).encode()).decode()
    return [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={world}",
        f"--node_rank={list(cluster.devices).index(machine)}",
        f"--master_addr={cluster.address}",
        f"--master_port={cluster.port}",
        *_LAUNCHER_OPTIONS,
    ]
