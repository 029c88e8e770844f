"""Putting the images of a folder, list or Parquet file into tars of the store.

Image bytes are stored as they came, or shrunk to a short side and re-encoded, or replaced by the crops of their views
(`tokenize/shards/crops.py`). Which image goes where is decided in `tokenize/plan.py`; how containers are read in
another order than theirs is in `spool.py`.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import USUAL, Decoding
from beit.common.images.jpeg import is_jpeg
from beit.common.progress import Progress
from beit.common.shards.schema import IMAGES_DIR, ImageFile, ImageShardManifest, SkippedSample, StoreInfo, manifest_name
from beit.common.sources.labels import stored_label
from beit.common.sources.loose_files import FilesReader
from beit.common.sources.types import SampleRef
from beit.common.storage.documents import read_document, write_document
from beit.common.storage.paths import is_remote
from beit.common.storage.place import Place
from beit.common.storage.tar_walk import walk_tar
from beit.tokenize.packing.spool import ReadImage, Spool
from beit.tokenize.parallel import Processes, Workers
from beit.tokenize.plan import StorePlan
from beit.tokenize.shards.crops import crop_suffix, cut_crops
from beit.tokenize.shards.encode import ViewMaker
from beit.tokenize.shards.writer import begin_shard, new_shard_tar
from beit.tokenize.store.documents import StoreFiles

logger = logging.getLogger(__name__)

_SPOOL = ".spool"
_CHECK_THREADS = 16  # a tar is a few reads, or one request; arbitrary
_MAGIC_SUFFIXES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"RIFF", "webp"))


PackedImage = tuple[SampleRef, dict[str, bytes] | BadSample]
"""An image ready to be written: its content by what follows the key in the name, or why there is none."""


def pack_images(
    plan: StorePlan,
    files: StoreFiles,
    info: StoreInfo,
    workers: Workers,
    processes: Processes[dict[str, bytes]] | None = None,
    found: dict[str, ImageShardManifest] | None = None,
) -> dict[str, ImageShardManifest]:
    """Write every image tar of the store that is not there yet, and return the manifests that commit them, by shard.

    Args:
        plan: With a catalogue.
        files: Of the store.
        info: Its settings.
        workers: Read, and shrink, in parallel.
        processes: Of `members_of`, where the workers only read.
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
    make = partial(members_of, info=info) if processes is None else processes.call
    files_reader, spool = FilesReader(plan.source.root), None

    def read_file(position: int) -> bytes:
        return files_reader.read(catalogue.refs[position])

    try:
        if groups and plan.source.kind != "files":
            spool = Spool(spool_folder, catalogue, groups)
            spool.fill(plan.source.shards, workers)
        with Progress(sum(len(catalogue.groups[group]) for group in groups), unit="images", description="pack") as bar:
            for group in groups:
                with spool.reading(group) if spool else nullcontext(read_file) as read:
                    pack = partial(_pack_image, catalogue.refs, read, make)
                    images = workers.map(pack, catalogue.groups[group].tolist())
                    stem = plan.shards[group].stem
                    manifests[stem] = _write_tar(files, stem, images, info, bar)
    finally:
        if spool:
            spool.remove()
    return manifests


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


def shrink(data: bytes, short_side: int, *, jpeg_quality: int, decoding: Decoding = USUAL) -> bytes:
    """Return the image with its short side reduced to `short_side` px as a JPEG, or as it is if it is not larger.

    The pixels are turned as EXIF asks, so the result carries no EXIF. Who reads it decodes it as usual, so an image
    that is not larger stays as it is only where that shows the same.

    Raises:
        BadSample: the image cannot be decoded.
    """
    image = decode_image(data, decoding)
    scale = min(1.0, short_side / min(image.size))
    if scale == 1 and (decoding.is_usual or (decoding.leaves_jpeg and is_jpeg(data))):
        return data
    if scale < 1:
        size = (max(short_side, round(image.width * scale)), max(short_side, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue()


def _pack_image(
    refs: list[SampleRef], read: ReadImage, make: Callable[[SampleRef, bytes], dict[str, bytes]], position: int
) -> PackedImage:
    ref = refs[position]
    try:
        return ref, make(ref, read(position))
    except BadSample as error:
        return ref, error


def members_of(ref: SampleRef, data: bytes, info: StoreInfo) -> dict[str, bytes]:
    """Return the members that stand for one image, by what follows the key in their names.

    Raises:
        BadSample: the image cannot be decoded.
    """
    packing = info.packing
    assert packing is not None
    quality = packing.jpeg_quality or 0  # given wherever something is encoded
    if packing.materialize:
        maker = replace(ViewMaker.of_store(info), decoding=info.source.decoding)
        crops, origin = cut_crops(data, ref.key, maker, img_size=info.img_size, jpeg_quality=quality)
        images = {crop_suffix(k): encoded for k, encoded in enumerate(crops)}
        return images | {"json": _metadata(ref, origin)}
    if packing.short_side:
        data = shrink(data, packing.short_side, jpeg_quality=quality, decoding=info.source.decoding)
    return {_suffix(data): data, "json": _metadata(ref, {})}


def _write_tar(
    files: StoreFiles, stem: str, images: Iterator[PackedImage], info: StoreInfo, progress: Progress
) -> ImageShardManifest:
    """Write one image tar and then its manifest."""
    folder, name = files / IMAGES_DIR, f"{stem}.tar"
    skipped: list[SkippedSample] = []
    num_samples = 0
    begin_shard(folder, stem)
    with new_shard_tar(folder, stem) as tar:
        for ref, members in images:
            progress.update(1)
            if isinstance(members, BadSample):
                skipped.append(SkippedSample(key=ref.key, reason=members.reason))
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
        skipped=tuple(skipped),
    )
    write_document(folder / manifest_name(stem), manifest)
    return manifest


def _suffix(data: bytes) -> str:
    # What decodes as none of these is packed all the same and counted as unusable when it is tokenised.
    return next((suffix for magic, suffix in _MAGIC_SUFFIXES if data.startswith(magic)), "jpg")


def _metadata(ref: SampleRef, origin: dict[str, Any]) -> bytes:
    label = stored_label(ref.label)
    metadata = {"path": ref.path} | ({"label": label} if label is not None else {}) | origin
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
