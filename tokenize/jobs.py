"""The shards of a store as work: which of them are this rank's, which are finished already, and doing the rest."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from beit.common.bad_samples import BadSampleLog, BadSampleReport
from beit.common.errors import InputError
from beit.common.locations import is_remote
from beit.common.shard_io import resolve_location
from beit.common.source_tar import TarShard
from beit.common.store_schema import TOKENS_DIR, ShardManifest, StoreInfo, manifest_path
from beit.tokenize.copies import TarCopies
from beit.tokenize.crops import CropTar
from beit.tokenize.leases import LeaseLost, Leases
from beit.tokenize.pack import packed_manifest
from beit.tokenize.plan import PlannedShard, StorePlan
from beit.tokenize.shard import ShardJob, ShardTokenizer, find_finished
from beit.tokenize.shard_progress import TokenizeProgress
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
    """One rank's share of the shards, r, r + W, ... for rank r of W, and then whatever the others leave.

    Every shard is done under its lease, so no two processes do the same one, whatever their ranks and world sizes; and
    what a rank claimed or never reached is done by the others when that rank is gone.

    Args:
        jobs: All shards of the store.
        leases: Of this process on the store.
        rank: Of this process.
        world_size: Number of ranks.
    """

    def __init__(self, jobs: list[ShardJob], leases: Leases, *, rank: int, world_size: int) -> None:
        self._rank = rank
        self._leases = leases
        self._share = len(jobs) / max(1, len(jobs[rank::world_size]))
        self._mine = jobs[rank::world_size]
        # Backwards, so that a rank that helps meets the owner, who goes forwards, as late as possible.
        self._others = [job for number, job in enumerate(jobs) if number % world_size != rank][::-1]

    def run(self, shard_tokenizer: ShardTokenizer, store: Path, info: StoreInfo, *, budget: float) -> RankReport:
        """Tokenise the unfinished shards of this rank, then help with the others; return when all are committed.

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
        progress = TokenizeProgress(
            None if None in counts else known,
            views=info.views,
            images_done=done,
            skipped=sum(len(manifest.skipped) for manifest in finished.values()),
            enabled=self._rank == 0 and bool(todo),
        )
        own = {job.stem for job in todo}
        following = {job.stem: after for job, after in itertools.pairwise(todo)}
        started, num_images, num_shards = time.perf_counter(), 0, 0
        with progress, TarCopies(store, shard_tokenizer.raise_if_stopped) as copies:
            for job in self._claim(store, info, todo, own):
                if job.stem not in own:
                    progress.grow(_count_images(job) or _USUAL_TAR_IMAGES)
                before_commit = partial(self._leases.require_held, job.stem)
                try:
                    with copies.at_hand(job, following.get(job.stem)) as job_at_hand:
                        manifest = shard_tokenizer.run(
                            job_at_hand, progress=progress, bad_samples=bad_samples, before_commit=before_commit
                        )
                except LeaseLost as error:
                    logger.warning("shard %s; leaving it to that one", error)
                    continue
                num_images += manifest.num_samples
                num_shards += 1
        return RankReport(
            num_images=num_images,
            num_shards=num_shards,
            num_shards_kept=len(finished),
            seconds=time.perf_counter() - started,
            watch=shard_tokenizer.watch,
        )

    def _claim(self, store: Path, info: StoreInfo, todo: list[ShardJob], own: set[str]) -> Iterator[ShardJob]:
        """Yield unfinished shards, one after the other and each under its lease, until every shard is committed."""
        unchecked = set(own)
        left = [*todo, *self._others]
        while left:
            held_by_others = []
            for job in left:
                # Whether the files of a shard are as its manifest says is checked by the rank whose share it is.
                if job.stem not in unchecked and _is_committed(store, job):
                    continue
                if not self._leases.claim(job.stem):
                    unchecked.discard(job.stem)  # what another process is at work on, that one answers for
                    held_by_others.append(job)
                    continue
                try:
                    if find_finished(store, job, info) is None:
                        yield job
                finally:
                    self._leases.release(job.stem)
                if not _is_committed(store, job):  # this process stood still meanwhile and lost its lease
                    held_by_others.append(job)
            left = held_by_others
            if left:
                self._wait_for_change(store, left)

    def _wait_for_change(self, store: Path, jobs: list[ShardJob]) -> None:
        """Wait until one of the shards that other processes are at work on is committed, or free again."""

        def has_changed() -> bool:
            return any(_is_committed(store, job) or self._leases.is_free(job.stem) for job in jobs)

        self._leases.wait_for(has_changed, [job.stem for job in jobs])

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


def _is_committed(store: Path, job: ShardJob) -> bool:
    return manifest_path(store / TOKENS_DIR, job.stem).exists()
