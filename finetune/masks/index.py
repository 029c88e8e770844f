"""Which images with masks a run trains and is measured on, all checked before anything is built.

Every mask is looked at once (`values/examined.py`, `values/problems.py`). Here: the masks in use, all or some of them,
the same ones every time, and what is in them. Reading them is `dataset.py`.

N images, C classes.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.pages.numbers import count
from beit.common.rng import CounterRng
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.depth import warn_of_missed, warn_of_range
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.index import LabelledIndex
from beit.common.sources.labels import listed, subset_size
from beit.common.sources.overlap import warn_of_shared_images
from beit.common.storage.samples import spread_evenly
from beit.finetune.masks.classes import MaskClasses
from beit.finetune.masks.decode import MaskDecoder
from beit.finetune.masks.opening import open_measured, open_parts, open_val
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.types import MaskedSource
from beit.finetune.masks.values.examined import Examined, examine
from beit.finetune.masks.values.meaning import ids_of_model
from beit.finetune.masks.values.problems import hints_of, require_sound

logger = logging.getLogger(__name__)


class MaskedIndex:
    """The images in use of one DATA, each with a mask of the same size that holds known classes only. Pickles.

    Args:
        images: The images. Their identity is also that of the masks and of what these mean.
        masks: Their masks, in the same order.
        classes: What ids mean.
        decoder: From the bytes of a mask to ids.
        pixel_counts: Pixels of each class in each mask, and of none in the last column, int64 (N, C + 1).
    """

    def __init__(
        self,
        images: LabelledIndex,
        masks: LabelledIndex,
        *,
        classes: MaskClasses,
        decoder: MaskDecoder,
        pixel_counts: NDArray[np.int64],
    ) -> None:
        self.images, self.masks = images, masks
        self.classes, self.decoder = classes, decoder
        self.pixel_counts = pixel_counts

    def __repr__(self) -> str:
        return f"MaskedIndex({self.name!r}, images={len(self)}, classes={len(self.classes)})"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """What the user calls the data, for messages."""
        return self.images.name

    @property
    def location(self) -> str:
        """What the user gave, as a URL or an absolute path."""
        return self.images.location

    @property
    def index_sha256(self) -> str:
        """Identity of the images and masks in use, their numbering and what masks mean."""
        return self.images.index_sha256

    def class_pixels(self) -> NDArray[np.int64]:
        """Count the pixels in use of every class, int64 (C,)."""
        return np.asarray(self.pixel_counts[:, :-1].sum(axis=0))

    def decode(self, position: int) -> NDArray[np.uint8]:
        """Return the mask at a position in index order, uint8 (H, W); training and evaluation read through a loader.

        Raises:
            BadSample: it cannot be read any more.
        """
        shard_id, rank = self.masks.locate(position)
        with self.masks.shards[shard_id].open() as reader:
            return self.decoder.decode(reader.read(self.masks.ref(shard_id, rank)))

    def subset(self, *, num_labels: int | None = None, fraction: float | None = None, seed: int = 0) -> MaskedIndex:
        """Return an index of some of the images, in which every class occurs if that is possible.

        Images that show what is still missing come first, the rarest class before others; the rest is drawn. A larger
        subset of one seed contains a smaller one.

        Args:
            num_labels: Images to keep; excludes `fraction`.
            fraction: Share of the images to keep.
            seed: Another seed keeps others. Which ones are kept depends on nothing else but the data.
        """
        wanted = subset_size(
            len(self), num_labels=num_labels, fraction=fraction, of=f"images with masks in {self.name}"
        )
        if wanted == len(self):
            return self
        order = draw_order(self.pixel_counts[:, :-1] > 0, seed)
        return self._keep(np.sort(order[:wanted]), f"subset {wanted} {seed}")

    def part(self, count: int) -> MaskedIndex:
        """Return an index of `count` images spread evenly, always the same; of all if there are no more."""
        return self if count >= len(self) else self._keep(spread_evenly(len(self), count), f"part {count}")

    def without(self, is_left_out: NDArray[np.bool_]) -> MaskedIndex:
        """Return an index of the other images, bool (N,)."""
        return self._keep(np.flatnonzero(~is_left_out), "without some")

    def _keep(self, chosen: NDArray[np.int64], change: str) -> MaskedIndex:
        is_chosen = np.zeros(len(self), np.bool_)
        is_chosen[chosen] = True
        other = copy.copy(self)
        other.images = self.images.split(is_chosen, change=change)[0]
        other.masks = self.masks.split(is_chosen, change=change)[0]
        other.pixel_counts = self.pixel_counts[is_chosen]
        return other


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedData:
    """The images of one run."""

    train: MaskedIndex
    """To learn from, the chosen subset."""
    val: MaskedIndex | None
    """To measure on, with the class ids of `train`."""
    classes: MaskClasses
    """What ids mean."""
    source: MaskedIndex
    """All images with masks of DATA to learn from, of which `train` are some."""


def open_training_masks(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedData:
    """Open DATA and the images to measure on: those of --val, or DATA's own where it has such a part.

    Args:
        data: Images with masks.
        settings: Subset, images to measure on, what masks mean.
        reading: Which images are read.
    """
    parts = open_parts(data, settings, reading=reading)
    found = _examined(parts.train, settings, name=parts.name, reading=reading)
    meaning = require_sound(found, settings, for_training=True)
    classes = meaning.classes()
    source = _index(found, classes, meaning.decoder(reading.decoding.max_pixels), found.pixel_counts)
    empty = found.is_wholly_ignored
    if empty.any():
        logger.warning(
            "%s: %d of %d images are left out, whose masks are wholly ignored (first: %s)",
            *(found.name, empty.sum(), len(empty), found.mask(int(np.flatnonzero(empty)[0]))),
        )
        source = source.without(empty)
    val = None
    if (measured := open_val(parts, settings, reading=reading)) is not None:
        own = reading.with_values_of(source.images.decoding)
        val = _evaluation_index(measured[0], classes, settings, name=measured[1], reading=own)
        if settings.val is None:
            logger.info("%s has parts of its own: training on %s, measuring on %s", data, parts.name, parts.val_name)
    if val is not None:
        warn_of_shared_images(source.images, val.images)
        warn_of_missed(val.images, val.images.decoding, option="")
    warn_of_range(source.images, source.images.decoding)
    warn_of_hidden_colours(source.images, reading.decoding)
    return MaskedData(
        train=_subset(source, settings), val=part_to_measure_on(val, settings), classes=classes, source=source
    )


def open_evaluation_masks(
    data: str, classes: MaskClasses, settings: MaskDataConfig, *, reading: SourceConfig
) -> MaskedIndex:
    """Open images with masks whose class ids are those of `classes`, matched by name.

    Classes without a pixel are no error: a small set may lack some.

    Args:
        data: As in `open_training_masks`; of one with parts, that for validation.
        classes: Of the model.
        settings: What the masks mean.
        reading: Which images are read.
    """
    source, name = open_measured(data, settings, reading=reading)
    index = _evaluation_index(source, classes, settings, name=name, reading=reading)
    warn_of_missed(index.images, index.images.decoding, option="--range")
    return index


def draw_order(has_class: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """Return an order of images in which those come first that show all classes, the rarest first.

    Args:
        has_class: Which image shows which class, bool (N, C).
        seed: Another seed draws another order.
    Returns:
        All positions, int64 (N,).
    """
    drawn = CounterRng(seed, "mask subset").permutation(len(has_class))
    shows = has_class[drawn]  # in the order drawn
    frequency = shows.sum(axis=0)
    first: list[int] = []
    missing = frequency > 0
    for class_id in np.argsort(frequency, kind="stable").tolist():
        if missing[class_id]:
            place = int(np.argmax(shows[:, class_id]))
            first.append(place)
            missing &= ~shows[place]
    rest = np.setdiff1d(np.arange(len(drawn)), first)
    return np.asarray(drawn[np.concatenate([np.array(first, np.int64), rest])])


def _evaluation_index(
    source: MaskedSource, classes: MaskClasses, settings: MaskDataConfig, *, name: str, reading: SourceConfig
) -> MaskedIndex:
    found = _examined(source, settings, name=name, reading=reading)
    meaning = require_sound(found, settings, for_training=False)
    used = np.flatnonzero(found.pixel_counts[:, :-1].sum(axis=0)).tolist()
    ids = ids_of_model(meaning, classes, used, name=name)
    counts = np.zeros((len(found), len(classes) + 1), np.int64)
    counts[:, -1] = found.pixel_counts[:, -1]
    for own in used:
        counts[:, ids[own]] += found.pixel_counts[:, own]
    return _index(found, classes, meaning.decoder(reading.decoding.max_pixels, ids), counts)


def _examined(source: MaskedSource, settings: MaskDataConfig, *, name: str, reading: SourceConfig) -> Examined:
    for note in source.notes:
        logger.info("%s", note)
    found = examine(source, settings, name=name, reading=reading)
    for hint in hints_of(found, settings):
        logger.warning("%s", hint)
    if found.meaning is not None:
        void = [entry.name for entry in found.meaning.stated.values() if not entry.is_class]
        logger.info(
            "%s: classes by %s%s",
            *(name, found.meaning.origin, f", where {listed(void)} mean none" if void else ""),
        )
    return found


def _index(found: Examined, classes: MaskClasses, decoder: MaskDecoder, pixel_counts: NDArray[np.int64]) -> MaskedIndex:
    hasher = hashlib.sha256(repr((decoder.kind, decoder.values, decoder.ids, classes.names)).encode())
    hasher.update("\0".join(found.facts.strings("sha256")).encode())
    images = found.images.identified(f"masks {hasher.hexdigest()}")
    return MaskedIndex(images, found.masks, classes=classes, decoder=decoder, pixel_counts=pixel_counts)


def _subset(source: MaskedIndex, settings: MaskDataConfig) -> MaskedIndex:
    if settings.num_labels is None and settings.label_fraction is None:
        return source
    if settings.num_labels is not None and settings.num_labels > len(source):
        raise InputError(
            f"data.num_labels ({settings.num_labels}) must not exceed the {count(len(source), 'image')} with masks of "
            f"{source.name}; leave it out to use all"
        )
    train = source.subset(num_labels=settings.num_labels, fraction=settings.label_fraction, seed=settings.subset_seed)
    lacking = np.flatnonzero((source.class_pixels() > 0) & (train.class_pixels() == 0))
    if len(lacking):
        names = [source.classes.names[class_id] for class_id in lacking]
        logger.warning(
            "%s chosen to train on, without any pixel of %s (%s), which the model will not learn",
            *(count(len(train), "image"), count(len(lacking), "class", plural="classes"), listed(names)),
        )
    return train


def part_to_measure_on(val: MaskedIndex | None, settings: MaskDataConfig) -> MaskedIndex | None:
    """Return the images to measure on: all, or as many as are wanted; refused where there are not so many."""
    if settings.num_val_images is None:
        return val
    if val is None:
        raise InputError(f"data.num_val_images ({settings.num_val_images}) needs validation images; give --val")
    require(
        settings.num_val_images <= len(val),
        f"data.num_val_images ({settings.num_val_images}) must not exceed the {count(len(val), 'image')} of "
        f"{val.name}; leave it out to use all",
    )
    return val.part(settings.num_val_images)
