"""A part of an examination in a process of its own: what may hang or crash there takes nothing else with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.errors import RunFailed
from beit.common.processes.cores import available_cores
from beit.common.processes.safe_path import safe_path
from beit.common.processes.signals import die_with_parent

_LINE_CHARS, _END_SECONDS = 300, 5.0
_MOST_CROWDED = 4.0
_ERROR = re.compile(r"^(\[rank \d+\] )?[\w.]+(Error|Exception)\b")
"""The last line of a traceback."""


class SlowAnswer(RunFailed):
    """What was asked has not answered in time: it hangs, or other work keeps it from the processor or the disk."""


class Child:
    """A module of this package that runs beside this process and prints one JSON object as its last line.

    Args:
        process: Started, with its standard output and error in two files.
        output: What it prints.
        errors: What goes wrong.
        timeout_seconds: After which it is given up; longer where its cores have other work to do.
    """

    def __init__(self, process: subprocess.Popen[bytes], output: Any, errors: Any, timeout_seconds: float) -> None:
        self._process, self._output, self._errors = process, output, errors
        self._began, self._timeout_seconds, self._crowd = time.monotonic(), timeout_seconds, crowd()

    def result(self) -> dict[str, Any]:
        """Wait for the end and return what it printed.

        Raises:
            SlowAnswer: it took too long.
            RunFailed: it failed or was killed; the message is its last line.
        """
        code = self._wait()
        if code is None:
            raise SlowAnswer(f"no answer in {time.monotonic() - self._began:.0f} s{self._said()}")
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            raise RunFailed(f"killed by {name}{self._said()}")
        if code > 0:
            raise RunFailed(self._said().removeprefix(": ") or f"ended with code {code}")
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    def _wait(self) -> int | None:
        """Return its exit code; None where there is none when its time is up."""
        for _ in range(2):  # the load is a mean over a minute: what came with this examination is seen only afterwards
            left = self._began + self._timeout_seconds * self._crowd - time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(max(0.0, left))
            self._crowd = max(self._crowd, crowd())
        return None

    def end(self) -> None:
        """See to it that neither it nor what it started is left."""
        with suppress(psutil.Error):
            first = psutil.Process(self._process.pid)
            tree = [*first.children(recursive=True), first]
            for process in tree:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(tree, timeout=_END_SECONDS)
        self._process.wait()

    def _said(self) -> str:
        """Return what it said last, and before that the last error of Python, which may be why."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.search(line)]
        said = list(dict.fromkeys([*errors[-1:], *lines[-1:]]))
        return "".join(f": {line.removeprefix('beit: ')[:_LINE_CHARS]}" for line in said)


def crowd() -> float:
    """Return how many processes want each core of this machine, from 1 to 4: so much longer may everything take."""
    # A container with few cores is told the load of all of its machine's; hence the limit.
    load = os.getloadavg()[0] / available_cores() if hasattr(os, "getloadavg") else 1.0
    return min(_MOST_CROWDED, max(1.0, load))


@contextmanager
def child(
    module: str, *arguments: str, timeout_seconds: float, variables: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Start a module beside this process; when the block ends, so does it.

    Args:
        module: Full name.
        arguments: Its arguments.
        timeout_seconds: After which it is given up; longer where its cores have other work to do.
        variables: Of its environment, besides those of this process.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, safe_path():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, **(variables or {})},
            preexec_fn=die_with_parent,  # before it imports anything, which takes seconds
        )
        started = Child(process, output, errors, timeout_seconds)
        try:
            yield started
        finally:
            started.end()
