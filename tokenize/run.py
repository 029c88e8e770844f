"""`beit tokenize`: from a source of images to a finished token store, in one process or in several ranks.

Ranks need no contact with each other: rank r of W takes the shards r, r + W, ..., then those that the others have not
come to; what is done once is done by whoever comes first. All of it is claimed through leases in the store, so
that any number of processes, of any rank, may be at work on one store. A rank that is lost leaves the others finishing,
its shards included; the same command, run again, completes what is left. So several ranks of one machine need no
launcher: they are processes that each call `run_tokenize`. A stop signal to their parent is passed on, and its death
stops them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from beit.common.errors import InputError, ResumableStop, RunFailed, require
from beit.common.processes.cores import available_cores, ranks_here, return_freed_memory
from beit.common.processes.launch import check_ranks
from beit.common.processes.launcher_env import is_to_start_ranks, launcher_environment, under_launcher
from beit.common.processes.safe_path import safe_path
from beit.common.processes.signals import StopFlag, stop_on_signals
from beit.common.progress import LogFormatter, share_terminal
from beit.common.runs.idle import warn_of_idle
from beit.common.shards.schema import IMAGES_DIR, INDEX_FILE, STORE_FILE, ImageShardManifest, StoreInfo, manifest_name
from beit.common.sources.glance.depth import warn_of_range
from beit.common.sources.glance.masks import warn_of_masks
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.tokenize.config import TokenizeConfig, needs
from beit.tokenize.forecast import foretell
from beit.tokenize.jobs import RankJobs, list_jobs
from beit.tokenize.packing.pack import maker_of, pack_images, packed_manifests
from beit.tokenize.parallel import Processes, Workers, worker_processes
from beit.tokenize.plan import StorePlan, plan_store, say_cuts
from beit.tokenize.setup import (
    begin_or_continue,
    build_info,
    check_agreement,
    check_place,
    count_workers,
    recorded_threads,
    set_up_tokenizer,
    torch_threads,
)
from beit.tokenize.shards.crops import CropMaker
from beit.tokenize.shards.encode import ImageMaker, ViewEncoder, ViewMaker
from beit.tokenize.shards.index import FinishedStore, finish_store
from beit.tokenize.shards.shard import ShardTokenizer
from beit.tokenize.store.documents import StoreFiles, open_store_files, stat_if_there
from beit.tokenize.store.leases import Leases
from beit.tokenize.summary import RankReport, TokenizeSummary

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 60.0
"""For a rank to end after it was asked to, or when another one has completed the store."""
_GO_ON = "finished shards are kept, run the same command again to go on"


def tokenize_with_ranks(
    config: TokenizeConfig, source: str, store: str | Path, *, ranks: int | None = None, resume: str = "auto"
) -> TokenizeSummary:
    """Tokenise in this process, as the rank a launcher made of it, or with `ranks` processes on this machine.

    Args:
        config: All settings.
        source: Images, in any form `open_source` knows.
        store: Folder to write, or URL.
        ranks: Processes to start; under a launcher, as many as that has started here.
        resume: "auto" continues a store, "never" refuses to.
    Raises:
        ResumableStop: a signal asked to stop.
    """
    if not is_to_start_ranks(ranks, None) and under_launcher():
        require(resume == "auto", "--resume never has no meaning under a launcher: name a new folder for the store")
        variables = launcher_environment(os.environ)
        rank, world_size, local_rank = (int(variables[name] or 0) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if rank == 0:
            warn_of_idle(config, needs(config))
        return run_tokenize(config, source, store, rank=rank, world_size=world_size, local_rank=local_rank)
    with open_store_files(store) as files:
        check_place(files, resume=resume)
    warn_of_idle(config, needs(config))
    if ranks is None or ranks == 1:
        return run_tokenize(config, source, store)
    if config.device != "cpu":
        check_ranks(ranks)
    return run_ranks(config, source, store, ranks)


def run_tokenize(
    config: TokenizeConfig,
    source: str,
    store: str | Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    local_rank: int = 0,
    tokenizer: ViewEncoder | None = None,
) -> TokenizeSummary:
    """Do one rank's part of a store, and finish the store if this rank is the last.

    Args:
        config: All settings.
        source: Images, in any form `open_source` knows.
        store: Folder to write, or URL; an unfinished store of the same settings is continued.
        rank: Of this process.
        world_size: Number of ranks.
        local_rank: Decides on the GPU.
        tokenizer: Instead of the one that `config.tokenizer` names; needs `vocab_size`, `downsampling`, `fingerprint`.
    Returns:
        What was done; complete if every shard of the store is.
    Raises:
        ResumableStop: a signal asked to stop.
        OSError: the disk is full or failing, or a server stays away.
    """
    budget = 0.0 if config.strict else config.bad_sample_budget
    with open_store_files(store) as files:
        check_place(files)
        stamp_before = stat_if_there(files / INDEX_FILE)
        plan = plan_store(config, source, files.location)
        if rank == 0:
            say_cuts(plan, config)
        expected = foretell(plan, config, files.location, ranks=ranks_here(world_size), speaks=rank == 0)
        threads = config.threads or recorded_threads(files) or available_cores()
        tokenizing = set_up_tokenizer(config, local_rank, threads, tokenizer)
        wanted = build_info(config, plan, tokenizing)
        check_agreement(files, wanted, config)
        # Nothing more that these settings could be refused for.
        for line in expected if rank == 0 else ():
            logger.info("%s", line)
        is_new = not (files / STORE_FILE).exists()
        if rank == 0 and is_new:
            if config.source.decoding.value_range.is_resolved:
                warn_of_range(plan.source, config.source.decoding, num_images=plan.source_info.num_images)
            warn_of_masks(plan.source)
            warn_of_hidden_colours(plan.source, config.source.decoding)
        logger.info("rank %d of %d on %s", rank, world_size, tokenizing.execution.device or "the CPU")
        with (
            stop_on_signals() as stop,
            ExitStack() as after_workers,
            stop.during("the images under way"),
            Workers(count_workers(config), stop) as workers,
            Leases(files.place, workers.raise_if_stopped) as leases,
            torch_threads(threads),
        ):
            info = begin_or_continue(files, wanted, leases, config, plan)
            if rank == 0 and is_new and not config.source.decoding.value_range.is_resolved:  # percentiles are found now
                warn_of_range(plan.source, info.source.decoding, num_images=plan.source_info.num_images)
            # One rank packs while the others on this machine wait, so their cores are free.
            packed = _pack(plan, files, info, config, stop, leases) if plan.catalogue is not None else {}
            jobs = list_jobs(plan, files, info, packed)
            num_blank = sum(manifest.num_blank for manifest in packed.values())
            del plan, packed  # the list of all images may be large
            return_freed_memory()
            maker: ImageMaker = CropMaker.of_store(info) if info.is_materialized else ViewMaker.of_store(info)
            processes = after_workers.enter_context(worker_processes(maker.make, config, workers.count))
            shard_tokenizer = ShardTokenizer(files, info, tokenizing, maker=maker, workers=workers, processes=processes)
            rank_jobs = RankJobs(jobs, files, leases, rank=rank, world_size=world_size)
            report = rank_jobs.run(shard_tokenizer, info, budget=budget)
            return_freed_memory()
            stems = [job.stem for job in jobs]
            finished = finish_store(files, stems, leases, budget=budget, stamp_before=stamp_before)
        return _summarise(config, files.location, finished, report, num_blank)


def _pack(
    plan: StorePlan, files: StoreFiles, info: StoreInfo, config: TokenizeConfig, stop: StopFlag, leases: Leases
) -> dict[str, ImageShardManifest]:
    """Let one process pack what is not packed; the others wait for it, and then check what is there side by side."""

    def is_listed() -> bool:
        return {file.path for file in (files / IMAGES_DIR).files()} >= {
            manifest_name(shard.stem) for shard in plan.shards
        }

    found = packed_manifests(plan, files, info)
    if len(found) < len(plan.shards) and not is_listed():
        leases.wait_for(lambda: is_listed() or leases.is_free("pack"), ["pack"])
        found = packed_manifests(plan, files, info, found) if is_listed() else found
    if len(found) == len(plan.shards):
        return found
    num_workers = config.workers or available_cores()
    making: AbstractContextManager[Processes[Any] | None] = nullcontext()
    if config.is_encoded_again:  # images that are stored as they come are only read
        making = worker_processes(partial(maker_of(info), info=info), config, num_workers)
    with making as processes, Workers(num_workers, stop) as workers, leases.step("pack"):
        return pack_images(plan, files, info, workers, processes, found)


def _summarise(
    config: TokenizeConfig, store: str, finished: FinishedStore | None, report: RankReport, num_blank: int
) -> TokenizeSummary:
    rows = finished.rows if finished else []
    return TokenizeSummary(
        store=store,
        is_complete=finished is not None,
        num_shards=len(rows),
        views=config.views,
        num_samples=sum(row.num_samples for row in rows),
        num_held_out=sum(row.num_held_out for row in rows),
        skipped=finished.skipped if finished else Counter(),
        num_blank=num_blank,
        is_cut=config.is_cut,
        token_bytes=sum(row.token_bytes for row in rows),
        reports=(report,),
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rank ended."""

    kind: Literal["done", "bad input", "stopped", "failed", "lost"]
    message: str = ""
    summary: TokenizeSummary | None = None


def run_ranks(config: TokenizeConfig, source: str, store: str | Path, count: int) -> TokenizeSummary:
    """Tokenise with `count` processes and wait for all of them.

    Raises:
        ResumableStop: a signal asked to stop.
        ChildProcessError: a rank was killed or crashed; the others went on.
    """
    context = multiprocessing.get_context("spawn")
    ranks: list[tuple[BaseProcess, Connection]] = []
    with stop_on_signals() as stop, stop.during("the images under way"):
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (config, source, store, rank, count, sender)
            process: BaseProcess = context.Process(target=_rank_main, args=arguments)
            with safe_path():
                process.start()
            sender.close()
            ranks.append((process, receiver))
        outcomes = _wait_for_ranks(ranks, stop)
    _raise_failures(outcomes)
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    last = next((summary for summary in summaries if summary.is_complete), summaries[0])
    return replace(last, reports=tuple(report for summary in summaries for report in summary.reports))


def _wait_for_ranks(ranks: list[tuple[BaseProcess, Connection]], stop: StopFlag) -> list[Outcome]:
    """Wait until all ranks have ended; one that does not, though nothing is left for it to do, is ended here."""
    outcomes: dict[int, Outcome] = {}
    idle_since: float | None = None
    told = False
    while running := [rank for rank in range(len(ranks)) if rank not in outcomes]:
        wait([ranks[rank][0].sentinel for rank in running], timeout=_POLL_SECONDS)
        outcomes |= {rank: _outcome(*ranks[rank]) for rank in running if not ranks[rank][0].is_alive()}
        if stop.is_set() and not told:
            told, idle_since = True, time.monotonic()
            for process, _ in ranks:
                process.terminate()
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, signal.SIGCONT)  # one that somebody has stopped hears it then
        if idle_since is None and any(done.summary and done.summary.is_complete for done in outcomes.values()):
            idle_since = time.monotonic()
        if idle_since is not None and time.monotonic() - idle_since > _GRACE_SECONDS:
            for rank in running:
                outcomes[rank] = _end_rank(rank, ranks[rank][0], reason=stop.reason)
    return [outcomes[rank] for rank in range(len(ranks))]


def _end_rank(rank: int, process: BaseProcess, *, reason: str | None) -> Outcome:
    """End a rank that somebody has stopped or frozen, after a stop for this reason or because the store is complete."""
    process.kill()
    process.join()
    why = f"rank {rank} (pid {process.pid}) did not answer for {_GRACE_SECONDS:g} s and was ended"
    if reason is not None:
        return Outcome("stopped", f"tokenisation stopped ({reason}); {why}; {_GO_ON}")
    logger.warning("%s; the others have completed the store", why)
    return Outcome("done")


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
    except KeyboardInterrupt:  # a second Ctrl-C, which reached the command, too
        outcome = Outcome("stopped", f"interrupted; {_GO_ON}")
    except (OSError, RunFailed) as error:  # a full disk, a lost process: no bug, so no trace
        outcome = Outcome("failed", str(error))
    with suppress(BrokenPipeError):  # the command was killed: nobody is left to hear of it
        sender.send(outcome)
    sender.close()


def _log_as_rank(rank: int) -> None:
    share_terminal()
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(f"rank {rank}: %(message)s"))
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
