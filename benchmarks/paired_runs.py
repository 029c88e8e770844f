"""What scripts share that compare two starts by many `beit` runs; the runs are `finetune/worth/runner.py`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from beit.common.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    ResumableStop,
    RunFailed,
    require,
)
from beit.common.runs.outputs import check_output_folder
from beit.common.storage.paths import is_remote

STARTS = ("pre-trained", "random")
NAMES = {"pre-trained": "pre-trained without labels", "random": "random weights"}
"""Of the starts, in pictures."""
_CODES = {InputError: EXIT_BAD_INPUT, ResumableStop: EXIT_RESUMABLE, RunFailed: EXIT_FAILED, OSError: EXIT_FAILED}


def run_script(main: click.Command) -> None:
    """Run a script's command; exit 0 done, 2 wrong input, 75 stopped and resumable, 1 failed. SIGTERM is as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C while nothing watches for it
        click.echo(f"{Path(sys.argv[0]).name}: stopped; start the same command again to go on", err=True)
        sys.exit(EXIT_RESUMABLE)
    except tuple(_CODES) as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error}", err=True)
        sys.exit(next(code for kind, code in _CODES.items() if isinstance(error, kind)))
    finally:
        signal.signal(signal.SIGTERM, before)


def check_paths(out: Path, **inputs: str) -> None:
    """Refuse, before hours of work, an `--out` that cannot be made and inputs, by their options, that are not there."""
    check_output_folder("--out", out)
    for name, given in inputs.items():
        require(
            is_remote(given) or Path(given).exists(),
            f"--{name} {given} does not exist; name labelled images",
        )
