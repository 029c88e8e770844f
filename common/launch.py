"""Starting ranks through DeepSpeed's launcher, and what comes of them: one exit code, one error line, no orphans.

This is the launching command's side: on one machine here, on several in `cluster.py`, which runs `launch_machine` on
each of them. The processes are `rank_group.py`, what the ranks tell is `rank_reports.py`.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit.common import launcher_env
from beit.common.errors import InputError
from beit.common.rank_group import RankGroup
from beit.common.rank_reports import REPORTS_VARIABLE, OutputFollower, judge
from beit.common.signals import LAUNCHER_PID_VARIABLE

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
    """Somebody listens there already; otherwise rank 0 will."""

    def ranks_of(self, machine: str) -> range:
        """Return the ranks of one machine."""
        names = list(self.devices)
        first = sum(len(self.devices[name]) for name in names[: names.index(machine)])
        return range(first, first + len(self.devices[machine]))


def under_launcher() -> bool:
    """True when some launcher started this process as one of its ranks, so that nothing is to be launched again."""
    return launcher_env.under_launcher(os.environ)


def launch_ranks(
    *, gpus: int | None = None, hostfile: str | None = None, argv: Sequence[str] | None = None, module: str = "beit.cli"
) -> int:
    """Run a command as one rank per GPU through DeepSpeed's launcher and wait for all of them.

    Args:
        gpus: Ranks on this machine, or on each machine of the hostfile; without GPUs they run on the CPU.
        hostfile: Machines in DeepSpeed's format, "NAME slots=N" per line; all of them need this code and the files.
        argv: Arguments of the command; by default those of this process.
        module: What to run.
    Returns:
        The exit code of the whole: 0 done, 2 bad input, 75 stopped and resumable, else 1.
    Raises:
        InputError: the hostfile or pdsh is missing, or there are fewer GPUs than asked for.
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if hostfile is not None:
        from beit.common.cluster import launch_cluster

        return launch_cluster(hostfile, gpus=gpus, module=module, arguments=arguments)
    devices = _local_devices(gpus or 1)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # Served from here: between finding a free port for rank 0 and its listening, another program could take it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    cluster = Cluster(devices={"localhost": devices}, address="127.0.0.1", port=store.port, is_served=True)
    return launch_machine(cluster, "localhost", module=module, arguments=arguments)


def launch_machine(
    cluster: Cluster,
    machine: str,
    *,
    module: str,
    arguments: Sequence[str],
    is_orphaned: Callable[[], bool] = lambda: False,
) -> int:
    """Run the ranks of this machine and return the worst of their exit codes.

    Args:
        cluster: All machines.
        machine: The name of this one among them.
        module: What to run.
        arguments: Of the command.
        is_orphaned: See `RankGroup`.
    """
    ranks = cluster.ranks_of(machine)
    with tempfile.TemporaryDirectory(prefix="beit-ranks-") as reports:
        variables = {
            "PYTHONSAFEPATH": "1",
            REPORTS_VARIABLE: reports,
            LAUNCHER_PID_VARIABLE: str(os.getpid()),
            launcher_env.SERVED_VARIABLE: str(cluster.is_served),
            **({} if _visible_gpus() else {"DS_ACCELERATOR": "cpu"}),
        }
        follower = OutputFollower(Path(reports), ranks)
        group = RankGroup(module, follow=follower.show, is_orphaned=is_orphaned)
        code = group.run([*_launcher(cluster, machine), module, *arguments], dict(os.environ) | variables)
        follower.show(is_end=True)
        return judge(Path(reports), ranks, asked_to_stop=group.asked_to_stop, launcher_code=code)


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _local_devices(num_ranks: int) -> list[int | str]:
    visible = _visible_gpus()
    if 0 < visible < num_ranks:
        raise InputError(f"--gpus {num_ranks} is more than the {visible} GPUs of this machine; lower it")
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if visible else []
    return [*listed[:num_ranks]] if listed and listed[0] else [*range(num_ranks)]


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
