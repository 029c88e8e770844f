"""What is known of a source as a table on a terminal of 80 columns; `~` marks what was estimated on a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from beit.common.errors import printable
from beit.common.forecast.words import in_digits, in_gb
from beit.common.images.header import BANDS
from beit.common.pages.numbers import count
from beit.common.pages.tables import columns, folded
from beit.tokenize.survey.document import Duplicates, LeftOut, NamedSize, NearDuplicates, Survey

_KINDS = {"files": "loose files", "tar": "tars", "parquet": "Parquet"}
_INDENT = "  "
_SPLITS_SHOWN = 6
_IN_WORDS = {BANDS: "of several bands"}

Rows = Sequence[tuple[str, str]]


def survey_text(found: Survey, more: Sequence[tuple[str, Rows]] = ()) -> str:
    """Write all that is known of a source.

    Args:
        found: It.
        more: Further blocks of a title and labelled lines, which stand before the verdict.
    """
    blocks = [_heading(found)]
    rows = [*_of_looks(found), *_of_labels(found), *_of_duplicates(found)] if found.kind else []
    blocks += [_block("", rows)] if rows else []
    blocks += [_left_out(found)] if found.left_out else []
    blocks += [_block(title, lines) for title, lines in more if lines]
    blocks += [_list("to mind", found.notes, "!")] if found.notes else []
    blocks.append(_list("would be refused", found.refusals, "x") if found.refusals else "would be tokenised")
    return "\n\n".join(blocks)


def _folded(text: str, *, indent: str) -> str:
    """Fold a text in which names of files stand, before a line break in one of them becomes one on the terminal."""
    return folded(printable(text), indent=indent)


def _heading(found: Survey) -> str:
    if not found.kind:
        return f"{printable(found.source)}: not to be tokenised"
    amount = f"{'' if found.is_counted else '~'}{count(found.num_images, 'image')}"
    size = (
        f", {in_gb(found.total_bytes)} ({in_gb(found.total_bytes / found.num_images)} each)" if found.num_images else ""
    )
    shards = "" if found.kind == "files" else f"{found.num_shards} "
    unit = {"tar": "tar" if found.num_shards == 1 else "tars", "parquet": "row groups of Parquet"}
    where = f"{shards}{unit.get(found.kind, _KINDS[found.kind])}"
    lines = [_folded(f"{found.source}: {amount} in {where}{size}", indent=_INDENT)]
    if found.is_sampled:
        sampled = f"by the headers of {count(found.num_looked_at, 'image')}, spread evenly; ~ marks what is estimated"
        lines.append(_folded(f"{_INDENT}{sampled} (--limit 0 looks at all)", indent=_INDENT))
    return "\n".join(lines)


def _of_looks(found: Survey) -> Iterator[tuple[str, str]]:
    looks = found.looks
    if looks is None:
        return
    yield "format", _counts(found, looks.formats)
    yield "megapixels", _classes(found, looks.megapixels)
    if (looks.smallest.width, looks.smallest.height) == (looks.largest.width, looks.largest.height):
        yield "", f"all are {looks.smallest.width} x {looks.smallest.height} px"
    else:
        yield "", f"median {in_digits(looks.median_megapixels)}; sides {looks.shortest_side} to {looks.longest_side} px"
        yield "", f"smallest {_size(looks.smallest)}, largest {_size(looks.largest)}"
    yield "bits", _classes(found, looks.bits)
    names = {_IN_WORDS.get(name, name): number for name, number in looks.colours.items()}
    yield "colours", _counts(found, names)
    if BANDS in looks.colours:
        yield "channels", _classes(found, looks.channels)
    if looks.num_transparent:
        hiding = f", of {looks.num_decoded} decoded {looks.num_hiding} hide colours" if looks.num_decoded else ""
        yield "alpha", f"{_scaled(found, looks.num_transparent)} with transparent parts{hiding}"
    if looks.num_turned:
        yield "orientation", f"{_scaled(found, looks.num_turned)} turned or mirrored by EXIF, which is applied"
    if looks.num_animated:
        numbers = [int(number) for number in looks.frames if number != "1"]
        most = f"{min(numbers)} to {max(numbers)}" if len(set(numbers)) > 1 else f"{max(numbers)} each"
        used = "each of which is used" if found.uses_each_frame else "of which one is used"
        yield "frames", f"{_scaled(found, looks.num_animated)} have several frames or pages ({most}), {used}"


def _size(named: NamedSize) -> str:
    return f"{named.width} x {named.height} ({named.path})"


def _counts(found: Survey, values: Mapping[str, int]) -> str:
    return ", ".join(f"{_scaled(found, value)} {name}" for name, value in values.items())


def _classes(found: Survey, values: Mapping[str, int]) -> str:
    """Write counts of what is itself a number."""
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{name}: {_scaled(found, value)}" for name, value in values.items())


def _scaled(found: Survey, value: int) -> str:
    return f"~{count(round(value * found.scale))}" if found.is_sampled else count(value)


def _of_labels(found: Survey) -> Iterator[tuple[str, str]]:
    labels = found.labels
    if labels is None:
        yield "labels", "none"
    else:
        rest, are_some = labels.num_listed - labels.num_labelled, labels.num_listed < found.num_images
        without = f", {count(rest)} without" if rest else ""
        listed = f" (of {count(labels.num_listed)} listed)" if are_some else ""
        classes = count(labels.num_classes, "class", plural="classes")
        yield "labels", f"{labels.place}: {classes}, {count(labels.num_labelled, 'image')} with one{without}{listed}"
        if labels.largest_count == labels.smallest_count and labels.num_classes > 1:
            yield "", f"{count(labels.smallest_count)} of each"
        elif labels.largest != labels.smallest:
            fewest, most = count(labels.smallest_count), count(labels.largest_count)
            yield "", f"from {fewest} ({labels.smallest}) to {most} ({labels.largest})"
    if found.splits:
        shown = list(found.splits.items())[:_SPLITS_SHOWN]
        more = ", ..." if len(found.splits) > _SPLITS_SHOWN else ""
        yield "splits", ", ".join(f"{name} ({count(number)})" for name, number in shown) + more


def _of_duplicates(found: Survey) -> Iterator[tuple[str, str]]:
    if found.duplicates is not None:
        yield "duplicates", _same_bytes(found.duplicates)
    if found.near_duplicates is not None:
        yield "look alike", _look_alike(found.near_duplicates)
    elif found.near_note and found.kind:
        yield "look alike", found.near_note


def _same_bytes(copies: Duplicates) -> str:
    if not copies.num_copies:
        return f"none of the same bytes among {count(copies.num_compared)}"
    first, second = copies.groups[0][:2]
    amount = f"{count(copies.num_copies)} of {count(copies.num_compared)}"
    return f"{amount} are copies, byte for byte ({second} of {first})"


def _look_alike(alike: NearDuplicates) -> str:
    if not alike.pairs:
        return f"none that look alike among {count(alike.num_compared)}"
    first = alike.pairs[0]
    return f"{count(alike.num_images)} of {count(alike.num_compared)} look like another ({first[1]} like {first[0]})"


def _left_out(found: Survey) -> str:
    return _block("left out", [(_left_label(left), f"{left.way_out} ({left.example})") for left in found.left_out])


def _left_label(left: LeftOut) -> str:
    return f"{'~' if left.is_estimated else ''}{count(left.count)} {left.reason}"


def _block(title: str, rows: Iterable[tuple[str, str]]) -> str:
    rows = [(printable(label), words) for label, words in rows]
    width = max(columns(label) for label, _ in rows) + 2
    hanging = _INDENT + " " * width
    lines = [
        _folded(f"{_INDENT}{label}{' ' * (width - columns(label))}{words}", indent=hanging)
        if label
        else _folded(f"{hanging}{words}", indent=hanging)
        for label, words in rows
    ]
    return "\n".join([title, *lines] if title else lines)


def _list(title: str, entries: Iterable[str], mark: str) -> str:
    return "\n".join([title, *(_folded(f"{_INDENT}{mark} {entry}", indent=_INDENT + "  ") for entry in entries)])
