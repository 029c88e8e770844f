"""What is known of a source, as a record: the table and the JSON are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from beit.common.storage.documents import Format

SURVEY_FORMAT = Format("beit-survey", 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """Files or images that tokenising would not use, for one reason."""

    reason: str
    """Such as "masks", ".heic", "hidden", "truncated"."""
    count: int
    """How many; of a sample, reckoned up to all."""
    is_estimated: bool = False
    """Whether only a sample was looked at."""
    example: str
    """One of them."""
    way_out: str
    """What to do to have them, or why they are no loss."""
    is_unusable: bool = False
    """Whether it is an image that cannot be used, of which `bad_sample_budget` allows few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedSize:
    """The size of one image, and which it is."""

    path: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """What headers say of the images that were looked at."""

    formats: Mapping[str, int]
    """Images by format."""
    megapixels: Mapping[str, int]
    """Images by class of size, from small to large."""
    bits: Mapping[str, int]
    """Images by bits of a value, as far as they are used."""
    channels: Mapping[str, int]
    """Images by the number of their channels or bands, without opacity."""
    colours: Mapping[str, int]
    """Images by what their channels are: RGB, grey, palette, CMYK, or bands of any meaning."""
    frames: Mapping[str, int]
    """Images by how many pages, slices or moments their file has."""
    median_megapixels: float
    """Of all."""
    mean_megapixels: float
    """Of all."""
    shortest_side: int
    """In pixels, of all."""
    longest_side: int
    """The same."""
    smallest: NamedSize
    """By pixels."""
    largest: NamedSize
    """The same."""
    num_transparent: int
    """Images with transparent parts."""
    num_decoded: int
    """Of these, decoded to see what they hide."""
    num_hiding: int
    """Of these, how many hide colours (`beit.common.images.alpha.hides_colours`)."""
    num_turned: int
    """Images that EXIF data turn or mirror."""
    num_animated: int
    """Images of several frames or pages."""
    num_slices: int
    """DICOM images that share their series with others."""
    num_series: int
    """Series of several of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """The labels of a source."""

    place: str
    """Where they stand: "folders of the first level", "column label", "members .cls"."""
    num_classes: int
    """Different ones."""
    num_labelled: int
    """Images that have one, of those listed."""
    num_listed: int
    """Images of which the labels were listed: all, unless there are very many shards."""
    smallest: str
    """The class of the fewest images."""
    smallest_count: int
    """Of these."""
    largest: str
    """The class of the most images."""
    largest_count: int
    """Of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Images that are there more than once."""

    num_compared: int
    """Images among which they were looked for."""
    num_copies: int
    """Images that could go, since another has the same bytes."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Paths of the same bytes, the first groups."""
    num_across_splits: int = 0
    """Groups that lie in several splits."""
    num_across_labels: int = 0
    """Groups whose labels differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Images that look alike and are not the same bytes."""

    num_compared: int
    """Images among which they were looked for."""
    num_images: int
    """Images that have another one like them."""
    pairs: tuple[tuple[str, str, int], ...] = ()
    """Paths of the first pairs, and how many of 64 bits of their hashes differ."""
    num_undecodable: int = 0
    """Images that decoding found damaged, which their headers did not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """All that is known of a source."""

    format: str = SURVEY_FORMAT.name
    """As `SURVEY_FORMAT` says."""
    format_version: int = SURVEY_FORMAT.version
    """The same."""
    source: str
    """As the user named it."""
    kind: str
    """files, tar or parquet; empty where it cannot be opened."""
    num_shards: int = 0
    """Tars, row groups, or runs of 1000 files."""
    num_images: int = 0
    """To be tokenised."""
    is_counted: bool = True
    """Whether all were counted; else estimated from some tars."""
    total_bytes: float = 0.0
    """Of the images; estimated where `num_looked_at` is smaller and the container tells no lengths."""
    num_looked_at: int = 0
    """Of which the header was read."""
    looks: Looks | None = None
    """None where no header could be read."""
    uses_each_frame: bool = False
    """Whether of several frames each becomes a sample (`source.frame=each`)."""
    labels: Labels | None = None
    """None where there are none."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Images listed in each part of a data set, by its folder or file."""
    left_out: tuple[LeftOut, ...] = ()
    """What would not be used, and why."""
    duplicates: Duplicates | None = None
    """None where they were not looked for."""
    near_duplicates: NearDuplicates | None = None
    """The same."""
    near_note: str = ""
    """Why there are none of the latter."""
    notes: tuple[str, ...] = ()
    """What is worth minding."""
    refusals: tuple[str, ...] = ()
    """Why tokenising would refuse."""

    @property
    def scale(self) -> float:
        """Images for each that was looked at."""
        return self.num_images / self.num_looked_at if self.num_looked_at else 1.0

    @property
    def is_sampled(self) -> bool:
        """Whether what headers say was counted on a sample."""
        return self.num_looked_at < self.num_images

    def to_json(self) -> dict[str, Any]:
        """Return all of it for a JSON document. Counts in `looks` are of the images looked at."""
        return asdict(self)


def counted(values: Counter[str]) -> dict[str, int]:
    """Return counts, the largest first, ties by name."""
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))
