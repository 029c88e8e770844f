"""Tokenising one shard: image tar in, token tar, sample table and manifest out; or finding that all that is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from beit.common.errors import BadSample, InputError, require
from beit.common.progress import Progress
from beit.common.reading.bad_samples import BadSampleLog, BadSampleReport
from beit.common.shards.schema import (
    TOKENS_DIR,
    CommittedFile,
    ImageFile,
    ShardManifest,
    SkippedSample,
    StoreInfo,
    manifest_name,
)
from beit.common.sources.tars import TarShard
from beit.common.sources.types import SampleRef, ShardReader
from beit.common.storage.documents import read_document
from beit.common.storage.files import sha256_file
from beit.common.storage.paths import is_remote
from beit.common.storage.place import place_of
from beit.tokenize.parallel import Processes, Workers
from beit.tokenize.shards.crops import CropTar
from beit.tokenize.shards.encode import EncodedImage, ImageMaker, PreparedImage, RankTokenizer, Stopwatch, encode_images
from beit.tokenize.shards.writer import SampleWriter, begin_shard, commit_shard, new_shard_tar
from beit.tokenize.store.documents import StoreFiles, check_file

logger = logging.getLogger(__name__)

_BYTES_AHEAD = 256 << 20
"""Rendered views that may wait for the tokenizer; arbitrary, small beside one GPU worker's memory."""
_PACK_AGAIN = "remove it, and run beit tokenize again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard to tokenise."""

    stem: str
    tar: TarShard | CropTar
    image_file: str
    """Image tar below the image root."""
    image_sha256: str = ""
    """Known for tars we packed."""
    num_images: int | None = None
    """The same."""
    skipped: tuple[SkippedSample, ...] = ()
    """Images that could not even be packed."""

    @property
    def is_packed(self) -> bool:
        """True if the image tar is part of the store."""
        return bool(self.image_sha256)


class TokenizeProgress(Progress):
    """Counts images and shows views.

    Args:
        total_images: Images of the work that is known; None when unknown.
        views: K, views per image; with 0, images are shown instead.
        images_done: By earlier runs, skipped ones included.
        skipped: Of those.
        enabled: False on every rank but the first.
    """

    def __init__(
        self, total_images: int | None, *, views: int, images_done: int = 0, skipped: int = 0, enabled: bool = True
    ) -> None:
        self._factor = max(1, views)
        self._shows_views = views > 0
        self._images, self._skipped = 0, skipped
        super().__init__(
            None if total_images is None else total_images * self._factor,
            unit="views" if views else "images",
            description="tokenize",
            initial=images_done * self._factor,
            enabled=enabled,
        )

    def add(self, *, images: int = 0, skipped: int = 0) -> None:
        """Note finished and skipped images."""
        self._images += images
        self._skipped += skipped
        fields: dict[str, str | int | float] = {}
        if self._shows_views:
            fields["images/s"] = f"{self._images / max(time.monotonic() - self._started, 1e-9):.1f}"
        fields["skipped"] = self._skipped
        self.update((images + skipped) * self._factor, **fields)

    def grow(self, count: int) -> None:
        """Note that there are `count` images more to do than was known."""
        super().grow(count * self._factor)


class ShardTokenizer:
    """Tokenises shards, one after the other, with one tokenizer and one pool of decoding threads.

    Args:
        files: Of the store.
        info: Its settings.
        tokenizing: The tokenizer, none when the store gets no tokens, and its fingerprint for the manifests.
        maker: Makes the views of an image.
        workers: Threads that read, and make the views where there are no processes for that.
        processes: Make the views.
    """

    def __init__(
        self,
        files: StoreFiles,
        info: StoreInfo,
        tokenizing: RankTokenizer,
        *,
        maker: ImageMaker,
        workers: Workers,
        processes: Processes[PreparedImage] | None = None,
    ) -> None:
        self._files, self._info = files, info
        self._tokenizing = tokenizing
        self._maker, self.workers = maker, workers
        self._make = maker.make if processes is None else processes.call
        self.watch = Stopwatch()

    def run(
        self, job: ShardJob, *, progress: TokenizeProgress, bad_samples: BadSampleLog, before_commit: Callable[[], None]
    ) -> ShardManifest:
        """Tokenise one shard and commit it.

        Args:
            job: What to do.
            progress: Told of every image.
            bad_samples: Told of every unusable one.
            before_commit: Called when all is ready; raises if the shard is not to be committed after all.
        Raises:
            ResumableStop: somebody asked for it; the shard is given up.
        """
        copy = job.tar.copy
        if job.is_packed and copy is not None:
            is_same = copy.sha256 == job.image_sha256
            require(is_same, f"{job.tar.location} is damaged: its sha256 is not that of its manifest; {_PACK_AGAIN}")
        before = place_of(job.tar.location).stat()
        refs: Sequence[SampleRef]
        refs, index = job.tar.scan()
        skipped = list(job.skipped)
        bad_samples.add(reports_of(job.stem, skipped, self._info, "found when packing"))
        progress.add(skipped=len(skipped))
        full_hash = self._start_hash(job)
        folder, tokens = self._files / TOKENS_DIR, None
        begin_shard(folder, job.stem)
        with new_shard_tar(folder, job.stem) if self._info.views else nullcontext() as tar, job.tar.open() as reader:
            writer = SampleWriter(tar, self._info.held_out_by)
            results = self.workers.map(partial(self._prepare, reader=reader), refs, ahead=self._images_ahead())
            usable = _sort_out(results, job.stem, skipped, bad_samples, progress)
            for encoded in self._encode(usable):
                writer.add(encoded.image.ref, encoded.token_ids, encoded.image.views)
                progress.add(images=1)
            after = place_of(job.tar.location).stat()
            require(before == after, f"{before.path} changed while it was tokenised; run beit tokenize again")
            image = ImageFile(
                name=job.image_file,
                size=before.size,
                header_sha256=index.header_sha256,
                sha256=job.image_sha256 or (copy.sha256 if copy else full_hash.result() if full_hash else ""),
                stamp="" if job.is_packed else before.version,
            )
            before_commit()
            if tar is not None:
                tokens = CommittedFile(name=f"{job.stem}.tar", sha256=tar.finish(), size=tar.size)
        return commit_shard(
            folder,
            job.stem,
            self._info,
            writer.rows,
            image=image,
            tokens=tokens,
            skipped=skipped,
            tokenizing=self._tokenizing,
        )

    def _start_hash(self, job: ShardJob) -> Future[str] | None:
        # Of a remote tar, the copy was hashed on its way.
        if job.is_packed or is_remote(job.tar.location):
            return None
        return self.workers.submit(sha256_file, Path(job.tar.location))

    def _encode(self, images: Iterable[PreparedImage]) -> Iterator[EncodedImage]:
        tokenizer, execution = self._tokenizing.tokenizer, self._tokenizing.execution
        if tokenizer is not None:
            yield from encode_images(images, tokenizer, micro_batch_size=execution.micro_batch_size, watch=self.watch)
            return
        none = np.empty((0, self._info.grid_size, self._info.grid_size), dtype=np.uint16)
        for image in images:
            yield EncodedImage(image, none)

    def _prepare(self, ref: SampleRef, *, reader: ShardReader) -> tuple[SampleRef, PreparedImage | BadSample]:
        """Make the views of a sample. One that cannot be used is returned, not raised: it is counted."""
        try:
            return ref, self._make(ref, self._maker.read(ref, reader))
        except BadSample as error:
            return ref, error

    def _images_ahead(self) -> int:
        """Return how many images to prepare in advance: enough for two batches, bounded in memory."""
        views = max(1, self._info.views)
        view_bytes = max(1, self._info.token_img_size) ** 2 * 3
        wanted = 4 * self.workers.count + -(-2 * self._tokenizing.execution.micro_batch_size // views)
        return max(self.workers.count + 1, min(wanted, _BYTES_AHEAD // (views * view_bytes)))


def reports_of(stem: str, skipped: Iterable[SkippedSample], info: StoreInfo, detail: str) -> Iterator[BadSampleReport]:
    """Yield what a manifest lists as unusable; of an image that was cut there may be something in several tars."""
    for sample in skipped:
        name = sample.key if info.is_cut else ""
        yield BadSampleReport(f"{stem}/{sample.key}", sample.reason, detail, sample.share, name)


def _sort_out(
    results: Iterable[tuple[SampleRef, PreparedImage | BadSample]],
    stem: str,
    skipped: list[SkippedSample],
    bad_samples: BadSampleLog,
    progress: TokenizeProgress,
) -> Iterator[PreparedImage]:
    """Yield the usable images and note the others."""
    for ref, result in results:
        if isinstance(result, PreparedImage):
            yield result
            continue
        skipped.append(SkippedSample(key=ref.key, reason=result.reason))
        progress.add(skipped=1)
        bad_samples.add([BadSampleReport(f"{stem}/{ref.key}", result.reason, result.detail)])


def find_finished(files: StoreFiles, job: ShardJob, info: StoreInfo) -> ShardManifest | None:
    """Return the manifest of a shard that needs no work: every file is what the manifest says, by hash.

    The image tar is checked by size, and by its headers unless its time is unchanged.
    """
    folder = files / TOKENS_DIR
    place = folder / manifest_name(job.stem)
    if not place.exists():
        return None
    try:
        manifest = read_document(ShardManifest, place)
        require(manifest.settings_sha256 == info.settings_sha256(), f"{place} belongs to other settings")
        check_file(folder / manifest.samples.name, manifest.samples)
        if manifest.tokens is not None:
            check_file(folder / manifest.tokens.name, manifest.tokens)
        _check_image(job, manifest.image)
    except InputError as error:
        logger.warning("shard %s is done again: %s", job.stem, error)
        return None
    return manifest


def _check_image(job: ShardJob, expected: ImageFile) -> None:
    found = place_of(job.tar.location).stat()
    require(found.size == expected.size, f"{found.path} has {found.size} bytes, its manifest says {expected.size}")
    if expected.stamp and expected.stamp == found.version:
        return
    if job.is_packed and is_remote(job.tar.location):
        # All of a remote tar would have to be read; what was packed has a hash, and a manifest that says so.
        require(expected.sha256 == job.image_sha256, f"{found.path} was packed anew")
        return
    _, index = job.tar.scan()
    require(index.header_sha256 == expected.header_sha256, f"{found.path} holds other members than it did")
