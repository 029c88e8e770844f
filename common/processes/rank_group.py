"""DeepSpeed's launcher for one machine and the ranks below it: started, signalled, watched, and never left behind.

DeepSpeed's launcher leaves its ranks running when it is killed, and gives them 30 s when it is asked to stop. So
signals go to the ranks alone, and the end of the launcher is not the end of the story.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.processes.signals import stop_signals_go_to
from beit.common.progress import share_terminal

logger = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
"""From the end of the launcher to killing ranks that still run; a large checkpoint must fit in."""
_POLL_SECONDS = 0.1


class RankGroup:
    """The launcher and the processes below it, one process group.

    Args:
        module: What the ranks run; tells them from the launcher's own processes and from data workers.
        follow: Called several times a second while they run.
        is_orphaned: Asked as often; True when whoever started this process is gone, and the ranks should stop.
    """

    def __init__(
        self, module: str, *, follow: Callable[[], None], is_orphaned: Callable[[], bool] = lambda: False
    ) -> None:
        self._module, self._follow, self._is_orphaned = module, follow, is_orphaned
        self._group: int | None = None
        self.asked_to_stop = False
        self._is_in_haste = False
        """Whether somebody pressed Ctrl-C twice."""

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Start the launcher, pass stop signals on to the ranks, and return its code when all of them have ended."""
        share_terminal()  # with the first rank, which draws a bar while the lines of the others are shown here
        with stop_signals_go_to(self._forward), ExitStack() as at_the_end:
            at_the_end.callback(lambda: self._signal(self._members(), signal.SIGKILL))
            # A session of its own, so that Ctrl-C in a terminal reaches the ranks once, through this process.
            process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=_spare_launcher)
            self._group = process.pid
            if self.asked_to_stop:
                process.terminate()
            code = self._watch(process)
            self._wait_for_end()
            return code

    def _watch(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(2 * _POLL_SECONDS)
            self._follow()
            if self._is_in_haste and not self._ranks():  # DeepSpeed's part would look around for another ten seconds
                self._signal(self._members(), signal.SIGKILL)
            if not self.asked_to_stop and self._is_orphaned():
                logger.warning("the command that started this one is gone; asking the ranks to stop")
                self._forward(signal.SIGTERM, None)

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
        self._is_in_haste = self._is_in_haste or (self.asked_to_stop and signum == signal.SIGINT)
        self.asked_to_stop = True
        listeners = self._ranks() or self._members()
        self._signal(listeners, signum)
        self._signal(listeners, signal.SIGCONT)  # one that somebody has stopped hears it then

    def _members(self) -> list[psutil.Process]:
        everybody = [] if self._group is None else psutil.process_iter()
        return [process for process in everybody if _group_of(process) == self._group]

    def _ranks(self) -> list[psutil.Process]:
        return [process for process in self._members() if arguments_of(process)[2:4] == ["-m", self._module]]

    def _signal(self, processes: list[psutil.Process], signum: int) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)


def _spare_launcher() -> None:
    # SLURM sends it to every process of a job; it would end the launcher, which knows nothing of it. Ranks do.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _group_of(process: psutil.Process) -> int | None:
    """Return the process group; None for a process that has ended, though nobody may have asked for its code yet."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


def arguments_of(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty where it has ended or may not be looked at."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
