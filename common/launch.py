"""Starting ranks through DeepSpeed's launcher, and what comes of them: one exit code, one error line, no orphans.

DeepSpeed's launcher leaves its ranks running when it is killed, and its exit code is that of whichever rank it looked
at first. So the ranks of this machine report how they ended in a directory of the launching command, which waits for
every one of them, passes signals on to the ranks alone, and takes their word over the launcher's.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common import launcher_env
from beit.common.errors import InputError
from beit.common.files import write_json
from beit.common.signals import LAUNCHER_PID_VARIABLE, STOP_SIGNALS

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 1, 2, 75
REPORTS_VARIABLE = "BEIT_RANK_REPORTS"
"""Directory in which each rank started by this module leaves its report."""
GRACE_SECONDS = 60.0
"""From the end of the launcher to killing ranks that still run; a large checkpoint must fit in."""
_POLL_SECONDS = 0.1
_LAUNCHER_OPTIONS = ("--log_level", "critical", "--no_local_rank", "--module")


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
    import torch

    visible = torch.cuda.device_count()
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    with tempfile.TemporaryDirectory(prefix="beit-ranks-") as reports:
        variables = {"PYTHONSAFEPATH": "1"} | ({} if visible else {"DS_ACCELERATOR": "cpu"})
        if hostfile is not None:
            command = [*_cluster_command(hostfile, gpus), module, *arguments]
        else:  # on other machines neither the directory nor the process would be found
            command = [*_machine_command(gpus or 1, visible), module, *arguments]
            variables |= {REPORTS_VARIABLE: reports, LAUNCHER_PID_VARIABLE: str(os.getpid())}
        ranks = _RankGroup(module)
        code = ranks.run(command, dict(os.environ) | variables)
        if hostfile is not None:
            return code if code >= 0 else EXIT_FAILED
        return _judge(Path(reports), num_ranks=gpus or 1, asked_to_stop=ranks.asked_to_stop)


def record_exit(code: int, message: str = "") -> bool:
    """Tell the launching command how this rank ended; call it last, with the line an error would print.

    Returns:
        Whether this process should print the line itself: not when the launching command will, nor on rank 1 and up.
    """
    reports = os.environ.get(REPORTS_VARIABLE)
    if reports is None or "RANK" not in os.environ or not Path(reports).is_dir():
        return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    write_json(Path(reports) / f"{os.environ['RANK']}.json", {"code": code, "message": message})
    return False


class _RankGroup:
    """The launcher and the processes below it, one process group.

    Args:
        module: What the ranks run; tells them from the launcher's own processes and from data workers.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._group: int | None = None
        self.asked_to_stop = False

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Start the launcher, pass stop signals on to the ranks, and return its code when all of them have ended."""
        previous = {signum: signal.signal(signum, self._forward) for signum in STOP_SIGNALS}
        try:
            # A session of its own, so that Ctrl-C in a terminal reaches the ranks once, through this process.
            process = subprocess.Popen(command, env=environment, start_new_session=True)
            self._group = process.pid
            if self.asked_to_stop:
                process.terminate()
            code = process.wait()
            self._wait_for_end()
            return code
        finally:
            self._signal(self._members(), signal.SIGKILL)
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _wait_for_end(self) -> None:
        """After the launcher's end, see to it that no rank goes on without it."""
        deadline = time.monotonic() + GRACE_SECONDS
        if self._ranks():
            logger.warning("the launcher ended before its ranks; asking them to stop")
            self._signal(self._ranks(), signal.SIGTERM)
        while self._members() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        # To the ranks alone: DeepSpeed's part on this machine would give them 30 s and then kill them, save or no save.
        self.asked_to_stop = True
        self._signal(self._ranks() or self._members(), signum)

    def _members(self) -> list[psutil.Process]:
        if self._group is None:
            return []
        return [process for process in psutil.process_iter() if _group_of(process) == self._group]

    def _ranks(self) -> list[psutil.Process]:
        return [process for process in self._members() if _arguments(process)[2:4] == ["-m", self._module]]

    def _signal(self, processes: list[psutil.Process], signum: int) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)


def _group_of(process: psutil.Process) -> int | None:
    """Return the process group; None for a process that has ended, though nobody may have asked for its code yet."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class _Report:
    """How one rank ended."""

    rank: int
    code: int
    message: str


def _judge(directory: Path, *, num_ranks: int, asked_to_stop: bool) -> int:
    """Turn the ranks' reports into one exit code, and log what they had to say, each line once."""
    reports = [_read_report(directory / f"{rank}.json", rank) for rank in range(num_ranks)]
    for message in dict.fromkeys(report.message for report in reports if report and report.message):
        logger.error("beit: %s", message)
    silent = [str(rank) for rank, report in enumerate(reports) if report is None]
    codes = {report.code for report in reports if report is not None}
    # Bad input met by one rank ends the others with errors of their own, which say nothing.
    if EXIT_BAD_INPUT in codes:
        return EXIT_BAD_INPUT
    if silent and asked_to_stop and codes <= {EXIT_RESUMABLE}:
        return EXIT_RESUMABLE  # stopped before they could listen; nothing was begun that is not saved
    if silent:
        logger.error("beit: rank %s ended without a word (killed, or out of memory); see above", ", ".join(silent))
        return EXIT_FAILED
    if len(codes) == 1:
        return codes.pop()
    return EXIT_FAILED


def _read_report(file: Path, rank: int) -> _Report | None:
    if not file.exists():
        return None
    content = json.loads(file.read_bytes())
    return _Report(rank=rank, code=content["code"], message=content["message"])


def _machine_command(num_ranks: int, visible: int) -> list[str]:
    """Return DeepSpeed's launcher for this machine, up to the module; it starts one rank per listed device.

    Called without the `deepspeed` runner in front, which would ignore CUDA_VISIBLE_DEVICES here, take seconds more, and
    report success when this part is killed.
    """
    if 0 < visible < num_ranks:
        raise InputError(f"--gpus {num_ranks} is more than the {visible} GPUs of this machine; lower it")
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if visible else []
    devices = listed[:num_ranks] if listed and listed[0] else list(range(num_ranks))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    address = ["--master_addr=127.0.0.1", f"--master_port={launcher_env.free_port()}"]
    return [*_python("deepspeed.launcher.launch"), f"--world_info={world}", *address, *_LAUNCHER_OPTIONS]


def _cluster_command(hostfile: str, gpus: int | None) -> list[str]:
    """Return DeepSpeed's launcher for the machines of a hostfile, up to the module."""
    if not Path(hostfile).is_file():
        raise InputError(f"--hostfile {hostfile} does not exist; it lists one machine per line, NAME slots=N")
    if shutil.which("pdsh") is None:
        raise InputError("--hostfile needs pdsh to reach other machines; install it or use your cluster's launcher")
    limit = [] if gpus is None else ["--num_gpus", str(gpus)]
    return [*_python("deepspeed.launcher.runner"), "--hostfile", hostfile, *limit, *_LAUNCHER_OPTIONS]


def _python(module: str) -> list[str]:
    # Modules, not the `deepspeed` script, which need not be on PATH.
    return [sys.executable, "-u", "-m", module]
