"""Starting ranks through DeepSpeed's launcher, and what comes of them: one exit code, one error line, no orphans.

This is the launching command's side: on one machine here, on several in `cluster.py`, which runs `launch_machine` on
each of them. The processes are `rank_group.py`, what the ranks tell is `rank_reports.py`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from beit.common.errors import require
from beit.common.processes.cores import available_cores
from beit.common.processes.one_machine import Cluster, _visible_gpus, launch_machine

logger = logging.getLogger(__name__)


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
    visible, listed = check_ranks(num_ranks)
    return [*listed[:num_ranks]] if visible and listed else [*range(num_ranks)]


def check_ranks(num_ranks: int) -> tuple[int, list[str]]:
    """Refuse or warn of more ranks than this machine has devices; called before they are started.

    Returns:
        The number of GPUs that torch sees, and the names in CUDA_VISIBLE_DEVICES.
    """
    visible, named = _visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    # -1 is how people say none.
    listed = [name for name in map(str.strip, named.split(",")) if name and name != "-1"]
    require(
        not 0 < len(listed) < num_ranks,
        f"--gpus {num_ranks} is more than CUDA_VISIBLE_DEVICES ({named}) names; lower it, or change the variable",
    )
    require(
        not 0 < visible < num_ranks, f"--gpus {num_ranks} is more than the {visible} GPUs of this machine; lower it"
    )
    if not visible and num_ranks > available_cores():
        logger.warning(
            "--gpus %d: there is no GPU here that torch sees, so %d ranks share the %d cores of this machine",
            *(num_ranks, num_ranks, available_cores()),
        )
    return visible, listed
