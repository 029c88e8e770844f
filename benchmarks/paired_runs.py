"""What scripts share that compare two starts by many `beit` runs; the runs are `finetune/worth/runner.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from beit.common.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_RESUMABLE, InputError, ResumableStop, RunFailed

STARTS = ("pre-trained", "random")
NAMES = {"pre-trained": "pre-trained without labels", "random": "random weights"}
"""Of the starts, in pictures."""
_CODES = {InputError: EXIT_BAD_INPUT, ResumableStop: EXIT_RESUMABLE, RunFailed: EXIT_FAILED}


def run_script(main: click.Command) -> None:
    """Run a script's command; exit 0 done, 2 wrong input, 75 stopped and resumable, 1 failed."""
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except tuple(_CODES) as error:
        click.echo(f"{Path(sys.argv[0]).name}: {error}", err=True)
        sys.exit(_CODES[type(error)])
