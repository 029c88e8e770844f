"""The streams of the `beit` command: closed ones, broken ones, terminals, and the log lines that go to them."""

from __future__ import annotations

import importlib.abc
import logging
import os
import select
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from beit.common.processes.launcher_env import launched_rank
from beit.common.processes.signals import LAUNCHER_PID_VARIABLE
from beit.common.progress import LogFormatter, Terminal

logger = logging.getLogger(__name__)


def set_up_streams() -> None:
    """Make standard output and error fit to be written to, whatever the shell gave, and send log lines there."""
    if sys.stdout.isatty():
        sys.stdout = Terminal(sys.stdout)  # type: ignore[assignment]
    if sys.stderr.isatty():
        sys.stderr = Terminal(sys.stderr)  # type: ignore[assignment]
    _set_up_logging()


def fill_closed_streams() -> None:
    """Open what the shell closed (`>&-`): else the next file that is opened would be taken for the terminal."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8"))


def let_go_of_broken_streams() -> bool:
    """Point output that nobody reads any more at nothing, so that Python does not complain at its exit.

    Returns whether there was any.
    """
    descriptors = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream is not None]
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, 0)
    broken = [descriptor for descriptor, event in poll.poll(0) if event & select.POLLERR]
    for descriptor in broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(broken)


def announce_start(command: str) -> None:
    """Have the first line said before PyTorch is imported, which takes seconds, and only if it is."""
    if "torch" not in sys.modules and LAUNCHER_PID_VARIABLE not in os.environ:  # the launching command says it
        sys.meta_path.insert(0, _StartLine(command))


class _StartLine(importlib.abc.MetaPathFinder):
    """Finds no module, but hears of the first import of one that takes long.

    Every command imports what it needs where it needs it, so no other place knows when that is.
    """

    def __init__(self, command: str) -> None:
        self._command = command

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Say what is being loaded, once; return None, so that the others find it."""
        if fullname == "torch":
            sys.meta_path.remove(self)
            logger.info("beit %s: loading PyTorch", self._command)
        return None


def _set_up_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(message)s"))
    # What all ranks would say, the first one says.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or not launched_rank())
    root = logging.getLogger("beit")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # Warnings of Python, which show a line of somebody's code, too, become lines like all others.
    warnings.formatwarning = _only_the_message
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(handler)


def _only_the_message(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    return f"{category.__name__}: {message}"
