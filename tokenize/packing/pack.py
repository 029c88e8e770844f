"""Putting the images of a folder, list or Parquet file into tars of the store.

What stands for an image is in `members.py`: its bytes as they came, or shrunk and encoded again, or the crops of its
views. Large images, and files of several pages, become several samples (`tokenize/cutting/`, `pieces.py`). Which image
goes where is decided in `tokenize/plan.py`; how containers are read in another order than theirs is in `spool.py`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from beit.common.errors import BadSample, InputError
from beit.common.images.decoding import MAX_IMAGE_BYTES
from beit.common.progress import Progress
from beit.common.shards.schema import (
    IMAGES_DIR,
    ImageFile,
    ImageShardManifest,
    Packing,
    SkippedSample,
    StoreInfo,
    manifest_name,
)
from beit.common.sources.loose_files import FilesReader
from beit.common.sources.types import SampleRef
from beit.common.storage.documents import read_document, write_document
from beit.common.storage.paths import is_remote, join
from beit.common.storage.place import FilePart, Place
from beit.common.storage.tar_walk import walk_tar
from beit.tokenize.cutting.cuts import CutRef, places_of
from beit.tokenize.packing.members import members_of
from beit.tokenize.packing.pieces import FLAT_STD, Piece, pieces_of
from beit.tokenize.packing.spool import ReadImage, Spool
from beit.tokenize.parallel import Processes, Workers
from beit.tokenize.plan import StorePlan
from beit.tokenize.shards.writer import begin_shard, new_shard_tar
from beit.tokenize.store.documents import StoreFiles

logger = logging.getLogger(__name__)

_SPOOL = ".spool"
_CHECK_THREADS = 16  # a tar is a few reads, or one request; arbitrary


class PackedImage(NamedTuple):
    """A sample ready to be written."""

    ref: SampleRef
    members: dict[str, bytes] | BadSample | None
    """Its content by what follows the key in the name, why there is none, or None where it is left out on request."""
    share: float = 1.0
    """Of the image, as in `SkippedSample`."""


def pack_images(
    plan: StorePlan,
    files: StoreFiles,
    info: StoreInfo,
    workers: Workers,
    processes: Processes[Any] | None = None,
    found: dict[str, ImageShardManifest] | None = None,
) -> dict[str, ImageShardManifest]:
    """Write every image tar of the store that is not there yet, and return the manifests that commit them, by shard.

    Args:
        plan: With a catalogue.
        files: Of the store.
        info: Its settings.
        workers: Read, and shrink or cut, in parallel.
        processes: Of `maker_of`, where the workers only read.
        found: What `packed_manifests` returned before.
    Raises:
        ResumableStop: somebody asked to stop.
        OSError: the disk is full or failing.
    """
    catalogue, spool_folder = plan.catalogue, files.scratch / _SPOOL
    assert catalogue is not None
    shutil.rmtree(spool_folder, ignore_errors=True)  # of an interrupted run
    manifests = packed_manifests(plan, files, info, found)
    groups = [group for group, shard in enumerate(plan.shards) if shard.stem not in manifests]
    make = partial(maker_of(info), info=info) if processes is None else processes.call
    named: set[str] = set()
    packing = _pack_cuts if catalogue.cuts is not None else _pack_whole
    try:
        unit, total = "images" if catalogue.cuts is None else "samples", sum(map(catalogue.num_samples_in, groups))
        with Progress(total, unit=unit, description="pack") as bar:
            for group, images in packing(plan, spool_folder, groups, workers, make):
                stem = plan.shards[group].stem
                manifests[stem] = _write_tar(files, stem, images, info, bar, named)
    finally:
        shutil.rmtree(spool_folder, ignore_errors=True)
    return manifests


def maker_of(info: StoreInfo) -> Callable[..., Any]:
    """Return what turns an image into what stands for it: `members_of`, or `pieces_of` where images are cut."""
    return pieces_of if info.is_cut else members_of


def _pack_whole(
    plan: StorePlan,
    spool_folder: Path,
    groups: list[int],
    workers: Workers,
    make: Callable[[SampleRef, bytes | FilePart], dict[str, bytes]],
) -> Iterator[tuple[int, Iterator[PackedImage]]]:
    """Yield the samples of each tar, one for each image."""
    catalogue, files_reader, spool = plan.catalogue, FilesReader(plan.source.root), None
    assert catalogue is not None
    refs = catalogue.refs
    if groups and plan.source.kind != "files":
        spool = Spool(spool_folder, catalogue, groups)
        spool.fill(plan.source.shards, workers)

    def read_file(position: int) -> bytes | FilePart:
        ref = refs[position]
        if (
            plan.packing is not None and plan.packing.short_side and ref.length > MAX_IMAGE_BYTES
        ):  # parts of it may be enough
            return FilePart(join(plan.source.root, ref.path))
        return files_reader.read(ref)

    for group in groups:
        with spool.reading(group) if spool else nullcontext(read_file) as read:
            yield group, workers.map(partial(_pack_image, refs, read, make), catalogue.groups[group].tolist())


def _pack_cuts(
    plan: StorePlan,
    spool_folder: Path,
    groups: list[int],
    workers: Workers,
    make: Callable[[CutRef, FilePart], list[Piece]],
) -> Iterator[tuple[int, Iterator[PackedImage]]]:
    """Yield the samples of each tar, several for an image; images in containers that have no order are spooled once."""
    catalogue = plan.catalogue
    assert catalogue is not None and catalogue.cuts is not None
    cuts, counts = catalogue.cuts, _Counts()
    num_samples = np.zeros(len(catalogue.refs), np.int64)
    np.add.at(num_samples, [cut.position for cut in cuts], [cut.count for cut in cuts])
    places = places_of(plan.source, catalogue.refs, catalogue.shard_counts)
    find: Callable[[int], FilePart] = places.__getitem__ if places is not None else lambda _: FilePart("")
    if groups and places is None:
        wanted = np.unique([cuts[number].position for group in groups for number in catalogue.groups[group].tolist()])
        spool = Spool(spool_folder, replace(catalogue, groups=[wanted]), [0])
        spool.fill(plan.source.shards, workers)
        find = partial(spool.place, 0)

    def pack(number: int) -> list[Piece]:
        cut = cuts[number]
        sample = 1 / int(num_samples[cut.position])
        try:
            return [piece._replace(share=sample) for piece in make(cut, find(cut.position))]
        except BadSample as error:
            ref = SampleRef(cut.own_key, cut.offset, cut.length, cut.label, cut.path)
            return [Piece(ref, error, share=cut.count * sample)]

    for group in groups:
        # What waits to be written is as large as what is in work, so that no more than that is made in advance.
        pieces = workers.map(pack, catalogue.groups[group].tolist(), ahead=workers.count)
        yield group, counts.counting(pieces)
    counts.report(plan.packing)


class _Counts:
    """Tiles that this run has made, and how many of them are of one colour."""

    def __init__(self) -> None:
        self.made = self.flat = 0
        self.example = ""

    def counting(self, cuts: Iterator[list[Piece]]) -> Iterator[PackedImage]:
        """Yield what is to be written, and count it."""
        for pieces in cuts:
            for ref, members, is_flat, share in pieces:
                self.made += 1
                if is_flat and members is not None:
                    self.flat += 1
                    self.example = self.example or ref.key
                yield PackedImage(ref, members, share)

    def report(self, packing: Packing | None) -> None:
        """Say how many are of one colour and were kept."""
        if self.flat and packing is not None and packing.tile:
            logger.info(
                "%d of %d tiles are next to one colour, such as %s, and are kept; --set tile_min_std=%g leaves "
                "such out",
                self.flat,
                self.made,
                self.example,
                2 * FLAT_STD,
            )


def packed_manifests(
    plan: StorePlan, files: StoreFiles, info: StoreInfo, found: dict[str, ImageShardManifest] | None = None
) -> dict[str, ImageShardManifest]:
    """Return the manifest of every packed tar, by shard; a shard that has none has to be written (again).

    Sizes are checked, and headers where that does not mean to read a remote tar; the full hash is compared when a
    remote tar is tokenised, and by `beit verify`.

    Args:
        plan: With a catalogue.
        files: Of the store.
        info: Its settings.
        found: What this returned before; only what was missing then is looked for.
    """
    sizes, found = {file.path: file.size for file in (files / IMAGES_DIR).files()}, dict(found or {})
    missing = [shard.stem for shard in plan.shards if shard.stem not in found]
    with ThreadPoolExecutor(_CHECK_THREADS) as pool:
        looked_at = pool.map(lambda stem: _packed_manifest(files, stem, info, sizes), missing)
        return found | {stem: manifest for stem, manifest in zip(missing, looked_at, strict=True) if manifest}


def _packed_manifest(files: StoreFiles, stem: str, info: StoreInfo, sizes: dict[str, int]) -> ImageShardManifest | None:
    folder = files / IMAGES_DIR
    if manifest_name(stem) not in sizes:
        return None
    try:
        place = folder / manifest_name(stem)
        manifest = read_document(ImageShardManifest, place)
        if manifest.settings_sha256 != info.settings_sha256():
            raise InputError(f"{place} belongs to other settings")
        tar, expected = folder / manifest.image.name, manifest.image
        is_same = sizes.get(expected.name) == expected.size
        if not is_same or (not is_remote(tar.location) and _header_digest(tar) != expected.header_sha256):
            raise InputError(f"{tar} is not the file that its manifest describes")
    except InputError as error:
        logger.warning("packing %s again: %s", stem, error)
        return None
    return manifest


def _header_digest(place: Place) -> str:
    with place.open() as file:
        return walk_tar(file, label=place.location).header_sha256


def _pack_image(
    refs: list[SampleRef],
    read: ReadImage,
    make: Callable[[SampleRef, bytes | FilePart], dict[str, bytes]],
    position: int,
) -> PackedImage:
    ref = refs[position]
    try:
        return PackedImage(ref, make(ref, read(position)))
    except BadSample as error:
        return PackedImage(ref, error)


def _write_tar(
    files: StoreFiles, stem: str, images: Iterator[PackedImage], info: StoreInfo, progress: Progress, named: set[str]
) -> ImageShardManifest:
    """Write one image tar and then its manifest; `named` are unusable images that were told of, and gets more."""
    folder, name = files / IMAGES_DIR, f"{stem}.tar"
    skipped: dict[str, SkippedSample] = {}
    num_samples = num_blank = 0
    begin_shard(folder, stem)
    with new_shard_tar(folder, stem) as tar:
        for ref, members, share in images:
            progress.update(1)
            if members is None:
                num_blank += 1
                continue
            if isinstance(members, BadSample):
                is_told = ref.key in named or members.reason in {sample.reason for sample in skipped.values()}
                if not is_told:  # the manifest has no room for why
                    logger.warning("sample %s/%s cannot be packed: %s", stem, ref.key, members)
                named.add(ref.key)
                before = skipped[ref.key].share if ref.key in skipped else 0.0  # other parts of the same image
                skipped[ref.key] = SkippedSample(key=ref.key, reason=members.reason, share=before + share)
                continue
            for suffix, data in members.items():
                tar.add(f"{ref.key}.{suffix}", data)
            num_samples += 1
        sha256, header_sha256 = tar.finish(), walk_tar(tar.file, label=str(folder / name)).header_sha256
    manifest = ImageShardManifest(
        stem=stem,
        settings_sha256=info.settings_sha256(),
        image=ImageFile(name=name, size=tar.size, header_sha256=header_sha256, sha256=sha256),
        num_samples=num_samples,
        skipped=tuple(skipped.values()),
        num_blank=num_blank,
    )
    write_document(folder / manifest_name(stem), manifest)
    return manifest
