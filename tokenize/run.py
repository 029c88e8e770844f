"""`beit tokenize`: from a source of images to a finished token store, in one process or as one rank of several.

Ranks need no contact with each other: rank r of W takes the shards r, r + W, ..., then those that the others have not
come to; what is done once is done by whoever comes first. All of it is claimed through leases in the store, so
that any number of processes, of any rank, may be at work on one store. A rank that is lost leaves the others finishing,
its shards included; the same command, run again, completes what is left.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from beit.common.errors import require
from beit.common.processes.cores import available_cores, keep_freed_memory
from beit.common.processes.signals import StopFlag, stop_on_signals
from beit.common.shards.schema import (
    IMAGES_DIR,
    INDEX_FILE,
    Execution,
    ImageShardManifest,
    StoreInfo,
    TokenizerInfo,
    manifest_name,
)
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.execution import (
    choose_device,
    count_workers,
    describe_execution,
    library_versions,
    torch_threads,
)
from beit.tokenize.jobs import RankJobs, list_jobs
from beit.tokenize.packing.pack import members_of, pack_images, packed_manifests
from beit.tokenize.parallel import Processes, Workers, worker_processes
from beit.tokenize.plan import StorePlan, plan_store
from beit.tokenize.setup import begin_or_continue, build_info, check_place, recorded_threads
from beit.tokenize.shards.crops import CropMaker
from beit.tokenize.shards.encode import ViewEncoder
from beit.tokenize.shards.index import FinishedStore, finish_store
from beit.tokenize.shards.prepare import ImageMaker, ViewMaker
from beit.tokenize.shards.shard import ShardTokenizer
from beit.tokenize.store.documents import StoreFiles, open_store_files
from beit.tokenize.store.leases import Leases
from beit.tokenize.summary import RankReport, TokenizeSummary


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
        InputError: bad source, settings or store; too many unusable images.
        ResumableStop: a signal asked to stop.
        OSError: the disk is full or failing, or a server stays away.
    """
    with open_store_files(store) as files:
        check_place(files)
        place = _Place(rank, world_size, local_rank)
        return _run(config, source, files, place, tokenizer)


@dataclass(frozen=True, slots=True)
class _Place:
    """Which of the ranks this process is."""

    rank: int
    world_size: int
    local_rank: int


def _run(
    config: TokenizeConfig, source: str, files: StoreFiles, place: _Place, tokenizer: ViewEncoder | None
) -> TokenizeSummary:
    stamp_before = files.stamp(INDEX_FILE)
    plan = plan_store(config, source, files.location)
    threads = config.threads or recorded_threads(files) or available_cores()
    rank_setup = _set_up_tokenizer(config, place.local_rank, threads, tokenizer)
    wanted = build_info(config, plan, rank_setup.info, rank_setup.execution)
    files.make_folder("")
    with (
        stop_on_signals() as stop,
        ExitStack() as after_workers,
        Workers(count_workers(config), stop) as workers,
        Leases(files.leases(), workers.raise_if_stopped) as leases,
        torch_threads(threads),
    ):
        info = begin_or_continue(files, wanted, leases, allow_mixed=config.allow_mixed)
        # One rank packs while the others on this machine wait, so their cores are free.
        packed = _pack(plan, files, info, config, stop, leases) if plan.catalogue is not None else {}
        jobs = list_jobs(plan, files, info, packed)
        del plan  # its list of all images may be large
        maker: ImageMaker = CropMaker.of_store(info) if info.is_materialized else ViewMaker.of_store(info)
        processes = after_workers.enter_context(worker_processes(maker.make, config, workers.count))
        shard_tokenizer = ShardTokenizer(
            files,
            info,
            tokenizer=rank_setup.tokenizer,
            execution=rank_setup.execution,
            versions=library_versions(),
            maker=maker,
            workers=workers,
            processes=processes,
        )
        rank_jobs = RankJobs(jobs, files, leases, rank=place.rank, world_size=place.world_size)
        report = rank_jobs.run(shard_tokenizer, info, budget=config.budget)
        stems = [job.stem for job in jobs]
        finished = finish_store(files, stems, leases, budget=config.budget, stamp_before=stamp_before)
    return _summarise(config, files.location, finished, report)


def _pack(
    plan: StorePlan, files: StoreFiles, info: StoreInfo, config: TokenizeConfig, stop: StopFlag, leases: Leases
) -> dict[str, ImageShardManifest]:
    """Let one process pack what is not packed; the others wait for it, and then check what is there side by side."""

    def is_listed() -> bool:
        return files.sizes(IMAGES_DIR).keys() >= {manifest_name(shard.stem) for shard in plan.shards}

    found = packed_manifests(plan, files, info)
    if len(found) < len(plan.shards) and not is_listed():
        leases.wait_for(lambda: is_listed() or leases.is_free("pack"), ["pack"])
        found = packed_manifests(plan, files, info, found) if is_listed() else found
    if len(found) == len(plan.shards):
        return found
    num_workers = config.workers or available_cores()
    making: AbstractContextManager[Processes[dict[str, bytes]] | None] = nullcontext()
    if config.stored_quality is not None:  # images that are stored as they come are only read
        making = worker_processes(partial(members_of, info=info), config, num_workers)
    with making as processes, Workers(num_workers, stop) as workers, leases.step("pack"):
        return pack_images(plan, files, info, workers, processes, found)


def _summarise(
    config: TokenizeConfig, store: str, finished: FinishedStore | None, report: RankReport
) -> TokenizeSummary:
    if finished is None:
        return TokenizeSummary(store=store, is_complete=False, views=config.views, reports=(report,))
    return TokenizeSummary(
        store=store,
        is_complete=True,
        num_shards=len(finished.rows),
        views=config.views,
        num_samples=sum(row.num_samples for row in finished.rows),
        num_held_out=sum(row.num_held_out for row in finished.rows),
        skipped=finished.skipped,
        token_bytes=sum(row.token_bytes for row in finished.rows),
        reports=(report,),
    )


@dataclass(frozen=True, slots=True)
class _RankSetup:
    """The tokenizer of this rank."""

    tokenizer: ViewEncoder | None
    info: TokenizerInfo | None
    execution: Execution


def _set_up_tokenizer(config: TokenizeConfig, local_rank: int, threads: int, given: ViewEncoder | None) -> _RankSetup:
    if not config.views:
        return _RankSetup(None, None, Execution())
    device = choose_device(config, local_rank)
    if device == "cpu":
        keep_freed_memory()
    from beit.common.tokenizer import choose_dtype, load_tokenizer

    dtype = choose_dtype(config.dtype, device)
    tokenizer, is_compiled = given, False
    if tokenizer is None:
        loaded = load_tokenizer(config.tokenizer, device=device, dtype=dtype, compile_encoder=config.compile_encoder)
        tokenizer, is_compiled = loaded, loaded.is_compiled
    require(
        tokenizer.vocab_size <= 1 << 16,
        f"tokenizer ({config.tokenizer}) has a vocabulary of {tokenizer.vocab_size}; a store holds 16-bit ids",
    )
    info = TokenizerInfo(
        name=config.tokenizer,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        downsampling=tokenizer.downsampling,
    )
    execution = describe_execution(config, device=device, dtype=dtype, is_compiled=is_compiled, threads=threads)
    return _RankSetup(tokenizer, info, execution)
