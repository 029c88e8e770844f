"""The shards of a store as work: which of them are this rank's, which are finished already, and doing the rest."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from beit.common.bad_samples import BadSampleLog, BadSampleReport
from beit.common.errors import InputError
from beit.common.locations import is_remote
from beit.common.progress import Progress
from beit.common.shard_io import resolve_location
from beit.common.source_tar import TarShard
from beit.common.store_schema import ShardManifest, StoreInfo
from beit.tokenize.crops import CropTar
from beit.tokenize.pack import packed_manifest
from beit.tokenize.plan import PlannedShard, StorePlan
from beit.tokenize.shard import ShardJob, ShardTokenizer, find_finished
from beit.tokenize.summary import RankReport

logger = logging.getLogger(__name__)

_USUAL_TAR_IMAGES = 1000
"""Assumed of a remote tar, which is not walked in advance; only decides how early too many bad images stop a run."""


def list_jobs(plan: StorePlan, store: Path, info: StoreInfo) -> list[ShardJob]:
    """Return all shards of a store, in order. Images that had to be packed are packed by now.

    Raises:
        InputError: a packed tar is not there.
    """
    root = resolve_location(str(store.resolve()), info.image_root)
    if plan.packing is None:
        class_names = info.class_names
        return [
            ShardJob(
                stem=shard.stem,
                tar=TarShard(shard.stem, resolve_location(root, shard.image_file), class_names),
                image_file=shard.image_file,
            )
            for shard in plan.shards
        ]
    return [_packed_job(store, root, shard, info) for shard in plan.shards]


def _packed_job(store: Path, root: str, shard: PlannedShard, info: StoreInfo) -> ShardJob:
    packed = packed_manifest(store, shard.stem, info)
    location = resolve_location(root, shard.image_file)
    # Labels inside are numbers.
    tar = CropTar(location, info.views) if info.is_materialized else TarShard(shard.stem, location)
    if packed is None:
        raise InputError(f"{location} changed right after it was packed; is another program writing there?")
    return ShardJob(
        stem=shard.stem,
        tar=tar,
        image_file=shard.image_file,
        image_sha256=packed.image.sha256,
        skipped=packed.skipped,
    )


class RankJobs:
    """One rank's share of the shards: rank r of W takes r, r + W, ...

    Args:
        jobs: All shards of the store.
        rank: Of this process.
        world_size: Number of ranks.
    """

    def __init__(self, jobs: list[ShardJob], *, rank: int, world_size: int) -> None:
        self._rank = rank
        self._share = len(jobs) / max(1, len(jobs[rank::world_size]))
        self._mine = jobs[rank::world_size]

    def run(self, shard_tokenizer: ShardTokenizer, store: Path, info: StoreInfo, *, budget: float) -> RankReport:
        """Tokenise the unfinished shards of this rank.

        Raises:
            InputError: a tar is damaged, or too many images are unusable.
            ResumableStop: somebody asked for it.
        """
        finished = {job.stem: manifest for job in self._mine if (manifest := find_finished(store, job, info))}
        todo = [job for job in self._mine if job.stem not in finished]
        if finished:
            logger.info("%d of %d shards are finished already", len(finished), len(self._mine))
        counts = [_count_images(job) for job in todo]
        done = sum(manifest.num_samples + len(manifest.skipped) for manifest in finished.values())
        known = done + sum(_USUAL_TAR_IMAGES if count is None else count for count in counts)
        bad_samples = self._start_log(known, budget, finished)
        factor = max(1, info.views)
        progress = Progress(
            None if None in counts else known * factor,
            unit="views" if info.views else "images",
            description="tokenize",
            initial=done * factor,
            enabled=self._rank == 0 and bool(todo),
        )
        started, num_images = time.perf_counter(), 0
        with progress:
            for job in todo:
                manifest = shard_tokenizer.run(job, progress=progress, bad_samples=bad_samples)
                progress.update(len(manifest.skipped) * factor)
                num_images += manifest.num_samples
        return RankReport(
            num_images=num_images,
            num_shards_kept=len(finished),
            seconds=time.perf_counter() - started,
            watch=shard_tokenizer.watch,
        )

    def _start_log(self, known: int, budget: float, finished: dict[str, ShardManifest]) -> BadSampleLog:
        # The budget is a share of the whole store; this rank's shards tell its size well enough to stop early. The
        # exact count is taken when the index is built.
        log = BadSampleLog(max(1, round(known * self._share)), budget, setting="bad_sample_budget")
        for stem, manifest in finished.items():
            log.add(
                BadSampleReport(f"{stem}/{sample.key}", sample.reason, "found earlier") for sample in manifest.skipped
            )
        return log


def _count_images(job: ShardJob) -> int | None:
    """Walk a tar before anything expensive starts, to find a damaged one; a remote one is not read twice."""
    return None if is_remote(job.tar.location) else len(job.tar.refs()) + len(job.skipped)
