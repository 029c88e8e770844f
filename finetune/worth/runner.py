"""What compares starts by many `beit` runs: one comparison at a time in a folder, commands, and what is finished.

Every run is a `beit` command with a folder of its own, so that a comparison that was stopped or killed goes on when it
is started again. `beit worth` is made of this, and so are scripts in benchmarks/.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from beit.common.errors import EXIT_BAD_INPUT, EXIT_RESUMABLE, InputError, ResumableStop, RunFailed, require
from beit.common.processes.signals import StopFlag, die_with_parent
from beit.common.storage.documents import read_json, reading, write_json
from beit.common.storage.locks import exclusive_lock
from beit.finetune.compare.intervals import Interval, mean_interval

_POLL_SECONDS = 0.5
_LAST_BYTES = 4096
"""Of a log, in which its last line is looked for; arbitrary."""


@contextmanager
def claim(out: Path, who: str) -> Iterator[int]:
    """Hold the folder against a second one of `who`; runs inherit the lock: one that outlives its parent keeps it."""
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(exclusive_lock(out / "lock", wait=False))
        except BlockingIOError:
            raise InputError(f"another {who}, or a run that one left behind, is at work in {out}") from None
        yield lock


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """Starts `beit` commands and hands on a request to stop."""

    stop: StopFlag
    """Set by signals."""
    lock: int
    """Descriptor that the commands inherit."""
    threads: int | None
    """Of each command; None leaves that to it."""

    def beit(self, *arguments: str | Path, log: Path | None = None, watch: Callable[[], None] | None = None) -> None:
        """Run one `beit` command.

        Args:
            arguments: Words behind `beit`.
            log: File that the command, and what it prints, are added to; None shows both on standard error.
            watch: Called every now and then while it runs.

        Raises:
            ResumableStop: it was stopped.
            InputError: it refused what it was given.
            RunFailed: it failed otherwise.
        """
        words = [str(word) for word in arguments]
        with ExitStack() as stack:
            out: BinaryIO | int = sys.stderr.fileno()
            if log is None:
                print(f"$ beit {shlex.join(words)}", file=sys.stderr, flush=True)
            else:
                out = stack.enter_context(log.open("ab", buffering=0))
                out.write(f"$ beit {shlex.join(words)}\n".encode())
            code = self._run(words, out, watch)
        if self.stop.is_set() or code == EXIT_RESUMABLE:
            raise ResumableStop("stopped; start the same command again to go on")
        if code:
            said = "" if log is None else _last_line(log)
            why = f": {said}; all it said is in {log}" if said else "; see its message above"
            kind = InputError if code == EXIT_BAD_INPUT else RunFailed
            raise kind(f"beit {_name(words)} failed with exit code {code}{why}")

    def _run(self, words: Sequence[str], out: BinaryIO | int, watch: Callable[[], None] | None) -> int:
        """Run it to its end and return the exit code."""
        threads = {} if self.threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), self.threads)
        process = subprocess.Popen(
            [sys.executable, "-m", "beit.cli", *words],
            stdout=out,
            stderr=out,
            env={**os.environ, **{name: str(number) for name, number in threads.items()}},
            pass_fds=[self.lock],
            start_new_session=True,  # Ctrl-C reaches it once, through us
            preexec_fn=die_with_parent,
        )
        is_told = False
        while process.poll() is None:
            if self.stop.is_set() and not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            if watch is not None:
                watch()
            try:
                process.wait(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        return process.returncode


def _name(words: Sequence[str]) -> str:
    """Return the command of some words, its task included."""
    return " ".join(words[: 2 if words[0] in ("finetune", "show", "tokenizer") else 1])


def _last_line(log: Path) -> str:
    """Return the last line of a log without the name of the program; empty where there is none."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("beit: ") if lines and not lines[-1].startswith("$ ") else ""


@contextmanager
def unless_finished(file: Path, identity: Mapping[str, Any], *, option: str = "--out") -> Iterator[bool]:
    """Yield whether a run is still to be done, and note in `file` that it is when the block ends well.

    Args:
        file: In the folder of the run.
        identity: Everything that decides it.
        option: What names the folder of all runs, for the message.

    Raises:
        InputError: the finished one had another identity.
    """
    if is_finished(file, identity, option=option):
        yield False
        return
    started = time.monotonic()
    yield True
    write_json(file, {"identity": identity, "seconds": time.monotonic() - started})


def is_finished(file: Path, identity: Mapping[str, Any], *, option: str) -> bool:
    """Tell whether a run is finished; one of another identity is refused."""
    if not file.exists():
        return False
    with reading(file):
        is_same = read_json(file)["identity"] == identity
    require(
        is_same,
        f"what {file} notes was made with other settings or another encoder; give those, or name another {option}",
    )
    return True


def parse_seeds(seeds: str) -> list[int]:
    """Return the numbers of `--seeds`."""
    parts = seeds.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"--seeds {seeds!r} must be numbers, separated by commas, such as 0,1,2")
    numbers = [int(part) for part in parts]
    require(len(set(numbers)) == len(numbers), f"--seeds {seeds} names a seed twice, which would count as two")
    return numbers


def interval(values: Sequence[float]) -> dict[str, Any] | None:
    """Return mean and 95 % interval as plain values; None without a value."""
    if not values:
        return None
    found: Interval = mean_interval(values)
    return {"mean": found.mean, "half_width": found.half_width, "num_values": found.num_values}


def cell(value: Mapping[str, Any] | None, unit: str, *, signed: bool = False) -> str:
    """Format a mean with its interval."""
    if value is None:
        return "not run"
    mean = f"{100 * value['mean']:+.1f}" if signed else f"{100 * value['mean']:.1f}"
    return mean + ("" if value["half_width"] is None else f" ± {100 * value['half_width']:.1f}") + unit


def sets(settings: Sequence[str]) -> list[str]:
    """Turn KEY=VALUE items into --set options."""
    return [word for setting in settings for word in ("--set", setting)]
