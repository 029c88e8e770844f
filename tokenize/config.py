"""Settings of `beit tokenize`. What they turn into is in `plan.py`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from beit.common.config import above, at_least, checked, within
from beit.common.errors import require
from beit.common.images.decoding import MAX_SIDE_PX
from beit.common.images.large.tiles import Tiling
from beit.common.runs.idle import Need
from beit.common.shards.schema import Geometry, HeldOut
from beit.common.sources.config import SourceConfig
from beit.common.views import AugmentConfig

MAX_VIEWS = 4096
"""Arbitrary; at 14 x 14 tokens that many views take 1.7 MB per image."""

MAX_JPEG_QUALITY = 95
"""Above it Pillow's files grow and hardly improve."""

SHRUNK_JPEG_QUALITY = 95
"""Cropped and enlarged again, so errors would grow; at short side 256 that is about 42 kB per photo."""

TILE_BYTES_PER_PIXEL, TILE_JPEG_BYTES_PER_PIXEL = 1.7, 0.5
"""Of a tile of a photo as PNG, and as JPEG; decide how many make a tar."""

CROP_JPEG_QUALITY = 90
"""Seen as it is, never enlarged; about 16 kB at 224 px, a seventh faster to decode than at 95 (docs/results.md)."""


@checked()
class TokenizeConfig:
    """How images become a token store."""

    tokenizer: str = "mini"
    """Name of a tokenizer ("mini", "dall-e", an installed one), a path to one, or module:Class, which is run."""
    views: Annotated[int, within(f"[0, {MAX_VIEWS}]")] = 16
    """Views per image, K; a training run of E epochs uses each E / K times. 0 packs and indexes only."""
    img_size: int = 224
    """Side in pixels of the view the ViT will see."""
    patch_size: int = 16
    """Side in pixels of a ViT patch; each patch gets one visual token."""
    seed: int = 0
    """Seed of crops, flips, colours and packing order."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Distribution the views are drawn from."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """Which images are read."""
    held_out: HeldOut = field(default_factory=HeldOut)
    """Samples that pre-training leaves out, to measure on."""

    short_side: Annotated[int, at_least(0)] = 0
    """Shrink larger images to this short side in pixels while packing them; 0 keeps every image as it is."""
    materialize: bool = False
    """Store the K crops of an image, at img_size, instead of the image: less work per training view, more disk."""
    tile: Annotated[int, within(f"[0, {MAX_SIDE_PX}]")] = 0
    """Cut larger images into squares of this side in pixels while packing them; each becomes a sample. 0 cuts none."""
    overlap: Annotated[int, at_least(0)] = 0
    """Pixels that neighbouring tiles share."""
    tile_min_std: Annotated[float, within("[0, 128)")] = 0.0
    """Leave out tiles whose brightness has a smaller standard deviation, of 255: the background of slides; 0 keeps
    all."""
    jpeg_quality: Annotated[int, within(f"[0, {MAX_JPEG_QUALITY}]")] = 0
    """Of shrunk images, of materialised crops and of tiles, 1 to 95 (Pillow's scale); 0 takes 95 and 90, and of tiles
    loses nothing."""
    shard_size: Annotated[int, at_least(1)] = 1000
    """Most images per packed tar."""
    shard_bytes: Annotated[int, at_least(1)] = 1 << 30
    """Most image bytes per packed tar."""
    keep_order: bool = False
    """Pack in the order of the source instead of a mixed one; bad for training if the source is sorted by class."""

    micro_batch_size: Annotated[int, at_least(1)] = 32
    """Views per forward pass of the tokenizer."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the forward pass; auto is float16 on a GPU, as in BEiT, and float32 on the CPU."""
    compile_encoder: Literal["auto", "on", "off"] = "auto"
    """Whether the forward pass goes through torch.compile; auto does on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the tokenizer runs; auto takes a GPU if there is one."""
    threads: Annotated[int, at_least(0)] = 0
    """CPU threads inside one torch operation; 0 takes what the store was begun with, at first all cores."""
    workers: Annotated[int, at_least(0)] = 0
    """Threads, or processes, that decode and crop; 0 starts one per core. Does not change the result."""
    worker_processes: Literal["auto", "on", "off"] = "auto"
    """Whether workers are processes; auto starts processes where there are more workers than one interpreter can
    make use of as threads. Does not change the result."""
    worker_timeout_seconds: Annotated[float, above(0, "else a hung process would go unseen")] = 300.0
    """How long one image may take a process before it counts as hung, and the command ends."""

    bad_sample_budget: Annotated[float, within("[0, 1)")] = 0.001
    """Share of unusable images that is tolerated; at least one is, unless the budget is 0."""
    strict: bool = False
    """Stop at the first unusable image."""
    allow_source_change: bool = False
    """Continue a store although files of its source have other times than when it was begun; names and sizes must be
    the same. Shards that are done stay as they are."""
    allow_shortage: bool = False
    """Begin although the memory or the disk of this machine is expected not to be enough."""
    allow_mixed: bool = False
    """Continue a store on another device, number format, batch size or torch version; the store records it."""

    def __post_init__(self) -> None:
        Geometry(self.img_size, self.patch_size)
        require(
            not self.materialize or self.views >= 1, "materialize stores the crops of views, but views is 0; raise it"
        )
        require(
            not (self.materialize and self.short_side),
            f"short_side ({self.short_side}) shrinks stored images, but materialize stores crops at img_size instead "
            "of images; leave one out",
        )
        require(
            not self.jpeg_quality or self.is_encoded_again,
            f"jpeg_quality ({self.jpeg_quality}) is for images that are encoded again; it needs short_side, tile or "
            "materialize",
        )
        require(
            not (self.tile and self.short_side),
            f"short_side ({self.short_side}) shrinks whole images, and tile ({self.tile}) cuts them at their own size; "
            "leave one out",
        )
        if self.tile:
            Tiling(self.tile, self.overlap)
        for name in ("overlap", "tile_min_std"):
            value = getattr(self, name)
            require(bool(self.tile) or not value, f"{name} ({value}) is for tiles; it needs tile, such as --tile 1024")

    @property
    def stored_quality(self) -> int | None:
        """JPEG quality of what is encoded again; None if that is done without loss, or not at all."""
        if not (self.materialize or self.short_side):
            return self.jpeg_quality or None
        return self.jpeg_quality or (CROP_JPEG_QUALITY if self.materialize else SHRUNK_JPEG_QUALITY)

    @property
    def is_cut(self) -> bool:
        """Whether an image may become several samples: tiles, or pages."""
        return self.tile > 0 or self.source.frame == "each"

    @property
    def is_encoded_again(self) -> bool:
        """Whether images are stored otherwise than as they come."""
        return self.materialize or self.short_side > 0 or self.is_cut

    @property
    def tile_bytes(self) -> int:
        """Of a tile as it is stored, roughly: a photo, of which most are larger without loss than others."""
        return round(self.tile**2 * (TILE_JPEG_BYTES_PER_PIXEL if self.jpeg_quality else TILE_BYTES_PER_PIXEL))

    @property
    def tiling(self) -> Tiling | None:
        """How images are cut, if they are."""
        return Tiling(self.tile, self.overlap) if self.tile else None

    @property
    def grid_size(self) -> int:
        """Patches, and visual tokens, per side."""
        return self.img_size // self.patch_size


def needs(config: TokenizeConfig) -> list[Need]:
    """Return what settings need to have an effect, as `common/runs/idle.py` wants it."""
    has_views, is_apart = config.views > 0, config.worker_processes != "off"
    of_views = "with views=0, which computes no tokens; leave it out"
    return [
        *(Need(name, has_views, of_views) for name in ("tokenizer", "micro_batch_size", "dtype", "compile_encoder")),
        Need("worker_timeout_seconds", is_apart, 'with worker_processes="off": only processes can hang; leave it out'),
    ]
