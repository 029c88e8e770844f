"""What every kind of paired data offers: shards of images, and beside each a shard that gives their masks.

The kinds are in modules of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from beit.common.sources.types import Source, SourceShard
from beit.finetune.masks.class_table import ClassTable
from beit.finetune.masks.classes import MaskClasses


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedSource:
    """Images with their masks, paired."""

    images: Source
    """The images that have a mask, in shards."""
    masks: tuple[SourceShard, ...]
    """For each shard of images one whose samples are their masks, in the same order; read as encoded images: PNG of ids
    or of colours, whatever the data hold; masks that are drawn (polygons) come as PNG of ids."""
    classes: MaskClasses | None = None
    """What the data say of their classes, such as the categories of COCO; None where they say nothing."""
    is_ids: bool = False
    """Whether masks hold class ids already, so that no table applies, because they were drawn here."""
    table: ClassTable | None = None
    """What values mean, where a file beside the data says it, or the layout is that of a published set."""
    reduce_zero_label: bool = False
    """Whether the layout says that the value 0 means no class and every other is one too high."""
    mask_digest: str = ""
    """Hash of the masks' names, sizes and versions, as `Source.digest`; empty where that of the images covers them."""
    without_mask: tuple[str, ...] = ()
    """Images that have none, which are refused unless the user said otherwise."""
    without_image: tuple[str, ...] = ()
    """Masks that have none, likewise."""
    notes: tuple[str, ...] = field(default=())
    """What its user is to be told of how it was read: a line each, such as images left out for want of a mask."""
