"""What scripts share that compare two starts by many `beit` runs: one script at a time, commands, intervals, cells.

Every run is a `beit` command with a folder of its own, so that a script that was stopped or killed goes on when it is
started again.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from beit.common.errors import InputError, ResumableStop
from beit.common.processes.signals import StopFlag
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.locks import exclusive_lock
from beit.finetune.compare.intervals import Interval, mean_interval

STARTS = ("pre-trained", "random")
NAMES = {"pre-trained": "pre-trained without labels", "random": "random weights"}
"""Of the starts, in pictures."""


def parse_seeds(seeds: str) -> list[int]:
    """Return the numbers of `--seeds`."""
    parts = seeds.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"--seeds {seeds!r} must be numbers, separated by commas, such as 0,1,2")
    return [int(part) for part in parts]


@contextmanager
def claim(out: Path, script: str) -> Iterator[int]:
    """Hold the folder against a second script; runs inherit the lock, so that one that outlives its script keeps it."""
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(exclusive_lock(out / "lock", wait=False))
        except BlockingIOError:
            raise InputError(f"another {script}, or a run that one left behind, is at work in {out}") from None
        yield lock


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """Starts `beit` commands and hands on a request to stop."""

    stop: StopFlag
    """Set by signals."""
    lock: int
    """Descriptor that the commands inherit."""
    threads: int
    """Of each command."""

    def beit(self, *arguments: str | Path) -> None:
        """Run one `beit` command, shown first; what it prints goes to standard error.

        Raises:
            ResumableStop: it was stopped.
            InputError: it failed; its own message was shown.
        """
        words = [str(word) for word in arguments]
        click.echo(f"$ beit {shlex.join(words)}", err=True)
        number = str(self.threads)
        process = subprocess.Popen(
            [sys.executable, "-m", "beit.cli", *words],
            stdout=sys.stderr.fileno(),
            env={**os.environ, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number},
            pass_fds=[self.lock],
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )
        is_told = False
        while process.poll() is None:
            if self.stop.is_set() and not is_told:
                process.send_signal(signal.SIGTERM)
                is_told = True
            try:
                process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                continue
        if self.stop.is_set() or process.returncode == 75:
            raise ResumableStop("stopped; start the same command again to go on")
        if process.returncode:
            raise InputError(f"beit {words[0]} failed with exit code {process.returncode}; see its message above")


@contextmanager
def unless_finished(file: Path, identity: Mapping[str, Any]) -> Iterator[bool]:
    """Yield whether a run is still to be done, and note in `file` that it is when the block ends well.

    Args:
        file: In the folder of the run.
        identity: Everything that decides it.

    Raises:
        InputError: the finished one had another identity.
    """
    if file.exists():
        if read_json(file)["identity"] != identity:
            raise InputError(
                f"{file.parent} was made with other settings or another encoder; name another --out, or remove it"
            )
        yield False
        return
    started = time.monotonic()
    yield True
    write_json(file, {"identity": identity, "seconds": time.monotonic() - started})


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


def run_script(main: click.Command) -> None:
    """Run a script's command; exit 0 done, 2 wrong input, 75 stopped and resumable."""
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, ResumableStop) as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error}", err=True)
        sys.exit(2 if isinstance(error, InputError) else 75)
