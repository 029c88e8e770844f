"""Looking at a source: opened as tokenising would, listed, its headers read, duplicates found."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from beit.common.errors import InputError
from beit.common.images.depth import num_looked_at, range_use
from beit.common.images.ranges import DTYPE
from beit.common.pages.numbers import count
from beit.common.reading.bad_samples import BadSampleLog
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.few import draw_listed, named
from beit.common.sources.glance.masks import masks_in_words
from beit.common.sources.glance.transparency import WAY_OUT
from beit.common.sources.opening import open_source
from beit.common.sources.types import Source
from beit.tokenize.survey import duplicates
from beit.tokenize.survey.document import Labels, LeftOut, Survey
from beit.tokenize.survey.listing import Listed, beside, check_exists, keeping_warnings, list_source
from beit.tokenize.survey.looking import AnySize, Look, look_at, summed_up, unusable

_USUAL_BITS = 8
LIMIT = 10_000
"""Images of which headers are read, unless another number is asked for; arbitrary, seconds on a disk."""


def survey(
    spec: str,
    settings: SourceConfig,
    *,
    limit: int = LIMIT,
    looks_alike: bool = False,
    budget: float = 0.001,
    any_size: AnySize = frozenset(),
) -> tuple[Survey, list[Look]]:
    """Look at a source; return what there is, and the images that were looked at.

    Args:
        spec: As `open_source` takes it.
        settings: Which images would be read.
        limit: Images of which headers are read, spread evenly; 0 for all.
        looks_alike: Also decode these, to find those that look alike.
        budget: Share of unusable images that tokenising would tolerate.
        any_size: Formats of which tokenising would read images of any size.
    Raises:
        InputError: there is nothing to look at. What is there and would be refused is a `Survey` with `refusals`.
    """
    check_exists(spec)
    left_out: list[LeftOut] = []
    with keeping_warnings() as warnings:
        try:
            left_out = beside(spec)
            source = open_source(spec, image_member=settings.image_member)
            listed = list_source(source, all_shards=not limit)
        except InputError as error:
            refused = Survey(source=spec, kind="", left_out=tuple(left_out), notes=tuple(warnings))
            return replace(refused, refusals=(str(error),)), []
        masks = masks_in_words(source)
    looks = look_at(listed, limit, settings, any_size)
    found = Survey(
        source=spec,
        kind=source.kind,
        num_shards=len(source.shards),
        num_images=listed.num_images,
        is_counted=listed.is_counted,
        total_bytes=_total_bytes(listed, looks),
        num_looked_at=len(looks),
        looks=summed_up(looks),
        uses_each_frame=settings.decoding.frame == "each",
        labels=_labels(source, listed),
        splits=listed.splits(source.root),
    )
    alike = None
    if looks_alike and duplicates.is_installed():
        alike = duplicates.look_alike(looks, settings)
    found = replace(
        found,
        left_out=(*unusable(looks, found.scale), *left_out, *listed.left_out),
        duplicates=duplicates.same_bytes(listed, looks),
        near_duplicates=alike,
        near_note="" if looks_alike and alike is not None else duplicates.way_to(looks_alike),
    )
    notes = [*dict.fromkeys(warnings), *masks, *_alpha_notes(found, settings), *_range_notes(listed, looks, settings)]
    notes += _odd_notes(found)
    return replace(found, notes=tuple(notes), refusals=tuple(_refusals(found, budget))), looks


def _total_bytes(listed: Listed, looks: Sequence[Look]) -> float:
    lengths = [ref.length for refs in listed.refs for ref in refs if ref.length]
    if not lengths:
        lengths = [look.num_bytes for look in looks if look.num_bytes]
    return listed.num_images * statistics.fmean(lengths) if lengths else 0.0


def _labels(source: Source, listed: Listed) -> Labels | None:
    names = source.class_names
    counts = Counter(ref.label for refs in listed.refs for ref in refs if ref.label is not None)
    if not counts:
        return None

    def name(label: int | str) -> str:
        return names[label] if names is not None and isinstance(label, int) else str(label)

    ordered = sorted(counts.items(), key=lambda item: (-item[1], name(item[0])))
    (largest, most), (smallest, fewest) = ordered[0], ordered[-1]
    return Labels(
        place=source.label_place,
        num_classes=len(names) if names is not None else len(counts),
        num_labelled=counts.total(),
        num_listed=sum(map(len, listed.refs)),
        smallest=name(smallest),
        smallest_count=fewest,
        largest=name(largest),
        largest_count=most,
    )


def _range_notes(listed: Listed, looks: Sequence[Look], settings: SourceConfig) -> list[str]:
    """Say it where the full range, which nobody has chosen, leaves little of what deep images show."""
    is_deep = any(look.facts is not None and look.facts.bits > _USUAL_BITS for look in looks)
    if not is_deep or settings.decoding.value_range.kind != DTYPE:
        return []
    drawn = named(draw_listed(listed.shards, listed.refs, num_looked_at(listed.num_images), is_quick=True))
    use = range_use(drawn, settings.decoding)
    return [use.warning()] if use is not None and use.is_crushed else []


def _alpha_notes(found: Survey, settings: SourceConfig) -> list[str]:
    looks = found.looks
    if looks is None or not looks.num_hiding:
        return []
    return [
        f"{looks.num_hiding} of the {looks.num_decoded} transparent images that were decoded hide colours which differ "
        f"from what is seen around them; transparency is dropped, so these colours show; {WAY_OUT}"
    ]


def _series_notes(found: Survey) -> list[str]:
    looks = found.looks
    if looks is None or not looks.num_series:
        return []
    return [
        f"{count(looks.num_slices, 'DICOM image')} belong to {count(looks.num_series)} series, and each is held out or "
        "trained on by itself, so that neighbouring slices make held-out measures too good; those named "
        "SERIES~p0001.dcm, SERIES~p0002.dcm and so on are held out together"
    ]


def _odd_notes(found: Survey) -> list[str]:
    notes = _series_notes(found)
    copies = found.duplicates
    if copies is not None and copies.num_across_splits:
        notes.append(
            f"{count(copies.num_across_splits, 'image')} in several splits, byte for byte: a model is measured on what "
            "it learned; leave them out of one"
        )
    if copies is not None and copies.num_across_labels:
        notes.append(f"{count(copies.num_across_labels, 'image')} with several labels, in copies byte for byte")
    if found.near_duplicates is not None and found.near_duplicates.num_undecodable:
        notes.append(
            f"{count(found.near_duplicates.num_undecodable, 'image')} damaged behind a good header, found by decoding"
        )
    return notes


def _refusals(found: Survey, budget: float) -> list[str]:
    bad = sum(left.count for left in found.left_out if left.is_unusable)
    if found.near_duplicates is not None:
        bad += round(found.near_duplicates.num_undecodable * found.scale)
    allowed = BadSampleLog(found.num_images, budget, setting="bad_sample_budget").allowed
    if found.num_images and bad >= found.num_images:
        return ["none of its images can be used; what is wrong with them stands above"]
    if bad <= allowed:
        return []
    about = "about " if found.is_sampled else ""
    return [
        f"{about}{bad} of {found.num_images} images cannot be used, but bad_sample_budget ({budget:g}) allows "
        f"{allowed}; repair or remove them, or raise the budget"
    ]
