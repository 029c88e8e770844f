"""Whether two data sets share images, as far as that can be told without reading any."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from beit.common.errors import BadSample
from beit.common.sources.index import LabelledIndex
from beit.common.storage.paths import is_remote
from beit.common.storage.samples import image_key, spread_evenly

logger = logging.getLogger(__name__)

_IMAGES_TO_COMPARE = 4


def warn_of_shared_images(train: LabelledIndex, val: LabelledIndex) -> None:
    """Say so where images to measure on are also learned from: what is measured on them is no measure."""
    if shared := shared_images(train, val):
        logger.warning("%s", shared)


def shared_images(train: LabelledIndex, val: LabelledIndex) -> str:
    """Return in a line which images to measure on are also learned from; empty where none are."""
    measured = "a model is measured on what it learned"
    if train.info.sha256 == val.info.sha256 and _look_alike(train, val):
        return f"{val.name} holds the same images as {train.name}: {measured}; give others to measure on"
    places = set(_image_places(val))
    shared = len({place for place in _image_places(train) if place in places})
    if not shared:
        return _parted_images(train, val)
    unit = "images" if val.info.kind == "files" else "files"
    found = f"{shared} of the {len(places)} {unit} of {val.name} are in {train.name}, too"
    return f"{found}: {measured}; leave them out of one"


def _parted_images(train: LabelledIndex, val: LabelledIndex) -> str:
    """Return in a line how many images have tiles or pages on both sides, as far as keys that `beit` made tell."""
    measured = set(_cut_images(val))
    parted = measured.intersection(_cut_images(train)) if measured else set()
    if not parted:
        return ""
    return (
        f"tiles or pages of {len(parted)} images are in {val.name} and in {train.name}: neighbours look alike, so "
        "that a model is measured next to what it learned; keep all of an image on one side"
    )


def _cut_images(index: LabelledIndex) -> Iterator[str]:
    for key in index.keys():
        image = image_key(key)
        if image != key and "-" not in key[len(image) :]:  # else a file of such a name, whose folder is not in the key
            yield image


def _look_alike(first: LabelledIndex, second: LabelledIndex) -> bool:
    """Compare a few images: sets made by a program may agree in names, sizes and labels."""
    for position in spread_evenly(min(len(first), len(second)), _IMAGES_TO_COMPARE).tolist():
        found = []
        for index in (first, second):
            shard_id, rank = index.locate(position)
            try:
                with index.shards[shard_id].open() as reader:
                    found.append(reader.read(index.ref(shard_id, rank)))
            except BadSample:
                return False
        if found[0] != found[1]:
            return False
    return True


def _image_places(index: LabelledIndex) -> Iterator[str]:
    """Yield where the images lie: each file, or in tars and Parquet each container."""
    roots = {location: _real(location) for location in {shard.location for shard in index.shards}}
    if index.info.kind != "files":
        yield from roots.values()
        return
    for shard_id, shard in enumerate(index.shards):
        root = roots[shard.location].rstrip("/")
        for path in index.paths(shard_id):
            place = path if path.startswith("/") else f"{root}/{path}"
            yield place if "../" not in path or is_remote(root) else os.path.normpath(place)


def _real(location: str) -> str:
    return location if is_remote(location) else os.path.realpath(location)
