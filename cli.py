"""The `beit` command: a table of names, each loaded only when it runs, and the meaning of exit codes.

The commands themselves stand in each stage's `commands.py`. Nothing here imports torch, so that `beit --help` answers
at once.
"""

from __future__ import annotations

if __name__ == "__main__":  # before anything else is imported, the standard library included
    from beit.common.processes.safe_path import leave_out_current_folder

    leave_out_current_folder()

import atexit
import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple

import click

from beit import __version__
from beit.cli_options import explain_option
from beit.cli_streams import announce_start, fill_closed_streams, let_go_of_broken_streams, set_up_streams
from beit.common.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    ResumableStop,
    RunFailed,
    did_you_mean,
    failed_compilation,
    is_failed_compilation,
    is_lost_rank,
    printable,
)
from beit.common.processes.cores import sleep_while_waiting
from beit.common.processes.launcher_env import launched_rank
from beit.common.processes.safe_path import leave_out_current_folder
from beit.common.processes.shared_memory import raise_file_limit


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
    "predictions": Entry("beit.finetune.commands", "show_predictions_command", "What a model says of images."),
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
        announce_start(name if ctx is None or ctx.parent is None else f"{ctx.info_name} {name}")
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; of one that is not there, say which is meant, also in another group."""
        name = args[0]
        if name not in self.table and not name.startswith("-"):
            ctx.fail(f"no such command: {ctx.command_path} {name}" + did_you_mean(name, *_choices(self.table)))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])


COMMANDS: dict[str, Entry | Section] = {
    "plan": Entry("beit.plan", "plan_command", "What will it take? Time, memory, disk, and what would fail."),
    "sources": Entry(
        "beit.tokenize.commands", "sources_command", "What is there? Formats, sizes, labels, what is unfit."
    ),
    "tokenize": Entry("beit.tokenize.commands", "tokenize_command", "Turn images into a store of visual tokens."),
    "verify": Entry("beit.tokenize.commands", "verify_command", "Check every shard of a token store."),
    "tokenizer": Entry("beit.tokenize.commands", "tokenizer_group", "Train, convert, measure and compare tokenizers."),
    "pretrain": Entry("beit.pretrain.commands", "pretrain_command", "Pre-train a ViT on a token store."),
    "finetune": Entry("beit.finetune.commands", "finetune_command", "Fine-tune an encoder on labelled images."),
    "evaluate": Entry("beit.finetune.commands", "evaluate_command", "Measure a fine-tuned model on labelled images."),
    "predict": Entry("beit.finetune.commands", "predict_command", "Label new images, or each of their pixels."),
    "compare": Entry("beit.finetune.commands", "compare_command", "One table over runs: metric, interval, budget."),
    "worth": Entry(
        "beit.finetune.worth.commands", "worth_command", "Does pre-training pay on your images? One table says."
    ),
    "report": Entry("beit.common.overview.commands", "report_command", "Runs of every kind as one page to send."),
    "import": Entry(
        "beit.finetune.weights.commands", "import_command", "Weights of BEiT, DINO, MAE, DeiT, timm, Hugging Face."
    ),
    "export": Entry("beit.finetune.weights.commands", "export_command", "A model in the form of another project."),
    "show": Section(SHOW, "Draw what a stage made."),
    "doctor": Entry(
        "beit.common.overview.commands", "doctor_command", "Is this machine fit? Is a store, a run or an encoder well?"
    ),
    "demo": Entry("beit.demo", "demo_command", "The whole chain in minutes, on generated images or yours."),
}


_ALSO_CALLED = {
    "pretrain": "pre_train pretraining train mim run_beit_pretraining",
    "finetune classification": "classification classify classifier fine_tune finetuning run_class_finetuning",
    "finetune linear-probe": "linear_probe probe linear linprobe",
    "finetune knn": "knn k_nn neighbours neighbors",
    "evaluate": "eval test validate score",
    "predict": "infer inference label apply",
    "sources": "source survey inspect inventory stats statistics describe info duplicates",
    "tokenize": "tokenise encode pack prepare",
    "tokenizer train": "train_tokenizer dvae",
    "tokenizer report": "tokeniser",
    "import": "load from_pretrained",
    "export": "save convert_to save_pretrained push to_onnx",
    "compare": "table results",
    "report": "summary html page dashboard",
    "plan": "estimate forecast predict_time budget cost dry_run how_long eta",
    "worth": "few_labels ablate benchmark pays",
    "verify": "check audit fsck",
    "doctor": "diagnose health env check_env collect_env ds_report",
    "show views": "view",
    "show learning": "curves learn plot metrics log",
    "show reconstruction": "recon reconstruct",
    "show attention": "attend",
    "show predictions": "prediction overlay overlays",
    "tokenizer convert": "convert",
}
"""Commands by what people call them."""


def _choices(table: Mapping[str, Entry | Section]) -> tuple[list[str], dict[str, str]]:
    """Return the commands that a word in the place of one of `table` may mean, and what other words for them are."""
    inside = {
        word: f"{group} {word}"
        for group, words in {"show": list(SHOW), "tokenizer": [], "finetune": []}.items()
        for word in words
    }
    words = inside | {word: full for full, words in _ALSO_CALLED.items() for word in words.split()}
    if table is SHOW:
        own = {word: full.removeprefix("show ") for word, full in words.items() if full.startswith("show ")}
        return list(SHOW), own
    return [*COMMANDS, *dict.fromkeys(words.values())], words


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


_GO_ON, _BEGIN_AGAIN = "run the same command again to go on", "the same command begins again"
_AGAIN_SECONDS = 0.01
"""Long enough that the callback is over."""
_LINE_BREAK = "\n"  # lines of a rank that failed, where another one reports them


def main() -> None:
    """Run `beit`; exit 0 done, 2 wrong usage or input, 75 stopped and resumable, else 1."""
    leave_out_current_folder()
    sleep_while_waiting()
    fill_closed_streams()
    if launched_rank() is not None:
        from beit.common.processes.rank_reports import capture_output

        capture_output()
    set_up_streams()
    raise_file_limit()
    atexit.register(_heed_signals_no_more)  # the first to be registered is called last
    signal.signal(signal.SIGTERM, _interrupt)
    with interrupts_come_through():
        code, message = _run()
    if launched_rank() is not None:
        from beit.common.processes.rank_reports import record_exit  # only ranks pay for the import

        message = record_exit(code, message)
    if message:
        with suppress(BrokenPipeError):
            click.echo(f"beit: {printable(message, keep=_LINE_BREAK)}", err=True)
    let_go_of_broken_streams()
    atexit.register(_leave_on_signals, code)
    _forget_interrupt()
    sys.exit(code)


def _run() -> tuple[int, str]:
    """Run the command line; return the exit code and the one line that explains it."""
    stdout = sys.stdout
    try:
        result = beit.main(standalone_mode=False)  # an exit code where a command or --help asked for one
    except click.ClickException as error:
        (explain_option(error) if isinstance(error, click.NoSuchOption) else error).show()
        return error.exit_code, ""
    except InputError as error:
        return EXIT_BAD_INPUT, printable(str(error))
    except ResumableStop as stop:
        return EXIT_RESUMABLE, str(stop)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_RESUMABLE, f"interrupted; {_GO_ON if _goes_on(sys.argv[1:]) else _BEGIN_AGAIN}"
    except SystemExit:
        if sys.stdout is stdout:
            raise
        # So click answers any broken pipe. Where it is our output, its reader, such as `head`, has seen enough.
        return (EXIT_DONE, "") if let_go_of_broken_streams() else (EXIT_FAILED, os.strerror(errno.EPIPE))
    except (OSError, RunFailed) as error:  # a full disk, a lost rank: the machine's fault, not a bug
        return EXIT_FAILED, str(error)
    except Exception as error:
        if is_lost_rank(error):
            return EXIT_FAILED, f"another rank is gone or does not answer ({' '.join(str(error).split())[:300]})"
        if is_failed_compilation(error):
            return EXIT_FAILED, failed_compilation(error)
        traceback.print_exc()  # anything else is a bug, and a bug report needs the trace
        # A rank's line is shown by the command that launched it, which cannot show its trace.
        return EXIT_FAILED, f"{type(error).__name__}: {error}" if launched_rank() is not None else ""
    return result if isinstance(result, int) else 0, ""


def _goes_on(words: Sequence[str]) -> bool:
    """Whether a command that is run again goes on where it was; the others are as quick from the beginning."""
    return words[:1] in (["tokenize"], ["pretrain"], ["finetune"], ["import"], ["worth"], ["demo"]) or words[:2] in (
        ["tokenizer", "train"],
        ["tokenizer", "convert"],
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Stop as Ctrl-C does, so that workers, shared memory and half-written files are cleaned up.

    Trainings and tokenisation put their own handlers in place, which save first. A second SIGTERM is not heard:
    launchers send several, and the first has been obeyed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _forget_interrupt() -> None:
    """Have `python -m` end with the exit code, not by SIGINT.

    An interrupt that passes through `exec` of a string, as of every dataclass that is being defined, is remembered by
    Python although it was caught, and ends the process at last. The next string that is run to its end is forgiveness.
    """
    exec("")


def _leave_on_signals(code: int) -> None:
    """Have another Ctrl-C end the process at once, with the exit code that is decided, while it shuts down."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # what cannot be written is told where Python closes them
            stream.flush()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda signum, frame: os._exit(code))


def _heed_signals_no_more() -> None:
    """Let Python take itself apart; a handler would be gone meanwhile, and the signal would decide the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interrupts_come_through() -> Iterator[None]:
    """Send an interrupt again that Python dropped, for the duration of the block.

    One that finds the main thread in a callback of a weak reference or in `__del__` is only told of there, and the
    command goes on. Every import ends with such a callback, so during the thousands that torch begins with a Ctrl-C may
    well meet one.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; it was a SIGTERM
            signal.signal(signal.SIGINT, signal.default_int_handler)
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


if __name__ == "__main__":
    main()
