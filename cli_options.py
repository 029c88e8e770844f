"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def recipe_options(command: Command) -> Command:
    """Add --recipe and --set."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Change one setting; may be given several times.",
    )(command)
    return click.option("--recipe", metavar="NAME|FILE", help="Start from a shipped recipe or a TOML file.")(command)


def launch_options(command: Command) -> Command:
    """Add --gpus and --hostfile."""
    command = click.option(
        "--hostfile", type=click.Path(), metavar="FILE", help="Machines to use, in DeepSpeed's hostfile format."
    )(command)
    return click.option(
        "--gpus",
        type=click.IntRange(min=1),
        metavar="N",
        help="Ranks to start on this machine; without GPUs they run on the CPU.",
    )(command)


def resume_option(command: Command) -> Command:
    """Add --resume."""
    return click.option(
        "--resume",
        default="auto",
        show_default=True,
        metavar="auto|never|PATH",
        help="Continue from the newest good checkpoint, start anew, or continue from one checkpoint.",
    )(command)


def picture_option(command: Command) -> Command:
    """Add --out, the picture that a command draws; a folder is refused before it is drawn."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        callback=_refuse_folder,
        metavar="F.png",
        help="Picture to write.",
    )(command)


def _refuse_folder(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    from beit.common.errors import require

    require(not value.is_dir(), f"--out {value} is a folder; name a file")
    return value


def long_command_options(command: Command) -> Command:
    """Add what every long command takes: --recipe, --set, --gpus, --hostfile, --resume."""
    return recipe_options(launch_options(resume_option(command)))
