"""What `pdsh` does over ssh, on this machine alone: each named machine is a fresh login shell here.

Usage, as far as beit needs it: pdsh -S -f N -w HOST,... COMMAND. Nothing of the caller's environment reaches a login;
output lines carry the machine's name; a dropped connection takes nothing down with it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

LOGIN = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}


def install(folder: Path) -> str:
    """Put it into a folder as `pdsh` and return the PATH that finds it."""
    folder.mkdir(exist_ok=True)
    script = folder / "pdsh"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def substitute(command: str, host: str, number: int) -> str:
    values = {"h": host.rpartition("@")[2], "n": str(number), "u": "me", "%": "%"}
    return re.sub("%([hnu%])", lambda match: values[match[1]], command)


def log_in(host: str, number: int, command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["/bin/sh", "-c", substitute(command, host, number)],
        env=LOGIN,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def show(host: str, process: subprocess.Popen[str]) -> None:
    for line in process.stdout or ():
        sys.stdout.write(f"{host}: {line}")
        sys.stdout.flush()


def main() -> int:
    options, command = sys.argv[1:-1], sys.argv[-1]
    assert options[:4] == ["-S", "-f", "1024", "-w"] and os.environ["PDSH_RCMD_TYPE"] == "ssh"
    hosts = options[4].split(",")
    processes = [log_in(host, number, command) for number, host in enumerate(hosts)]
    threads = [threading.Thread(target=show, args=pair) for pair in zip(hosts, processes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(process.wait() % 256 for process in processes)


if __name__ == "__main__":
    sys.exit(main())
