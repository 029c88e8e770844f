"""Other commands of beit, asked by `beit report` for what they know how to make."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from beit.common.processes.signals import die_with_parent


def ask_beit(words: Sequence[str]) -> str:
    """Run a `beit` command and return what went wrong, in its own line; empty where nothing did."""
    command = [sys.executable, "-m", "beit.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=die_with_parent)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("beit: ")]
    return lines[-1].removeprefix("beit: ") if lines else f"beit {words[0]} ended with {done.returncode}"
