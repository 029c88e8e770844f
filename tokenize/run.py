"""`beit tokenize`: from a source of images to a finished token store, in one process or as one rank of several.

Ranks need no contact with each other: rank r of W takes the shards r, r + W, ..., then those that the others have not
come to; what is done once is done by whoever comes first. All of it is claimed through leases in the store, so
that any number of processes, of any rank, may be at work on one store. A rank that is lost leaves the others finishing,
its shards included; the same command, run again, completes what is left.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

from beit.common.processes.cores import available_cores
from beit.common.processes.signals import StopFlag, stop_on_signals
from beit.common.shards.schema import IMAGES_DIR, INDEX_FILE, ImageShardManifest, StoreInfo, manifest_name
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.jobs import RankJobs, list_jobs
from beit.tokenize.packing.pack import members_of, pack_images, packed_manifests
from beit.tokenize.parallel import Processes, Workers, worker_processes
from beit.tokenize.plan import StorePlan, plan_store
from beit.tokenize.setup import (
    begin_or_continue,
    build_info,
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
        stamp_before = stat_if_there(files / INDEX_FILE)
        plan = plan_store(config, source, files.location)
        threads = config.threads or recorded_threads(files) or available_cores()
        tokenizing = set_up_tokenizer(config, local_rank, threads, tokenizer)
        wanted = build_info(config, plan, tokenizing.info, tokenizing.execution)
        with (
            stop_on_signals() as stop,
            ExitStack() as after_workers,
            Workers(count_workers(config), stop) as workers,
            Leases(files.place, workers.raise_if_stopped) as leases,
            torch_threads(threads),
        ):
            info = begin_or_continue(files, wanted, leases, allow_mixed=config.allow_mixed)
            # One rank packs while the others on this machine wait, so their cores are free.
            packed = _pack(plan, files, info, config, stop, leases) if plan.catalogue is not None else {}
            jobs = list_jobs(plan, files, info, packed)
            del plan, packed  # the list of all images may be large
            maker: ImageMaker = CropMaker.of_store(info) if info.is_materialized else ViewMaker.of_store(info)
            processes = after_workers.enter_context(worker_processes(maker.make, config, workers.count))
            shard_tokenizer = ShardTokenizer(files, info, tokenizing, maker=maker, workers=workers, processes=processes)
            rank_jobs = RankJobs(jobs, files, leases, rank=rank, world_size=world_size)
            report = rank_jobs.run(shard_tokenizer, info, budget=config.budget)
            stems = [job.stem for job in jobs]
            finished = finish_store(files, stems, leases, budget=config.budget, stamp_before=stamp_before)
        return _summarise(config, files.location, finished, report)


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
    making: AbstractContextManager[Processes[dict[str, bytes]] | None] = nullcontext()
    if config.stored_quality is not None:  # images that are stored as they come are only read
        making = worker_processes(partial(members_of, info=info), config, num_workers)
    with making as processes, Workers(num_workers, stop) as workers, leases.step("pack"):
        return pack_images(plan, files, info, workers, processes, found)


def _summarise(
    config: TokenizeConfig, store: str, finished: FinishedStore | None, report: RankReport
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
        token_bytes=sum(row.token_bytes for row in rows),
        reports=(report,),
    )
