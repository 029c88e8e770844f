"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from beit.common.errors import nearest

Config = TypeVar("Config")
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


def explain_option(error: click.NoSuchOption) -> click.UsageError:
    """Where an option that is not there is a setting by some name, return an error that says how settings are given."""
    context = error.ctx
    if context is None or not any(parameter.name == "overrides" for parameter in context.command.params):
        return error
    from beit.common.config import MEANT, find_key

    settings = [*MEANT.values(), "data.num_labels", "data.label_fraction", "mask.mode", "objective.kind", "shard_size"]
    own = {option for parameter in context.command.params for option in parameter.opts}
    word = error.option_name.lstrip("-").partition("=")[0]
    key = None if nearest(word, own) is not None else find_key(word, settings)
    if key is None:
        return error
    return click.UsageError(f"no such option: {error.option_name}; is it the setting --set {key}=...?", context)


_DECODING_OPTIONS = {
    "range": ("RULE", "Values that become black and white: dtype, window, 0,4095 or percentile:0.5,99.5."),
    "channels": ("RULE", "rgb, grey, or numbers of bands such as 4,3,2."),
    "alpha": ("drop|white|black|checker", "What lies behind transparent pixels."),
    "frame": ("N|RULE", "Of several pages: first, middle, or a number."),
}


def source_options(command: Command) -> Command:
    """Add what long commands have as settings of sources, from --max-megapixels to --frame; it gets `reading`."""

    @functools.wraps(command)
    def with_settings(*arguments: Any, max_megapixels: float | None, image_member: str | None, **options: Any) -> Any:
        from beit.common.config import config_from_dict
        from beit.common.sources.config import SourceConfig, value_of_option

        texts = {name: options.pop(name) for name in _DECODING_OPTIONS}
        given = {} if max_megapixels is None else {"max_megapixels": max_megapixels}
        given |= {name: value_of_option(text) for name, text in texts.items() if text is not None}
        reading = config_from_dict(SourceConfig, {"image_member": image_member, **given}, origin="options")
        return command(*arguments, reading=reading, **options)

    with_option: Any = with_settings
    for name, (metavar, text) in reversed(_DECODING_OPTIONS.items()):
        with_option = click.option(f"--{name}", name, metavar=metavar, help=text)(with_option)
    with_option = click.option(
        "--image-member", metavar="NAME", help="The image of a sample in tars, such as rgb.png, or of a row in Parquet."
    )(with_option)
    with_option = click.option("--max-megapixels", type=float, metavar="N", help="Skip larger images; 64 by default.")(
        with_option
    )
    return with_option  # type: ignore[no-any-return]


def say_written(*paths: Path | None) -> None:
    """Say which files and folders a command wrote, of those that were asked for; devices are neither."""
    from beit.common.storage.files import is_special

    for path in paths:
        if path is not None and (path.is_dir() or not is_special(path)):
            click.echo(f"wrote {path}")


def picture_option(command: Command) -> Command:
    """Add --out, the picture that a command draws; `check_outputs` is the command's."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        required=True,
        metavar="F.png",
        help="Picture to write.",
    )(command)


@dataclass(frozen=True, kw_only=True, slots=True)
class LongOptions:
    """What every long command takes, and what all of them make of it."""

    recipe: str | None
    """Name or file."""
    overrides: tuple[str, ...]
    """Settings as SECTION.KEY=VALUE."""
    gpus: int | None
    """Ranks to start here."""
    hostfile: str | None
    """Machines to start them on."""
    resume: str
    """auto, never, or a path."""

    @classmethod
    def pop(cls, options: dict[str, Any]) -> LongOptions:
        """Take what belongs here out of the options of a command that has others, too."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})

    def load(self, schema: type[Config], recipes: Path, **dedicated: Any) -> Config:
        """Return the settings; `dedicated` options stand for one each, `__` for the dot in its name, None left out."""
        from beit.common.config import load_config
        from beit.common.runs.idle import warn_of_overruled

        given = [f"{name.replace('__', '.')}={value}" for name, value in dedicated.items() if value is not None]
        config = load_config(schema, recipe=self.recipe, overrides=[*given, *self.overrides], recipe_dir=recipes)
        warn_of_overruled(config, self.overrides)
        return config

    def refuse_code(self, tokenizer: str | None, setting: str, option: str) -> None:
        """Refuse to run the code of a tokenizer whose `setting` a recipe made; by `option` users name it themselves."""
        if tokenizer is None or any(word.startswith(f"{setting}=") for word in self.overrides):
            return
        from beit.common.errors import require
        from beit.common.tokenizers.plugin import is_import_name  # imports torch

        require(
            not is_import_name(tokenizer),
            f"the recipe names tokenizer {tokenizer}, which is code; if you trust it, name it yourself: "
            f"{option}{tokenizer}",
        )

    def start(self, *, num_workers: int) -> None:
        """Start ranks as asked for and leave; in a rank, have its workers' server ready by the time it is imported."""
        start_ranks(self.gpus, self.hostfile)
        if num_workers:
            from beit.common.processes.worker_process import start_worker_server

            start_worker_server()


def start_ranks(gpus: int | None, hostfile: str | None) -> None:
    """Run this command as ranks, if that was asked for, and leave with their exit code; in a rank, go on."""
    from beit.common.processes.launcher_env import is_to_start_ranks

    if is_to_start_ranks(gpus, hostfile):
        from beit.common.processes.launch import launch_ranks

        raise click.exceptions.Exit(launch_ranks(gpus=gpus, hostfile=hostfile))


def long_command_options(command: Command) -> Command:
    """Add what every long command takes, the fields of `LongOptions`: --recipe, --set, --gpus, --hostfile, --resume."""
    return recipe_options(launch_options(resume_option(command)))
