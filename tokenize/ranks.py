"""Several tokenising processes on one machine. They need no collectives, so no launcher: each runs `run_tokenize`.

A rank that fails leaves the others finishing. A stop signal to the parent is passed on, and the death of the parent
stops the ranks.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from beit.common.errors import InputError, ResumableStop, RunFailed, require
from beit.common.processes.launcher_env import launcher_environment, under_launcher
from beit.common.processes.signals import stop_on_signals
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize
from beit.tokenize.setup import check_place
from beit.tokenize.store.documents import open_store_files
from beit.tokenize.summary import TokenizeSummary

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank ended."""

    kind: Literal["done", "bad input", "stopped", "failed", "lost"]
    message: str = ""
    summary: TokenizeSummary | None = None


def run_ranks(config: TokenizeConfig, source: str, store: str | Path, count: int) -> TokenizeSummary:
    """Tokenise with `count` processes and wait for all of them.

    Raises:
        InputError: a rank met bad input.
        ResumableStop: a signal asked to stop.
        ChildProcessError: a rank was killed or crashed; the others went on.
    """
    context = multiprocessing.get_context("spawn")
    ranks: list[tuple[BaseProcess, Connection]] = []
    with stop_on_signals() as stop:
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (config, source, store, rank, count, sender)
            process: BaseProcess = context.Process(target=_rank_main, args=arguments)
            process.start()
            sender.close()
            ranks.append((process, receiver))
        told = False
        while running := [process.sentinel for process, _ in ranks if process.is_alive()]:
            wait(running, timeout=_POLL_SECONDS)
            if stop.is_set() and not told:
                told = True
                for process, _ in ranks:
                    process.terminate()
        outcomes = [_outcome(process, receiver) for process, receiver in ranks]
    _raise_failures(outcomes)
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    last = next((summary for summary in summaries if summary.is_complete), summaries[0])
    return replace(last, reports=tuple(report for summary in summaries for report in summary.reports))


def _rank_main(
    config: TokenizeConfig, source: str, store: str | Path, rank: int, world_size: int, sender: Connection
) -> None:
    # As a launcher would: the rank then ends when its parent does, and shares the cores with the others.
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in places.items()})
    _log_as_rank(rank)
    try:
        summary = run_tokenize(config, source, store, rank=rank, world_size=world_size, local_rank=rank)
        outcome = Outcome("done", summary=summary)
    except InputError as error:
        outcome = Outcome("bad input", str(error))
    except ResumableStop as error:
        outcome = Outcome("stopped", str(error))
    except (OSError, RunFailed) as error:  # a full disk, a lost process: no bug, so no trace
        outcome = Outcome("failed", str(error))
    with suppress(BrokenPipeError):  # the command was killed: nobody is left to hear of it
        sender.send(outcome)
    sender.close()


def _log_as_rank(rank: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))
    root = logging.getLogger("beit")
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _outcome(process: BaseProcess, receiver: Connection) -> Outcome:
    process.join()
    try:
        outcome: Outcome = receiver.recv()
        return outcome
    except EOFError:
        return Outcome("lost", f"exit code {process.exitcode}")


def _raise_failures(outcomes: list[Outcome]) -> None:
    for rank, outcome in enumerate(outcomes):
        if outcome.kind == "bad input":
            raise InputError(outcome.message)
        if outcome.kind in ("lost", "failed"):
            how = outcome.message if outcome.kind == "failed" else f"ended without a result ({outcome.message})"
            is_complete = any(other.kind == "done" for other in outcomes)
            rest = (
                "the others did its shards and the store is complete; beit verify checks it"
                if is_complete
                else "finished shards are kept, run the same command again to do the rest"
            )
            raise ChildProcessError(f"rank {rank} of {len(outcomes)}: {how}; {rest}")
    stopped = next((outcome for outcome in outcomes if outcome.kind == "stopped"), None)
    if stopped is not None:
        raise ResumableStop(stopped.message)


def tokenize_with_ranks(
    config: TokenizeConfig, source: str, store: str | Path, *, ranks: int | None = None, resume: str = "auto"
) -> TokenizeSummary:
    """Tokenise in this process, as the rank a launcher made of it, or with `ranks` processes on this machine.

    Args:
        config: All settings.
        source: Images, in any form `open_source` knows.
        store: Folder to write, or URL.
        ranks: Processes to start; ignored under a launcher.
        resume: "auto" continues a store, "never" refuses to.
    Raises:
        InputError: bad source, settings or store.
        ResumableStop: a signal asked to stop.
    """
    if under_launcher():
        require(resume == "auto", "--resume never has no meaning under a launcher: name a new folder for the store")
        variables = launcher_environment(os.environ)
        rank, world_size, local_rank = (int(variables[name] or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return run_tokenize(config, source, store, rank=rank, world_size=world_size, local_rank=local_rank)
    with open_store_files(store) as files:
        check_place(files, resume=resume)
    if ranks is None or ranks == 1:
        return run_tokenize(config, source, store)
    from beit.tokenize.ranks import run_ranks

    return run_ranks(config, source, store, ranks)
