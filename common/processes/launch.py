"""Starting ranks through DeepSpeed's launcher, and what comes of them: one exit code, one error line, no orphans.

This is the launching command's side: on one machine here, on several in `cluster.py`, which runs `launch_machine` on
each of them. The processes are `rank_group.py`, what the ranks tell is `rank_reports.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from beit.common.errors import InputError
from beit.common.processes.one_machine import Cluster, _visible_gpus, launch_machine


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
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if hostfile is not None:
        from beit.common.processes.cluster import launch_cluster

        return launch_cluster(hostfile, gpus=gpus, module=module, arguments=arguments)
    devices = _local_devices(gpus or 1)
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # Served from here: between finding a free port for rank 0 and its listening, another program could take it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    cluster = Cluster(devices={"localhost": devices}, address="127.0.0.1", port=store.port, is_served=True)
    return launch_machine(cluster, "localhost", module=module, arguments=arguments)


def _local_devices(num_ranks: int) -> list[int | str]:
    visible = _visible_gpus()
    if 0 < visible < num_ranks:
        raise InputError(f"--gpus {num_ranks} is more than the {visible} GPUs of this machine; lower it")
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if visible else []
    return [*listed[:num_ranks]] if listed and listed[0] else [*range(num_ranks)]
