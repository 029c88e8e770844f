"""The shards of a store as work: which of them are this rank's, which are finished already, and doing the rest."""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from beit.common.images.formats import ARRAY_SUFFIXES, IMAGE_SUFFIXES
from beit.common.reading.bad_samples import BadSampleLog
from beit.common.shards.schema import TOKENS_DIR, ImageShardManifest, ShardManifest, StoreInfo, manifest_name
from beit.common.sources.tars import TarShard, suffixes_of
from beit.common.storage.paths import is_remote, resolve_location, resolve_reference
from beit.tokenize.plan import PlannedShard, StorePlan
from beit.tokenize.shards.copies import TarCopies
from beit.tokenize.shards.crops import CropTar
from beit.tokenize.shards.shard import ShardJob, ShardTokenizer, TokenizeProgress, find_finished, reports_of
from beit.tokenize.store.documents import StoreFiles
from beit.tokenize.store.leases import LeaseLost, Leases
from beit.tokenize.summary import RankReport

logger = logging.getLogger(__name__)

_USUAL_TAR_IMAGES = 1000
"""Assumed of a remote tar, which is not walked in advance; only decides how early too many bad images stop a run."""
_LISTING_SECONDS = 30.0
"""How old a listing of the committed shards may be. Arbitrary; the listing of a large object store takes seconds."""


def list_jobs(
    plan: StorePlan, files: StoreFiles, info: StoreInfo, packed: Mapping[str, ImageShardManifest]
) -> list[ShardJob]:
    """Return all shards of a store, in order; `packed` has the manifests of those whose images were packed."""
    root = image_folder(files, info)
    if plan.packing is None:
        # Not those of the store: labels that are numbers stay numbers, whether or not their names are known.
        names = plan.source.class_names
        return [
            ShardJob(
                stem=shard.stem,
                tar=TarShard(
                    shard.stem,
                    resolve_location(root, shard.image_file),
                    names,
                    image_suffixes=suffixes_of(info.source.image_member),
                ),
                image_file=shard.image_file,
            )
            for shard in plan.shards
        ]
    return [_packed_job(root, shard, info, packed[shard.stem]) for shard in plan.shards]


def image_folder(files: StoreFiles, info: StoreInfo) -> str:
    """Return path or URL of the folder of the image tars; links are resolved, since it may be relative to them."""
    location = files.location if is_remote(files.location) else os.path.realpath(files.location)
    return resolve_reference(location, info.image_root)


def _packed_job(root: str, shard: PlannedShard, info: StoreInfo, packed: ImageShardManifest) -> ShardJob:
    location = resolve_location(root, shard.image_file)
    # Labels inside are numbers.
    images = TarShard(shard.stem, location, image_suffixes=IMAGE_SUFFIXES + ARRAY_SUFFIXES)  # whatever was packed
    tar = CropTar(location, info.views) if info.is_materialized else images
    return ShardJob(
        stem=shard.stem,
        tar=tar,
        image_file=shard.image_file,
        image_sha256=packed.image.sha256,
        num_images=packed.num_samples,
        skipped=packed.skipped,
    )


class RankJobs:
    """One rank's share of the shards, r, r + W, ... for rank r of W, and then whatever the others leave.

    Every shard is done under its lease, so no two processes do the same one, whatever their ranks and world sizes; and
    what a rank claimed or never reached is done by the others when that rank is gone.

    Args:
        jobs: All shards of the store.
        files: Of the store.
        leases: Of this process on the store.
        rank: Of this process.
        world_size: Number of ranks.
    """

    def __init__(self, jobs: list[ShardJob], files: StoreFiles, leases: Leases, *, rank: int, world_size: int) -> None:
        self._rank = rank
        self._files, self._leases = files, leases
        self._listed: set[str] = set()
        self._listed_at = -math.inf
        self._share = len(jobs) / max(1, len(jobs[rank::world_size]))
        self._mine = jobs[rank::world_size]
        # Backwards, so that a rank that helps meets the owner, who goes forwards, as late as possible.
        self._others = [job for number, job in enumerate(jobs) if number % world_size != rank][::-1]

    def run(self, shard_tokenizer: ShardTokenizer, info: StoreInfo, *, budget: float) -> RankReport:
        """Tokenise the unfinished shards of this rank, then help with the others; return when all are committed.

        Raises:
            ResumableStop: somebody asked for it.
        """
        finished = {
            job.stem: manifest
            for job in self._mine
            if self._is_committed(job) and (manifest := find_finished(self._files, job, info))
        }
        todo = [job for job in self._mine if job.stem not in finished]
        if finished:
            logger.info("%d of %d shards are finished already", len(finished), len(self._mine))
        counts = [_count_images(job) for job in todo]
        done = sum(manifest.num_samples + len(manifest.skipped) for manifest in finished.values())
        known = done + sum(_USUAL_TAR_IMAGES if count is None else count for count in counts)
        bad_samples = self._start_log(info, known, budget, finished)
        progress = TokenizeProgress(
            None if None in counts else known,
            views=info.views,
            images_done=done,
            skipped=sum(len(manifest.skipped) for manifest in finished.values()),
            enabled=self._rank == 0 and bool(todo),
        )
        own = {job.stem for job in todo}
        following = {job.stem: after.tar for job, after in itertools.pairwise(todo)}
        started, num_images, num_shards = time.perf_counter(), 0, 0
        is_local = not any(is_remote(job.tar.location) for job in [*todo, *self._others])
        copying = (
            nullcontext() if is_local else TarCopies(self._files.scratch, shard_tokenizer.workers.raise_if_stopped)
        )
        with progress, copying as copies:
            for job in self._claim(info, todo, own):
                if job.stem not in own:
                    progress.grow(_count_images(job) or _USUAL_TAR_IMAGES)
                before_commit = partial(self._leases.require_held, job.stem)
                try:
                    with copies.at_hand(job.tar, following.get(job.stem)) if copies else nullcontext(job.tar) as tar:
                        manifest = shard_tokenizer.run(
                            replace(job, tar=tar),
                            progress=progress,
                            bad_samples=bad_samples,
                            before_commit=before_commit,
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

    def _claim(self, info: StoreInfo, todo: list[ShardJob], own: set[str]) -> Iterator[ShardJob]:
        """Yield unfinished shards, one after the other and each under its lease, until every shard is committed."""
        unchecked = set(own)
        left = [*todo, *self._others]
        while left:
            held_by_others = []
            for job in left:
                # Whether the files of a shard are as its manifest says is checked by the rank whose share it is.
                if job.stem not in unchecked and self._is_committed(job):
                    continue
                if not self._leases.claim(job.stem):
                    unchecked.discard(job.stem)  # what another process is at work on, that one answers for
                    held_by_others.append(job)
                    continue
                try:
                    is_unchecked = job.stem in unchecked
                    if not (find_finished(self._files, job, info) if is_unchecked else self._is_committed_now(job)):
                        yield job
                finally:
                    self._leases.release(job.stem)
                if not self._is_committed_now(job):  # this process stood still meanwhile and lost its lease
                    held_by_others.append(job)
            left = held_by_others
            if left:
                self._leases.wait_for(partial(self._any_has_changed, left), [job.stem for job in left])

    def _any_has_changed(self, jobs: list[ShardJob]) -> bool:
        """Tell whether one of the shards that other processes are at work on is committed, or free again."""
        return any(self._is_committed_now(job) or self._leases.is_free(job.stem) for job in jobs)

    def _is_committed(self, job: ShardJob) -> bool:
        """Tell whether a shard has a manifest, as far as a recent listing shows."""
        name = manifest_name(job.stem)
        if name not in self._listed and time.monotonic() - self._listed_at > _LISTING_SECONDS:
            self._listed = {file.path for file in (self._files / TOKENS_DIR).files()}
            self._listed_at = time.monotonic()
        return name in self._listed

    def _is_committed_now(self, job: ShardJob) -> bool:
        return (self._files / f"{TOKENS_DIR}/{manifest_name(job.stem)}").exists()

    def _start_log(
        self, info: StoreInfo, known: int, budget: float, finished: dict[str, ShardManifest]
    ) -> BadSampleLog:
        # The budget is a share of all images of the store. Where their number is not known, this rank's shards tell it
        # well enough to stop early. The exact count is taken when the index is built.
        num_images = info.source.num_images or max(1, round(known * self._share))
        unit = "images" if info.is_cut else "samples"
        log = BadSampleLog(num_images, budget, setting="bad_sample_budget", unit=unit)
        for stem, manifest in finished.items():
            log.add(reports_of(stem, manifest.skipped, info, "found earlier"))
        return log


def _count_images(job: ShardJob) -> int | None:
    """Walk a tar before anything expensive starts, to find a damaged one; a remote one is not read twice."""
    if job.num_images is not None:
        return job.num_images + len(job.skipped)
    return None if is_remote(job.tar.location) else len(job.tar.refs()) + len(job.skipped)
