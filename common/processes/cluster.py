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
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE, InputError
from beit.common.processes.one_machine import Cluster, launch_machine
from beit.common.processes.rank_group import arguments_of
from beit.common.processes.rank_reports import REPORTS_VARIABLE
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE, die_with_parent, stop_signals_go_to

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
    """Run a module on all machines of a hostfile and return the worst exit code; `gpus` ranks each, or its slots."""
    slots = read_hostfile(Path(hostfile))
    if shutil.which("pdsh") is None:
        raise InputError("--hostfile needs pdsh to reach other machines; install it or use your cluster's launcher")
    for machine, number in slots.items():
        if gpus is not None and gpus > number:
            raise InputError(f"--gpus {gpus} is more than the {number} slots of {machine} in {hostfile}; lower it")
    machines = {machine.rpartition("@")[2]: [*range(gpus or number)] for machine, number in slots.items()}
    order = {
        "run": secrets.token_hex(8),
        "cluster": {"devices": machines, "address": _meeting_place(next(iter(machines))), "port": _port()},
        "module": module,
        "arguments": [*arguments],
    }
    code = _run_everywhere(list(slots), order)
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
    """Return what the ranks on other machines need of an environment, and what `.deepspeed_env` files add."""
    shared = {name for name in variables if name.startswith(FORWARDED) and name not in _NOT_FORWARDED}
    found = {name: value for name, value in variables.items() if name in shared and "\n" not in value}
    name = variables.get("DS_ENV_FILE", ".deepspeed_env")
    for folder in (Path.home(), Path.cwd()):
        file = folder / name
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            key, separator, value = line.partition("=")
            if separator and key.strip().isidentifier():
                found[key.strip()] = value.strip()
    return found


def _run_everywhere(machines: Sequence[str], order: Mapping[str, Any]) -> int:
    """Have an order (see `_serve`) carried out by pdsh, pass stop signals on, and return the largest exit code."""
    call = ["pdsh", "-S", "-f", _FAN_OUT, "-w", ",".join(machines)]
    environment = {"PDSH_RCMD_TYPE": "ssh", **os.environ}

    def forward(signum: int, frame: FrameType | None) -> None:
        # pdsh itself would only drop the connections.
        stop = _remote("signal", order["run"], str(signum))
        subprocess.Popen([*call, stop], env=environment, start_new_session=True)

    with stop_signals_go_to(forward):
        command = [*call, _command(order, forwarded_variables(os.environ))]
        # When this process is killed, so are the connections, and the machines see that.
        return subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=die_with_parent).wait()


def _command(order: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    """Return the shell command for an order; the shell is replaced, so that nobody sees the variables."""
    exports = [f"export {name}={shlex.quote(value)};" for name, value in variables.items()]
    return f"{_escape(' '.join(exports))} {_remote('serve', json.dumps(order))} %h"


def _remote(*words: str) -> str:
    """Return a shell command that runs this module on another machine, in this folder."""
    command = shlex.join([sys.executable, "-uP", "-m", _MODULE, *words])  # P: nothing from this folder
    return _escape(f"cd {shlex.quote(os.getcwd())} && exec {command}")


def _escape(text: str) -> str:
    return text.replace("%", "%%")  # pdsh replaces %h and the like


def _meeting_place(first: str) -> str:
    """Return where rank 0 listens: on the first machine, under a name that is known on the others, too."""
    if given := os.environ.get("MASTER_ADDR"):
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
    if given.isdigit():
        return int(given)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # free a moment ago
        return int(probe.getsockname()[1])


def _serve(order: str, machine: str) -> int:
    """Run this machine's ranks; the connection that asked for it must stay.

    An order holds "run" (unique: by it the processes of a run are found on a machine), "cluster" (fields of `Cluster`),
    "module" and "arguments" (what the ranks run).
    """
    fields, parent = json.loads(order), os.getppid()
    code = launch_machine(
        Cluster(**fields["cluster"]),
        machine,
        module=fields["module"],
        arguments=fields["arguments"],
        is_orphaned=lambda: os.getppid() != parent,
    )
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
