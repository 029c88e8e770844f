"""How the ranks of one machine tell the command that launched them how they ended, and what it makes of that.

Each rank writes its exit code and last message to a file in a directory of the launching command; all but the first
also write their output there, so that the terminal shows one rank's progress and the others' lines with their number.
A rank that was killed leaves no report, but its last lines.

The directory goes when the launch ends. A launch that was killed cannot remove its own; the next one on the machine
does: whoever launches holds a lock on a file in it, which vanishes with the process however that ends.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from beit.common.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE
from beit.common.processes.launcher_env import launched_rank
from beit.common.storage.documents import write_json
from beit.common.storage.locks import exclusive_lock

logger = logging.getLogger(__name__)

REPORTS_VARIABLE = "BEIT_RANK_REPORTS"
"""Directory in which each rank started by `launch.py` leaves its report."""
LAST_LINES = 20
"""Shown of a rank that failed; a traceback of usual depth fits."""
_TAIL_BYTES = 64 * 1024
_PREFIX, _LOCK = "beit-ranks-", "launch.lock"
_OLD_SECONDS = 60.0
"""Younger folders are left alone: their launch may not hold its lock yet, or its ranks may still have last words."""


@contextmanager
def report_folder() -> Iterator[Path]:
    """Make a folder for the reports of a launch, for the duration of the block; remove those of launches killed."""
    remove_left_behind(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, exclusive_lock(Path(name) / _LOCK):
        yield Path(name)


def remove_left_behind(parent: Path) -> None:
    """Remove the folders of this user's launches that nobody is at work in any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        lock = folder / _LOCK
        try:
            is_old = time.time() - lock.stat().st_mtime > _OLD_SECONDS
            if not is_old or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with exclusive_lock(lock, wait=False):
                shutil.rmtree(folder, ignore_errors=True)  # another launch may be at it
        except OSError:  # no such file: another launch was quicker, or it is none of ours; or somebody holds the lock
            continue


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How one rank ended."""

    rank: int
    code: int
    message: str
    time: float
    """In seconds since the epoch; the first to fail is the one to look at."""


def capture_output() -> None:
    """Send the output of this process to its file, if it is a rank other than the first of such a launch.

    On the level of descriptors, so that libraries, data workers and the interpreter's last words are in it.
    """
    reports = _directory()
    if reports is None or os.environ["RANK"] == "0":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(output_file(reports, int(os.environ["RANK"])), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def record_exit(code: int, message: str = "") -> str:
    """Tell the launching command how this rank ended; call it last, with the line an error would print.

    Returns:
        The line this process should print itself: none when the launching command will. Without one, a rank other
        than the first prints failures only, under its number.
    """
    rank = launched_rank() or 0
    reports = _directory()
    if reports is not None:
        write_json(reports / f"{rank}.json", {"code": code, "message": message, "time": time.time()})
        return ""
    if not rank or not message:
        return message
    return f"rank {rank}: {message}" if code in (EXIT_FAILED, EXIT_BAD_INPUT) else ""


def output_file(reports: Path, rank: int) -> Path:
    """Return the file that the output of a rank goes to."""
    return reports / f"{rank}.log"


def _directory() -> Path | None:
    name = os.environ.get(REPORTS_VARIABLE)
    return Path(name) if name and "RANK" in os.environ and Path(name).is_dir() else None


class OutputFollower:
    """Shows what ranks other than the first write, line by line and with their number, on standard error."""

    def __init__(self, reports: Path, ranks: Iterable[int]) -> None:
        self._files = {rank: output_file(reports, rank) for rank in ranks}
        self._offsets = dict.fromkeys(self._files, 0)

    def show(self, *, is_end: bool = False) -> None:
        """Show the whole lines since the last call; at the end also one that was cut short."""
        for rank, path in self._files.items():
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._offsets[rank])
                data = file.read()
            whole = len(data) if is_end else data.rfind(b"\n") + 1
            self._offsets[rank] += whole
            for line in data[:whole].decode(errors="replace").splitlines():
                if line:
                    sys.stderr.write(f"[rank {rank}] {line}\n")
        sys.stderr.flush()


def judge(reports: Path, ranks: range, *, asked_to_stop: bool, launcher_code: int) -> int:
    """Turn the ranks' reports into one exit code, the worst of them, and log what they had to say, the cause last.

    Ranks that are asked to stop before they begin just vanish. The exit code of DeepSpeed's launcher tells the signal a
    rank died of.
    """
    files = {rank: reports / f"{rank}.json" for rank in ranks}
    found = [Report(rank=rank, **json.loads(file.read_bytes())) for rank, file in files.items() if file.exists()]
    silent = [rank for rank in ranks if rank not in {report.rank for report in found}]
    codes = {report.code for report in found}
    # Bad input met by one rank ends the others with errors of their own, which say nothing.
    if EXIT_BAD_INPUT in codes:
        _log_messages([report for report in found if report.code == EXIT_BAD_INPUT])
        return EXIT_BAD_INPUT
    if silent and asked_to_stop and codes <= {EXIT_RESUMABLE}:
        _log_messages(found[:1])
        return EXIT_RESUMABLE  # stopped before they could listen; nothing was begun that is not saved
    failed = sorted((r for r in found if r.code not in (EXIT_DONE, EXIT_RESUMABLE)), key=attrgetter("time"))
    if failed or silent:
        _log_messages(failed[::-1])
        is_unanimous = len(failed) == len(ranks) and len({report.message for report in failed}) == 1
        if not is_unanimous:
            _log_cause(reports, silent, failed, launcher_code)
        return EXIT_FAILED
    is_unanimous = len({report.message for report in found if report.code == EXIT_RESUMABLE}) <= 1
    # What all say, once on all machines together.
    _log_messages([report for report in found if report.rank == 0 or not is_unanimous])
    return max(codes, default=EXIT_DONE)


def _log_cause(reports: Path, silent: list[int], failed: list[Report], launcher_code: int) -> None:
    """Name the ranks that died without a word, or else the first that failed, with their last lines."""
    for rank in silent or [failed[0].rank]:
        lines = last_lines(output_file(reports, rank))
        if lines:
            logger.error("beit: last lines of rank %d:\n%s", rank, "\n".join(f"  {line}" for line in lines))
    if silent:
        names = ", ".join(map(str, silent))
        logger.error("beit: rank %s ended without a word (%s)", names, _cause(launcher_code, len(silent)))
    else:
        logger.error("beit: rank %d failed first", failed[0].rank)


def _cause(launcher_code: int, num_silent: int) -> str:
    # The launcher leaves with the negative code of the rank it saw end first, as far as an exit code can hold it.
    signum = 256 - launcher_code
    if num_silent == 1 and signum in set(signal.Signals):
        name = signal.Signals(signum).name
        return f"killed by {name}" + (", by somebody or for lack of memory" if name == "SIGKILL" else "")
    return "killed, or out of memory"


def last_lines(path: Path) -> list[str]:
    """Return the last lines of a rank's output; none where it has no file, as the first rank."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]


def _log_messages(reports: list[Report]) -> None:
    """Log each message once; with the rank where not all ranks say the same."""
    messages: dict[str, list[int]] = {}
    for report in reports:
        if report.message:
            messages.setdefault(report.message, []).append(report.rank)
    for message, ranks in messages.items():
        whose = "" if 0 in ranks else f"rank {', '.join(map(str, ranks))}: "
        logger.error("beit: %s%s", whose, message)
