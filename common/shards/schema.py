"""What the files of a token store say: settings, shard manifests and the shard table, as dataclasses.

Here: the schemas, the names inside a store, and the one rule of geometry, img_size / patch_size = grid_size =
token_img_size / downsampling. Not here: JSON (`common/storage/documents.py`), Parquet files (`tables.py`), which
samples are held out (`held_out.py`), reading a store (`common/store.py`), writing one (the tokenize stage). Every field
is explained in docs/store-format.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Literal

from beit.common.config import Bound, above, at_least, checked, flatten, within
from beit.common.errors import require
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import RangeSetting
from beit.common.storage.documents import canonical_json, canonical_sha256
from beit.common.views import AugmentConfig

FORMAT_VERSION = 1
STORE_FORMAT = "beit-token-store"
TOKEN_SHARD_FORMAT = "beit-token-shard"
IMAGE_SHARD_FORMAT = "beit-image-shard"
STORE_FILE = "store.json"
INDEX_FILE = "index.parquet"
IMAGES_DIR = "images"
TOKENS_DIR = "tokens"
LEASE_PREFIX = ".lease."
"""Of the file by which a process says that it is at work on a shard (`tokenize/store/leases.py`)."""
TOKENS_SUFFIX = "tokens.npy"
VIEWS_SUFFIX = "views.npy"
MAX_COUNT = 1 << 50
"""No shard has more samples or bytes; arbitrary, and far from where sums of 64 bits overflow."""
Count = Annotated[int, Bound(f"lie between 0 and {MAX_COUNT}", lambda number: 0 <= number <= MAX_COUNT)]
"""Of samples, or bytes."""
MAX_PATH = 1024
"""Characters of the path of an image tar below its root; arbitrary, file systems end at 4096 bytes."""
MAX_HELD_OUT_SHARE = 0.2
"""No small store gives up more than this for the learning signal."""

LATER_SETTINGS = {
    "exif_orientation": '"applied"',
    "packing.materialize": "false",
    "packing.jpeg_quality": "null",
    "packing.tile": "0",
    "packing.overlap": "0",
    "packing.tile_min_std": "0.0",
    "source.max_megapixels": "64.0",
    "source.image_member": "null",
    "source.range": '"dtype"',
    "source.range_found": "null",
    "source.channels": '"rgb"',
    "source.alpha": '"drop"',
    "source.frame": '"first"',
    "held_out_by": '"sample"',
}
"""Settings that came after the first stores, with what those did; left out of the hash there, so that it stays."""


@checked("tokenizer")
class TokenizerInfo:
    """The tokenizer whose vocabulary the token ids index."""

    name: str
    """Name or path it was loaded by."""
    fingerprint: str
    """sha256 over its weights and configuration."""
    vocab_size: Annotated[int, within("[1, 65536]")]
    """Token ids lie in [0, vocab_size)."""
    downsampling: Annotated[int, within("[1, 64]")]
    """Pixels per visual token and side of the view it sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """What the last bits of a convolution depend on. Equal values give equal bytes; others flip near-tied tokens."""

    device: str = ""
    """Kind of device, "cpu" or "cuda"; empty when nothing was tokenised."""
    capability: str = ""
    """Vector instructions of the CPU, or architecture of the GPU."""
    dtype: str = ""
    """Number format of the tokenizer's forward pass."""
    is_compiled: bool = False
    """Whether the forward pass went through torch.compile."""
    micro_batch_size: int = 0
    """Views per forward pass; the last one of a shard is padded to it."""
    threads: int = 0
    """Threads inside one torch operation."""
    torch_version: str = ""
    """Version of torch, with its build."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How images were put into tars; absent when existing tars are referenced in place."""

    shard_size: int
    """Most images per tar."""
    shard_bytes: int
    """Most image bytes per tar."""
    short_side: int
    """Larger images were shrunk to this short side in pixels; 0 stored them as they came."""
    keep_order: bool
    """False: images stand in keyed-hash order, so that every shard is a fair sample of the whole."""
    materialize: bool = False
    """True: not the images are stored but their K crops at img_size, flipped and coloured already."""
    jpeg_quality: int | None = None
    """Of what was encoded again, on Pillow's scale to 95; None where images were stored as they came, or without
    loss, as tiles are."""
    tile: int = 0
    """Images that are larger, in px, were cut into tiles of this side; 0 cut none."""
    overlap: int = 0
    """Pixels that neighbouring tiles share."""
    tile_min_std: float = 0.0
    """Tiles whose brightness has a smaller standard deviation, of 255, were left out; 0 kept all."""


@checked("source")
class SourceInfo:
    """What the store was made from."""

    kind: str
    """What holds the images: "tar", "parquet" or "files"."""
    num_shards: Annotated[int, at_least(1)]
    """Shards of the store."""
    num_images: int | None = None
    """Images found; unknown beforehand for tars that are referenced in place."""
    digest: str
    """sha256 over names and sizes of the source, in order."""
    max_megapixels: Annotated[float, above(0)] = 64.0
    """Larger images were skipped."""
    image_member: str | None = None
    """Which member of a tar's sample, or column of a table, is the image; None where that was not said."""
    range: RangeSetting = "dtype"
    """Which values became black and white, as the user gave it."""
    range_found: tuple[float, float] | None = None
    """The values that the percentiles of `range` were found to be, over a sample of the images."""
    channels: str | tuple[int, ...] = "rgb"
    """Which channels became those of the image."""
    alpha: str = "drop"
    """What lay behind transparent pixels."""
    frame: int | str = "first"
    """Which of several pages."""
    stamp: str = ""
    """sha256 over names, sizes and times, or ETags; empty where they are not known, and in stores of before."""

    def __post_init__(self) -> None:
        self.decoding  # noqa: B018  # which says what is wrong with it

    @property
    def decoding(self) -> Decoding:
        """How the images of the source were decoded."""
        return Decoding.of_settings(self, found=self.range_found)


@checked("held_out")
class HeldOut:
    """The share of samples that pre-training never trains on, chosen by a hash of the key."""

    fraction: Annotated[float, within(f"[0, {MAX_HELD_OUT_SHARE}]")] = 0.01
    """Share of all samples."""
    minimum: Annotated[int, at_least(0)] = 64
    """At least this many, as far as 20 % of the samples allow."""
    threshold: Annotated[int | None, within(f"[0, {1 << 64})")] = None
    """A sample is held out if the hash of its key is smaller; fixed when the index is built."""


@checked()
class StoreInfo:
    """store.json: the settings every shard of a store shares."""

    format: str = STORE_FORMAT
    """Always "beit-token-store"."""
    format_version: int = FORMAT_VERSION
    """Raised by one when an older reader would misread the store."""
    tokenizer: TokenizerInfo | None = None
    """None when there are no tokens (views = 0)."""
    views: Annotated[int, within("[0, 65536]")]
    """K, views per image."""
    img_size: Annotated[int, within("[1, 65536)")]
    """Side in pixels of the view the ViT is meant to see."""
    patch_size: int
    """Side in pixels of one patch."""
    grid_size: int
    """Patches, and tokens, per side."""
    seed: int
    """Seed of views and packing order."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Distribution the views were drawn from."""
    source: SourceInfo
    """What the store was made from."""
    packing: Packing | None = None
    """None when existing tars are referenced in place."""
    class_names: tuple[str, ...] | None = None
    """Names of the labels, where the source has them."""
    held_out: HeldOut = field(default_factory=HeldOut)
    """Samples kept from pre-training."""
    held_out_by: Literal["sample", "image"] = "sample"
    """What is on one side as a whole: all that was cut from an image, or, in stores of before, a tile of it."""
    exif_orientation: Literal["applied"] = "applied"
    """Boxes and tokens belong to images turned and mirrored as their EXIF orientation asks."""
    canary: str
    """Hash of a bundled image pushed through decoding and rendering; equal canaries replay views bit for bit."""
    image_root: str
    """Folder or URL of the image tars, relative to the store where possible."""
    execution: Execution = field(default_factory=Execution)
    """Fingerprint of the first run that wrote tokens."""
    mixed_execution: bool = False
    """True once a run with another fingerprint was allowed to continue the store."""
    versions: tuple[str, ...] = ()
    """Library versions of the first run."""

    def __post_init__(self) -> None:
        """Check what must fit together, so that no reader allocates, or divides, by a number that cannot be."""
        expected = Geometry(self.img_size, self.patch_size).grid_size
        require(self.grid_size == expected, f"grid_size ({self.grid_size}) must be img_size / patch_size, {expected}")
        require(
            (self.tokenizer is not None) == (self.views > 0),
            f"a store with views ({self.views}) {'needs' if self.views else 'has no'} tokenizer",
        )

    @property
    def is_materialized(self) -> bool:
        """True if the image tars hold one crop per view instead of the images."""
        return self.packing is not None and self.packing.materialize

    @property
    def is_cut(self) -> bool:
        """True if one image may have become several samples: tiles, or pages."""
        return self.packing is not None and (self.packing.tile > 0 or self.source.frame == "each")

    @property
    def decoding(self) -> Decoding:
        """How the images are decoded that the shards hold: those that packing encoded again are 8-bit already."""
        packing = self.packing
        is_encoded_again = packing is not None and (packing.materialize or packing.short_side > 0 or self.is_cut)
        return self.source.decoding.of_packed() if is_encoded_again else self.source.decoding

    @property
    def num_channels(self) -> int:
        """Channels of its images: 1 where they are grey, else 3."""
        return self.decoding.num_channels

    @property
    def token_img_size(self) -> int:
        """Side in pixels of the view the tokenizer saw; 0 when there are no tokens."""
        return self.grid_size * self.tokenizer.downsampling if self.tokenizer else 0

    def settings(self) -> dict[str, str]:
        """Return what must not change while a store is being written, as flat name -> text."""
        flat = {name: json.dumps(value, ensure_ascii=False) for name, value in flatten(asdict(self)).items()}
        volatile = ("held_out.threshold", "image_root", "mixed_execution", "source.stamp", "tokenizer.name")
        groups = ("execution.", "versions")
        return {
            name: text
            for name, text in flat.items()
            if name not in volatile and not name.startswith(groups) and LATER_SETTINGS.get(name) != text
        }

    def settings_sha256(self) -> str:
        """Return the hash that ties every shard manifest to these settings."""
        return canonical_sha256(self.settings())


@checked()
class CommittedFile:
    """One file, as it was committed."""

    name: str
    """Name within its folder."""
    size: Count
    """Size in bytes."""
    sha256: str
    """Hash of the content."""

    def __post_init__(self) -> None:
        require("/" not in self.name and self.name not in ("", ".", ".."), f"{self.name!r} must be a plain file name")


@checked()
class ImageFile:
    """The image tar of a shard, as it was when it was tokenised."""

    name: str
    """Path below the store's image root."""
    size: Count
    """Size in bytes."""
    header_sha256: str
    """Hash over all header blocks: finds a repacked tar without reading the images."""
    sha256: str = ""
    """Hash of the whole file; empty for remote tars, which would be read twice for it."""
    stamp: str = ""
    """Modification time in ns, or ETag; empty for tars inside the store."""

    def __post_init__(self) -> None:
        require(is_below(self.name), f"{self.name!r} must be a path below the image root")


@dataclass(frozen=True, kw_only=True, slots=True)
class SkippedSample:
    """One image without tokens."""

    key: str
    """Its key."""
    reason: str
    """Why it could not be used."""
    share: float = 1.0
    """Of its image, where that was cut into several samples: those that are missing, of all."""


@checked()
class ShardManifest:
    """<stem>.manifest.json beside a token tar: written last, so that it commits the shard."""

    format: str = TOKEN_SHARD_FORMAT
    """Always "beit-token-shard"."""
    format_version: int = FORMAT_VERSION
    """As in `StoreInfo`."""
    stem: str
    """Name of the shard, NNNNNN-<name of the image tar>."""
    settings_sha256: str
    """Hash of the store's settings."""
    image: ImageFile
    """The images."""
    tokens: CommittedFile | None = None
    """The token tar; None when there are no tokens (views = 0)."""
    samples: CommittedFile
    """The sample table."""
    num_samples: Count
    """Usable samples."""
    skipped: tuple[SkippedSample, ...] = ()
    """Images without tokens, or parts of them; together with the usable ones, every image of the shard."""
    tokenizer_fingerprint: str = ""
    """As in `TokenizerInfo`."""
    vocab_size: int = 0
    """As in `TokenizerInfo`."""
    views: int
    """K."""
    grid_size: int
    """Tokens per side."""
    canary: str
    """As in `StoreInfo`."""
    execution: Execution = field(default_factory=Execution)
    """Fingerprint of the run that wrote this shard."""
    versions: tuple[str, ...] = ()
    """Library versions of the run that wrote this shard."""


@checked()
class ImageShardManifest:
    """<stem>.manifest.json beside an image tar that was packed by us: written last, so that it commits the tar."""

    format: str = IMAGE_SHARD_FORMAT
    """Always "beit-image-shard"."""
    format_version: int = FORMAT_VERSION
    """As in `StoreInfo`."""
    stem: str
    """Name of the shard."""
    settings_sha256: str
    """Hash of the store's settings."""
    image: ImageFile
    """The tar."""
    num_samples: Count
    """Images in the tar."""
    skipped: tuple[SkippedSample, ...] = ()
    """Source images, or tiles of them, that could not be packed."""
    num_blank: Count = 0
    """Tiles that were left out because they are next to one colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """One row of index.parquet."""

    stem: str
    """Name of the shard."""
    image_file: str
    """Image tar below the image root."""
    token_file: str
    """Token tar in tokens/; empty when there are no tokens."""
    num_samples: int
    """Usable samples, held-out ones included."""
    num_skipped: int
    """Images without tokens."""
    num_held_out: int
    """Usable samples that pre-training leaves out."""
    image_bytes: int
    """Size of the image tar."""
    token_bytes: int
    """Size of the token tar."""
    image_sha256: str
    """Hash of the image tar; empty where it was not computed."""
    image_header_sha256: str
    """Hash over the headers of the image tar."""
    token_sha256: str
    """Hash of the token tar."""
    samples_sha256: str
    """Hash of the sample table."""
    image_stamp: str
    """Modification time or ETag of the image tar; empty for tars inside the store."""


def is_below(name: str) -> bool:
    """Tell whether a path is relative and stays below its folder: no file of a store may name others, or a URL."""
    parts = name.split("/")
    return "" not in parts and ".." not in parts and "." not in parts and "::" not in name and len(name) < MAX_PATH


def index_digest(rows: Iterable[ShardRow], held_out: HeldOut) -> str:
    """Return the identity of a store's content, which a training run records and insists on.

    It covers every sample and token through the hashes of the shards, and which samples are held out. File times and
    the Parquet encoding do not enter: a store that was copied or whose index was rebuilt stays the same store.
    """
    # Row by row what canonical_sha256 of {"held_out_threshold": ..., "shards": [...]} would be: there may be 100 000.
    hasher = hashlib.sha256(f'{{"held_out_threshold":{json.dumps(held_out.threshold)},"shards":['.encode())
    names = sorted(field.name for field in fields(ShardRow) if field.name != "image_stamp")
    for number, row in enumerate(rows):
        content = canonical_json({name: getattr(row, name) for name in names})
        hasher.update(f"{',' if number else ''}{content}".encode())
    hasher.update(b"]}")
    return hasher.hexdigest()


def manifest_name(stem: str) -> str:
    """Return the file name of the manifest of a shard."""
    return f"{stem}.manifest.json"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sides of the square views that the ViT and the tokenizer see, such that one visual token falls on each patch.

    Args:
        img_size: Side of the ViT's view in pixels.
        patch_size: Side of a patch in pixels.
        downsampling: Pixels per token and side of the tokenizer's view; 8 for DALL-E's dVAE.

    Source: BEiT §2.1 and §2.2; 224 / 16 = 14 = 112 / 8.
    """

    img_size: int
    patch_size: int
    downsampling: int = 8

    def __post_init__(self) -> None:
        require(self.patch_size >= 1, f"patch_size ({self.patch_size}) must be at least 1 pixel")
        require(self.downsampling >= 1, f"downsampling ({self.downsampling}) must be at least 1 pixel")
        require(
            self.img_size >= self.patch_size,
            f"img_size ({self.img_size}) must be at least patch_size ({self.patch_size})",
        )
        lower = self.img_size // self.patch_size * self.patch_size
        require(
            self.img_size % self.patch_size == 0,
            f"img_size ({self.img_size}) must be a multiple of patch_size ({self.patch_size}), so that the patches "
            f"tile the image; nearest: {lower} or {lower + self.patch_size}",
        )

    @property
    def grid_size(self) -> int:
        """Patches, and visual tokens, per side."""
        return self.img_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches per image, CLS excluded."""
        return self.grid_size**2

    @property
    def token_img_size(self) -> int:
        """Side in pixels of the view the tokenizer sees."""
        return self.grid_size * self.downsampling
