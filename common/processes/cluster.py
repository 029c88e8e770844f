"""Ranks on several machines: a hostfile, pdsh to reach them, and on each the same launching code as on one.

    python -m beit.common.processes.cluster JSON     what pdsh runs on every machine

DeepSpeed's own runner is not used: it does not quote arguments and variables for the remote shell, takes one fixed
port, runs a hostfile of one machine here instead of there, and leaves what happens to its ranks untold. Its files are
read as it reads them: the hostfile, and `.deepspeed_env` for further variables.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, InputError
from beit.common.processes import launcher_env
from beit.common.processes.one_machine import Cluster, launch_machine
from beit.common.processes.rank_group import arguments_of
from beit.common.processes.rank_reports import REPORTS_VARIABLE
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE, STOP_SIGNALS, die_with_parent

FORWARDED = (
    *("BEIT_", "HF_", "AWS_", "FSSPEC_", "GOOGLE_", "AZURE_", "WANDB_", "MLFLOW_"),
    *("OMP_", "MKL_", "NCCL_", "GLOO_", "TORCH_", "UCX_", "MV2_", "DS_", "PYTHON"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""Beginnings of the environment variables that the ranks on other machines get, too."""
_NOT_FORWARDED = (REPORTS_VARIABLE, LAUNCHER_PID_VARIABLE, "TORCHELASTIC_RUN_ID")
_SLOTS = re.compile(r"(\S+)\s+slots=(\d+)")
_FAN_OUT = "1024"  # pdsh would start the ranks of 32 machines and the others when these have ended
_SEVERITY = {EXIT_DONE: 0, EXIT_RESUMABLE: 101, EXIT_FAILED: 102, EXIT_BAD_INPUT: 103}
"""Exit codes on the way through pdsh, which returns the largest of all machines."""
_MODULE = "beit.common.processes.cluster"


def launch_cluster(hostfile: str, *, gpus: int | None, module: str, arguments: Sequence[str]) -> int:
    """Run a command on all machines of a hostfile and return the worst exit code.

    Args:
        hostfile: Path.
        gpus: Ranks per machine; by default its slots.
        module: What to run.
        arguments: Of the command.
    """
    slots = read_hostfile(Path(hostfile))
    if shutil.which("pdsh") is None:
        raise InputError("--hostfile needs pdsh to reach other machines; install it or use your cluster's launcher")
    for machine, number in slots.items():
        if gpus is not None and gpus > number:
            raise InputError(f"--gpus {gpus} is more than the {number} slots of {machine} in {hostfile}; lower it")
    machines = {_bare(machine): [*range(gpus or number)] for machine, number in slots.items()}
    order = _Order(
        run=secrets.token_hex(8),
        cluster={"devices": machines, "address": _meeting_place(next(iter(machines))), "port": _port()},
        module=module,
        arguments=[*arguments],
    )
    code = _Pdsh(list(slots)).run(order)
    return {severity: code for code, severity in _SEVERITY.items()}.get(code, EXIT_FAILED)


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the slots of each machine of a hostfile in DeepSpeed's format, in its order."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise InputError(f"--hostfile {path} does not exist; it lists one machine per line, NAME slots=N") from None
    slots: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        match = _SLOTS.fullmatch(content)
        if match is None or int(match[2]) < 1 or match[1] in slots:
            raise InputError(f"--hostfile {path}, line {number} ({content!r}) must be NAME slots=N, each name once")
        slots[match[1]] = int(match[2])
    if not slots:
        raise InputError(f"--hostfile {path} lists no machine; write one per line, NAME slots=N")
    return slots


def forwarded_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what the ranks on other machines need of an environment, and what `.deepspeed_env` files add.

    Args:
        variables: Of the launching command.
    """
    found = {
        name: value
        for name, value in variables.items()
        if name.startswith(FORWARDED) and name not in _NOT_FORWARDED and "\n" not in value
    }
    name = variables.get("DS_ENV_FILE", ".deepspeed_env")
    for folder in (Path.home(), Path.cwd()):
        file = folder / name
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            key, separator, value = line.partition("=")
            if separator and key.strip().isidentifier():
                found[key.strip()] = value.strip()
    return found


class _Order(NamedTuple):
    """What a machine is told to do: to run its ranks of a `Cluster`; the name of the run is unique, to find it by."""

    run: str
    cluster: dict[str, Any]
    module: str
    arguments: list[str]

    def command(self, variables: Mapping[str, str]) -> str:
        """Return the shell command that carries it out; the shell is replaced, so that nobody sees the variables."""
        exports = [f"export {name}={shlex.quote(value)};" for name, value in variables.items()]
        return f"{_escape(' '.join(exports))} {_remote('serve', json.dumps(self._asdict()))} %h"


class _Pdsh:
    """pdsh and through it the same command on all machines.

    Args:
        machines: As in the hostfile.
    """

    def __init__(self, machines: list[str]) -> None:
        self._call = ["pdsh", "-S", "-f", _FAN_OUT, "-w", ",".join(machines)]
        self._environment = {"PDSH_RCMD_TYPE": "ssh", **os.environ}
        self._order: _Order | None = None

    def run(self, order: _Order) -> int:
        """Carry out an order everywhere, pass stop signals on, and return the largest exit code."""
        self._order = order
        previous = {signum: signal.signal(signum, self._forward) for signum in STOP_SIGNALS}
        try:
            # When this process is killed, so are the connections, and the machines see that.
            process = subprocess.Popen(
                [*self._call, order.command(forwarded_variables(os.environ))],
                env=self._environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            return process.wait()
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        # pdsh itself would only drop the connections.
        assert self._order is not None
        stop = _remote("signal", self._order.run, str(signum))
        subprocess.Popen([*self._call, stop], env=self._environment, start_new_session=True)


def _remote(*words: str) -> str:
    """Return a shell command that runs this module on another machine, in this folder."""
    command = shlex.join([sys.executable, "-u", "-m", _MODULE, *words])
    return _escape(f"cd {shlex.quote(os.getcwd())} && exec {command}")


def _escape(text: str) -> str:
    return text.replace("%", "%%")  # pdsh replaces %h and the like


def _bare(machine: str) -> str:
    return machine.rpartition("@")[2]


def _meeting_place(first: str) -> str:
    """Return where rank 0 listens: on the first machine, under a name that is known on the others, too."""
    given = os.environ.get("MASTER_ADDR")
    if given:
        return given
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        raise InputError(
            f"the address of {first}, the first machine, is not known here; set MASTER_ADDR to where it can be reached"
        ) from None
    return first


def _port() -> int:
    given = os.environ.get("MASTER_PORT", "")
    return int(given) if given.isdigit() else launcher_env.free_port()


def _serve(order: str, machine: str) -> int:
    """Run this machine's ranks; the connection that asked for it must stay."""
    _, cluster, module, arguments = _Order(**json.loads(order))
    parent = os.getppid()

    def is_orphaned() -> bool:
        return os.getppid() != parent

    code = launch_machine(Cluster(**cluster), machine, module=module, arguments=arguments, is_orphaned=is_orphaned)
    return _SEVERITY.get(code, _SEVERITY[EXIT_FAILED])


def _signal_run(run: str, signum: int) -> int:
    """Send a signal to this machine's part of a run."""
    for process in psutil.process_iter():
        words = arguments_of(process)
        # As words of its own: pdsh and ssh have the whole command in one.
        if words[2:5] == ["-m", _MODULE, "serve"] and json.loads(words[5])["run"] == run:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
    return 0


def main() -> None:
    """Do what pdsh was told to have done on this machine."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    action, *words = sys.argv[1:]
    sys.exit(_serve(*words) if action == "serve" else _signal_run(words[0], int(words[1])))


if __name__ == "__main__":
    main()
