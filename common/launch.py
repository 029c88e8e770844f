"""Starting ranks through DeepSpeed's launcher, and what comes of them: one exit code, one error line, no orphans.

DeepSpeed's launcher leaves its ranks running when it is terminated, and reports success when its per-machine part is
killed. So the ranks of this machine report how they ended in a directory of the launching command, which waits for every
one of them, passes signals on to the ranks alone, and takes their word over the launcher's.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from beit.common.errors import InputError
from beit.common.files import write_json
from beit.common.network import free_port, under_slurm
from beit.common.signals import LAUNCHER_PID_VARIABLE

logger = logging.getLogger(__name__)

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 1, 2, 75
REPORTS_VARIABLE = "BEIT_RANK_REPORTS"
"""Directory in which each rank started by this module leaves its report."""
GRACE_SECONDS = 60.0
"""From the end of the launcher to killing ranks that still run; a large checkpoint must fit in."""
_POLL_SECONDS = 0.1


def under_launcher() -> bool:
    """True when some launcher started this process as one of its ranks, so that nothing is to be launched again."""
    return ("RANK" in os.environ and "WORLD_SIZE" in os.environ) or under_slurm(os.environ)


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
        InputError: the hostfile is missing, or more ranks are asked for than there are GPUs.
    """
    _check_request(gpus, hostfile)
    with tempfile.TemporaryDirectory(prefix="beit-ranks-") as reports:
        # On other machines the directory does not exist: there the launcher's own exit code has to do.
        variables = {"PYTHONSAFEPATH": "1", LAUNCHER_PID_VARIABLE: str(os.getpid())}
        if hostfile is None:
            variables[REPORTS_VARIABLE] = reports
        command = _command(gpus, hostfile, [*(sys.argv[1:] if argv is None else argv)], module)
        # A session of its own, so that Ctrl-C in a terminal reaches the ranks once, through this process.
        process = subprocess.Popen(command, env=_environment(variables), start_new_session=True)
        try:
            with _forwarding_signals(process.pid):
                code = process.wait()
                _wait_for_group(process.pid)
        finally:
            _signal_group(process.pid, signal.SIGKILL)
        if hostfile is not None:
            return code if code >= 0 else EXIT_FAILED
        return _judge(Path(reports), num_ranks=gpus or 1)


def record_exit(code: int, message: str = "") -> bool:
    """Tell the launching command how this rank ended; call it last, with the line an error would print.

    Returns:
        Whether this process should print the line itself: not when the launching command will, nor on rank 1 and up.
    """
    reports = os.environ.get(REPORTS_VARIABLE)
    if reports is None or not Path(reports).is_dir():
        return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    write_json(Path(reports) / f"{os.environ['RANK']}.json", {"code": code, "message": message})
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Report:
    """How one rank ended."""

    rank: int
    code: int
    message: str


def _judge(directory: Path, *, num_ranks: int) -> int:
    """Turn the ranks' reports into one exit code, and log what they had to say, each line once."""
    reports = [_read_report(directory / f"{rank}.json", rank) for rank in range(num_ranks)]
    for message in dict.fromkeys(report.message for report in reports if report and report.message):
        logger.error("beit: %s", message)
    silent = [str(rank) for rank, report in enumerate(reports) if report is None]
    codes = {report.code for report in reports if report is not None}
    # Bad input met by one rank ends the others with errors of their own, which say nothing.
    if EXIT_BAD_INPUT in codes:
        return EXIT_BAD_INPUT
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


def _check_request(gpus: int | None, hostfile: str | None) -> None:
    if hostfile is not None and not Path(hostfile).is_file():
        raise InputError(f"--hostfile {hostfile} does not exist; it lists one machine per line, NAME slots=N")
    if hostfile is not None and shutil.which("pdsh") is None:
        raise InputError("--hostfile needs pdsh to start ranks on other machines; install it, or use your cluster's launcher")
    import torch

    visible = torch.cuda.device_count()
    if hostfile is None and visible and gpus is not None and gpus > visible:
        raise InputError(f"--gpus {gpus} is more than the {visible} GPUs of this machine; lower it")


def _command(gpus: int | None, hostfile: str | None, arguments: list[str], module: str) -> list[str]:
    # The module, not the `deepspeed` script, which need not be on PATH.
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--no_local_rank"]
    # Without a hostfile DeepSpeed reads /job/hostfile where it exists; an explicit path that is no file prevents it.
    command += ["--hostfile", hostfile or os.devnull, "--master_port", str(free_port())]
    if gpus is not None:
        command += ["--num_gpus", str(gpus)]
    return [*command, "--module", module, *arguments]


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    import torch

    environment = dict(os.environ) | dict(variables)
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        # Ranks share the cores; each taking all of them makes all of them slow.
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


@contextmanager
def _forwarding_signals(group: int) -> Iterator[None]:
    """Pass stop signals on to the ranks while the block runs."""

    def forward(signum: int, frame: FrameType | None) -> None:
        _signal_ranks(group, signum)

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {signum: signal.signal(signum, forward) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
