"""What a source becomes: which shards a store will have, and which images go into each. Nothing is written here.

Existing tars are referenced as they are. Anything else is packed, and so are tars whose images are to be shrunk or
replaced by crops: images are put into the order of a keyed hash, so that every shard is a fair sample of the whole even
if the source is sorted by class, and cut into shards.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.images.decoding import DEFAULTS
from beit.common.images.depth import NUM_FOR_PERCENTILES, find_range
from beit.common.pages.numbers import count
from beit.common.rng import stable_hash64
from beit.common.shards.held_out import HeldOutBy, HeldOutChoice, choose_held_out, held_out_hash
from beit.common.shards.schema import IMAGES_DIR, STORE_FILE, Packing, SourceInfo, StoreInfo
from beit.common.sources.glance.few import Few, draw, draw_of_source, named
from beit.common.sources.labels import stored_label
from beit.common.sources.opening import list_samples, open_source
from beit.common.sources.tars import TarShard
from beit.common.sources.types import SampleRef, Source
from beit.common.storage.documents import parse_document, refuse_control_characters
from beit.common.storage.paths import is_remote, join, query_of, resolve_reference
from beit.common.storage.place import place_of
from beit.common.storage.samples import shard_starts
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.cutting.cuts import CutRef, CutRules, list_cuts

logger = logging.getLogger(__name__)

_UNSAFE_IN_STEM = re.compile(r"[^A-Za-z0-9._-]+")
CROP_BYTES_PER_PIXEL = 0.4
"""Of a materialised crop of a photo, roughly; decides how many images make a tar."""
PACKED_STEM = "files"
"""Behind the number in the names of packed shards."""


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard of the store."""

    stem: str
    """NNNNNN-<name>; the number keeps shards of the same name apart."""
    image_file: str
    """Image tar below the image root."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All images of a source that is to be packed, and the order they are packed in."""

    refs: list[SampleRef]
    """In source order; a place in this list is an image's position."""
    shard_counts: list[int]
    """Images in each source shard."""
    groups: list[NDArray[np.int64]]
    """For each tar to be packed, positions of its images, or of its cuts, in packing order."""
    cuts: list[CutRef] | None = None
    """What images become, in source order, where one may become several samples; None where each is a sample."""

    @property
    def num_samples(self) -> int:
        """Samples that all images become."""
        return sum(map(self.num_samples_in, range(len(self.groups))))

    def num_samples_in(self, group: int) -> int:
        """Samples of one tar."""
        positions = self.groups[group]
        return len(positions) if self.cuts is None else sum(self.cuts[number].count for number in positions.tolist())


@dataclass(frozen=True, slots=True)
class StorePlan:
    """The shards of a store."""

    source: Source
    source_info: SourceInfo
    image_root: str
    """As store.json holds it."""
    shards: list[PlannedShard]
    packing: Packing | None
    catalogue: Catalogue | None
    """None when existing tars are referenced."""
    class_names: tuple[str, ...] | None = None
    """Names of the labels, where they are known."""
    held_out_by: HeldOutBy = "image"
    """As the store that packed the images decided it, so that a second one over them holds out the same."""


def plan_store(config: TokenizeConfig, spec: str, store: str) -> StorePlan:
    """List a source and decide on the shards.

    Args:
        config: Packing settings and seed.
        spec: The source, as the user gave it.
        store: Folder of the store, which image paths are made relative to, or URL.
    """
    source = open_source(spec, image_member=config.source.image_member)
    origin = _store_of(source)
    if origin is not None and origin.is_materialized:
        raise InputError(
            f"{source.root} holds the crops of a materialised store, not images; tokenize the images it was made from"
        )
    is_listed_by_name = spec.lower().endswith((".txt", ".csv"))  # the store cannot become part of the source
    if source.kind == "files" and not is_listed_by_name and _is_inside(store, source.root):
        raise InputError(f"store ({store}) must not lie inside the source ({source.root}); choose another folder")
    is_referenced = source.kind == "tar" and not config.is_encoded_again
    plan = _plan_reference(source, store) if is_referenced else _plan_packing(source, config)
    source_info = replace(
        plan.source_info,
        max_megapixels=config.source.max_megapixels,
        image_member=config.source.image_member,
        **{name: config.source.decoding.setting(name) for name in DEFAULTS},
    )
    class_names = source.class_names or (origin.class_names if origin is not None else None)
    refuse_control_characters([class_names, plan.image_root, [shard.image_file for shard in plan.shards]], source.root)
    resolve_reference(store, plan.image_root)  # which raises where a reader of the store would
    by: HeldOutBy = "image" if origin is None else origin.held_out_by
    return replace(plan, source_info=source_info, class_names=class_names, held_out_by=by)


def _drawn_of(plan: StorePlan, count: int) -> Iterator[Few]:
    """Draw some images of what is to be tokenised."""
    catalogue = plan.catalogue
    if catalogue is None:
        return draw_of_source(plan.source, count)
    starts = shard_starts(catalogue.shard_counts)

    def ref_of(shard: int, rank: int) -> SampleRef:
        return catalogue.refs[int(starts[shard]) + rank]

    return draw(plan.source.shards, catalogue.shard_counts, ref_of, count)


def with_range(info: StoreInfo, plan: StorePlan) -> StoreInfo:
    """Find the values that percentiles of `source.range` stand for, once: they belong to the store from then on."""
    if info.source.decoding.value_range.is_resolved:
        return info
    drawn = named(_drawn_of(plan, NUM_FOR_PERCENTILES))
    found = find_range(drawn, info.source.decoding, of=plan.source.root).value_range.found
    return replace(info, source=replace(info.source, range_found=found))


def _store_of(source: Source) -> StoreInfo | None:
    """Return the settings of the store that packed the images of a source; None for images of any other kind.

    Its tars hold the number of each label, and only its store.json the names.
    """
    folder, _, name = source.root.rpartition("/")
    document = join(folder, STORE_FILE)
    if source.kind != "tar" or name != IMAGES_DIR:
        return None
    try:
        if not place_of(document).exists():
            return None
        data = place_of(document).read()
    except InputError as error:  # a server that lets nobody see more than the images
        logger.info("not looking whether the images are those of a store: %s", error)
        return None
    info = parse_document(StoreInfo, data, label=document)
    return info if info.packing is not None else None


def _is_inside(store: str, root: str) -> bool:
    if is_remote(store) or is_remote(root):
        return f"{store}/".startswith(f"{root}/")
    return Path(store).resolve().is_relative_to(Path(root).resolve())


def _plan_reference(source: Source, store: str) -> StorePlan:
    hasher = hashlib.sha256()
    shards = []
    for number, shard in enumerate(source.shards):
        assert isinstance(shard, TarShard)
        if query_of(shard.location):
            raise InputError(
                f"{shard.location} was given with a query, such as a signature that expires, so a store cannot refer "
                "to it; copy it to a disk or a bucket, or have its images packed with --short-side or --materialize"
            )
        name = shard.location.removeprefix(source.root).lstrip("/")
        hasher.update(f"{name}\0{shard.size}\0".encode())
        stem = f"{number:06d}-{_UNSAFE_IN_STEM.sub('_', shard.name)}"
        shards.append(PlannedShard(stem=stem, image_file=name))
    info = SourceInfo(kind=source.kind, num_shards=len(shards), digest=hasher.hexdigest(), stamp=source.stamp)
    root = _image_root(source.root, store)
    return StorePlan(source, info, image_root=root, shards=shards, packing=None, catalogue=None)


def _image_root(root: str, store: str) -> str:
    """Return the folder of referenced tars as store.json holds it: relative where both are folders, else in full."""
    if is_remote(root):
        return root
    if is_remote(store):
        logger.warning(
            "the images stay in %s, and %s refers to them there: training finds them only where this folder is",
            root,
            store,
        )
        return os.path.realpath(root)
    return os.path.relpath(os.path.realpath(root), Path(store).resolve())


def _plan_packing(source: Source, config: TokenizeConfig) -> StorePlan:
    hasher = hashlib.sha256()
    refs: list[SampleRef] = []
    shard_counts: list[int] = []
    for found in list_samples(source):
        refs += found
        shard_counts.append(len(found))
    if source.kind == "tar":
        scopes = [shard.location.removeprefix(source.root) for shard in source.shards]
        refs = _with_unique_keys(refs, np.repeat(scopes, shard_counts).tolist())
    for ref in refs:
        hasher.update(f"{ref.key}\0{ref.length}\0{stored_label(ref.label)}\0{ref.path}\0".encode())
    require(bool(refs), "the source has no images")
    cuts: list[CutRef] | None = None
    if config.is_cut:
        most = min(config.shard_size, max(1, config.shard_bytes // max(1, config.tile_bytes)))
        rules = CutRules(config.tiling, config.source.decoding, most)
        cuts = list_cuts(source, refs, shard_counts, rules)
        for cut in cuts:
            hasher.update(f"{cut.order_key}\0{cut.size}\0{cut.count}\0".encode())
        groups = _group([(cut.order_key, cut.count, cut_bytes(cut, config)) for cut in cuts], config)
    else:
        groups = _group([(ref.key, 1, _image_bytes(ref, config)) for ref in refs], config)
    stems = [f"{number:06d}-{PACKED_STEM}" for number in range(len(groups))]
    shards = [PlannedShard(stem=stem, image_file=f"{stem}.tar") for stem in stems]
    catalogue = Catalogue(refs, shard_counts, groups, cuts)
    packing = Packing(
        shard_size=config.shard_size,
        shard_bytes=config.shard_bytes,
        short_side=config.short_side,
        keep_order=config.keep_order,
        materialize=config.materialize,
        jpeg_quality=config.stored_quality,
        tile=config.tile,
        overlap=config.overlap,
        tile_min_std=config.tile_min_std,
    )
    info = SourceInfo(
        kind=source.kind,
        num_shards=len(shards),
        num_images=len(refs),
        digest=hasher.hexdigest(),
        stamp=source.stamp,
    )
    return StorePlan(source, info, image_root=IMAGES_DIR, shards=shards, packing=packing, catalogue=catalogue)


def _with_unique_keys(refs: list[SampleRef], scopes: list[str]) -> list[SampleRef]:
    """Append a hash of tar and key to keys that come more than once: samples of several tars may end up in one."""
    counts = Counter(ref.key for ref in refs)
    return [
        ref if counts[ref.key] == 1 else replace(ref, key=f"{ref.key}-{stable_hash64(scope, ref.key) >> 24:010x}")
        for ref, scope in zip(refs, scopes, strict=True)
    ]


def _image_bytes(ref: SampleRef, config: TokenizeConfig) -> int:
    return round(config.views * config.img_size**2 * CROP_BYTES_PER_PIXEL) if config.materialize else ref.length


def cut_bytes(cut: CutRef, config: TokenizeConfig) -> int:
    """Estimate what the samples of a cut take in a packed tar."""
    if config.materialize:
        return cut.count * _image_bytes(cut, config)
    is_whole = cut.size is None or not config.tile or max(cut.size) <= config.tile
    return cut.length if is_whole else cut.count * config.tile_bytes


def say_cuts(plan: StorePlan, config: TokenizeConfig) -> None:
    """Say how many samples images become, where that may be several."""
    if plan.catalogue is None or plan.catalogue.cuts is None:
        return
    refs, cuts = plan.catalogue.refs, plan.catalogue.cuts
    pages = {(cut.position, cut.page) for cut in cuts}
    parts = [count(len(refs), "image")]
    parts += [count(len(pages), "page")] if config.source.frame == "each" else []
    if config.tile:
        parts.append(f"{count(sum(cut.count for cut in cuts), 'sample')} of at most {config.tile} x {config.tile} px")
    logger.info("%s", ", ".join(parts))
    choice = planned_held_out(plan, config)
    if choice is not None and choice.warning:
        logger.warning("%s", choice.warning)
    if config.tile and config.tile < config.img_size:
        logger.warning(
            "tile (%d) is smaller than img_size (%d), so that every view is enlarged; name a larger tile",
            config.tile,
            config.img_size,
        )


def planned_held_out(plan: StorePlan, config: TokenizeConfig) -> HeldOutChoice | None:
    """Return what will be held out where images are cut, as far as all samples are usable; None where none is."""
    if plan.catalogue is None or plan.catalogue.cuts is None:
        return None
    cuts = plan.catalogue.cuts
    # Of pages and tiles only what they share with their image is needed, and that is there without their names.
    hashes = np.array([held_out_hash(cut.key, plan.held_out_by) for cut in cuts], dtype=np.uint64)
    return choose_held_out(np.repeat(hashes, [cut.count for cut in cuts]), config.held_out, plan.held_out_by)


def _group(items: list[tuple[str, int, int]], config: TokenizeConfig) -> list[NDArray[np.int64]]:
    """Cut all images, or parts of images, into groups of nearly equal count.

    Args:
        items: What the order is a hash of, samples, and bytes of each; none of more than `shard_size` samples.
        config: No group is above `shard_size` samples or `shard_bytes`.
    """
    order = np.arange(len(items), dtype=np.int64)
    if not config.keep_order:
        hashes = np.array([stable_hash64(config.seed, "pack", key) for key, _, _ in items], dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
    total = sum(samples for _, samples, _ in items)
    num_groups = -(-total // config.shard_size)
    most = -(-total // num_groups)
    groups, start, num_samples, num_bytes = [], 0, 0, 0
    for place, number in enumerate(order.tolist()):
        _, samples, length = items[number]
        if place > start and (num_samples + samples > most or num_bytes + length > config.shard_bytes):
            groups.append(order[start:place])
            start, num_samples, num_bytes = place, 0, 0
        num_samples, num_bytes = num_samples + samples, num_bytes + length
    return [*groups, order[start:]]
