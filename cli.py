"""The `beit` command: a table of names, each loaded only when it runs, and the meaning of exit codes.

The commands themselves stand in each stage's `commands.py`. Nothing here imports torch, so that `beit --help` answers
at once.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, the standard library included
    from beit.common.processes.safe_path import leave_out_current_folder

    leave_out_current_folder()

import errno
import importlib
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, NamedTuple

import click

from beit import __version__
from beit.common.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    ResumableStop,
    RunFailed,
    is_lost_rank,
    printable,
)
from beit.common.processes.launcher_env import launched_rank
from beit.common.processes.safe_path import leave_out_current_folder
from beit.common.processes.shared_memory import raise_file_limit
from beit.common.progress import LogFormatter, Terminal


class Entry(NamedTuple):
    """Where a command lives and what `beit --help` says of it."""

    module: str
    attribute: str
    help: str


class Section(NamedTuple):
    """A group of commands that live in several stages."""

    table: dict[str, Entry]
    help: str


SHOW = {
    "views": Entry(
        "beit.tokenize.commands", "show_views_command", "Images of a store with their crops, views and tokens."
    ),
    "tokens": Entry("beit.tokenize.commands", "show_tokens_command", "What the visual words of a store look like."),
    "masks": Entry("beit.pretrain.commands", "show_masks_command", "What a run hides, and how often each patch."),
    "batch": Entry("beit.pretrain.commands", "show_batch_command", "The samples of any step of a run, built again."),
    "reconstruction": Entry(
        "beit.pretrain.commands", "show_reconstruction_command", "Image, mask, predicted and original tokens, decoded."
    ),
    "learning": Entry("beit.pretrain.commands", "show_learning_command", "How runs learned, one beside the other."),
    "attention": Entry("beit.finetune.commands", "show_attention_command", "Where the heads of an encoder look."),
    "neighbours": Entry("beit.finetune.commands", "show_neighbours_command", "Which images an encoder finds alike."),
}


class LazyGroup(click.Group):
    """A click group over a table of names that imports a command's module only when that command is used."""

    def __init__(self, *args: Any, table: Mapping[str, Entry | Section], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the work, not of the alphabet."""
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one command; None when there is none of that name."""
        if name not in self.table:
            return None
        entry = self.table[name]
        if isinstance(entry, Section):
            return LazyGroup(name, table=entry.table, help=entry.help)
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])


COMMANDS: dict[str, Entry | Section] = {
    "tokenize": Entry("beit.tokenize.commands", "tokenize_command", "Turn images into a store of visual tokens."),
    "verify": Entry("beit.tokenize.commands", "verify_command", "Check every shard of a token store."),
    "tokenizer": Entry("beit.tokenize.commands", "tokenizer_group", "Train, convert, measure and compare tokenizers."),
    "pretrain": Entry("beit.pretrain.commands", "pretrain_command", "Pre-train a ViT on a token store."),
    "finetune": Entry("beit.finetune.commands", "finetune_command", "Fine-tune an encoder on labelled images."),
    "evaluate": Entry("beit.finetune.commands", "evaluate_command", "Measure a fine-tuned model on labelled images."),
    "predict": Entry("beit.finetune.commands", "predict_command", "Label new images with a fine-tuned model."),
    "compare": Entry("beit.finetune.commands", "compare_command", "One table over runs: metric, interval, budget."),
    "import": Entry(
        "beit.finetune.commands", "import_command", "Weights of BEiT, DINO, MAE, DeiT, timm, Hugging Face."
    ),
    "show": Section(SHOW, "Draw what a stage made."),
    "demo": Entry("beit.demo", "demo_command", "The whole chain in minutes, on generated images or yours."),
}


@click.group(
    cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="beit")
def beit() -> None:
    """BEiT: pre-train a vision transformer on your own unlabelled images, then fine-tune it on few labels.

    \b
    Example, three commands from a folder of photos to a model, on a laptop in minutes:
      beit tokenize photos/ store/ --views 32 --img-size 64 --patch-size 8 --materialize
      beit pretrain store/ runs/mini --recipe beit_mini_patch8_64
      beit finetune classification labelled/ runs/flowers --encoder runs/mini/encoder --recipe small_500

    \b
    Or first, on images that beit paints itself:
      beit demo
    """


_LINE_BREAK = "\n"  # lines of a rank that failed, where another one reports them


def main() -> None:
    """Run `beit`; exit 0 done, 2 wrong usage or input, 75 stopped and resumable, else 1."""
    leave_out_current_folder()
    _fill_closed_streams()
    if launched_rank() is not None:
        from beit.common.processes.rank_reports import capture_output

        capture_output()
    _set_up_logging()
    if sys.stdout.isatty():
        sys.stdout = Terminal(sys.stdout)  # type: ignore[assignment]
    raise_file_limit()
    signal.signal(signal.SIGTERM, _interrupt)
    code, message = _run()
    if launched_rank() is not None:
        from beit.common.processes.rank_reports import record_exit  # only ranks pay for the import

        message = record_exit(code, message)
    if message:
        with suppress(BrokenPipeError):
            click.echo(f"beit: {printable(message, keep=_LINE_BREAK)}", err=True)
    _let_go_of_broken_streams()
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Run the command line; return the exit code and the one line that explains it."""
    stdout = sys.stdout
    try:
        result = beit.main(standalone_mode=False)  # an exit code where a command or --help asked for one
    except click.ClickException as error:
        error.show()
        return error.exit_code, ""
    except InputError as error:
        return EXIT_BAD_INPUT, printable(str(error))
    except ResumableStop as stop:
        return EXIT_RESUMABLE, str(stop)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_RESUMABLE, "interrupted; run the same command again to go on"
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # So click answers any broken pipe. Where it is our output, its reader, such as `head`, has seen enough.
        return (EXIT_DONE, "") if _let_go_of_broken_streams() else (EXIT_FAILED, os.strerror(errno.EPIPE))
    except (OSError, RunFailed) as error:  # a full disk, a lost rank: the machine's fault, not a bug
        return EXIT_FAILED, str(error)
    except Exception as error:
        if is_lost_rank(error):
            return EXIT_FAILED, f"another rank is gone or does not answer ({' '.join(str(error).split())[:300]})"
        traceback.print_exc()  # anything else is a bug, and a bug report needs the trace
        # A rank's line is shown by the command that launched it, which cannot show its trace.
        return EXIT_FAILED, f"{type(error).__name__}: {error}" if launched_rank() is not None else ""
    return result if isinstance(result, int) else 0, ""


def _fill_closed_streams() -> None:
    """Open what the shell closed (`>&-`): else the next file that is opened would be taken for the terminal."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDONLY if name == "stdin" else os.O_WRONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", encoding="utf-8"))


def _let_go_of_broken_streams() -> bool:
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


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop as Ctrl-C does, so that workers, shared memory and half-written files are cleaned up.

    Trainings and tokenisation put their own handlers in place, which save first. A second SIGTERM is not heard:
    launchers send several, and the first has been obeyed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _set_up_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(message)s"))
    # What all ranks would say, the first one says.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or not launched_rank())
    root = logging.getLogger("beit")
    root.addHandler(handler)
    root.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
