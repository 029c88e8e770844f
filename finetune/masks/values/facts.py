"""What is found in masks by one full pass over them: sizes, values and how many pixels have each.

Here: the pass, in threads, and its record, kept beside the index of the masks and found again by names, sizes and times
of all files; a pass that is stopped goes on behind the last shard it finished. What the values mean is not asked here,
so that other classes need no other pass.

N masks, K values that occur in any.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import size_of_image
from beit.common.processes.cores import available_cores
from beit.common.progress import Progress
from beit.common.sources.index import LabelledIndex
from beit.common.sources.loose_files import FilesReader
from beit.common.sources.types import SampleRef, ShardReader
from beit.common.storage.files import atomic_file, remove_stale
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.paths import is_remote
from beit.finetune.masks.decode import is_grey, packed, read_values

logger = logging.getLogger(__name__)

_VERSION = 3
_MANY_MASKS = 500
"""From here on it is worth showing; arbitrary, some seconds."""
_HEAD_BYTES = 1 << 17
"""Of a JPEG, in which its size nearly always stands; arbitrary, two blocks of EXIF data."""
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
_THREADS_FOR_A_SERVER = 32
_MOST_VALUES = 4096
"""Different values of one mask; what has more is a picture."""
_SWAPS = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)
_UPRIGHT, _TURNED, _SWAPPED = 0, 1, 2

_SCHEMA = pa.schema(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("turn", pa.int8()),
        ("kind", pa.string()),
        ("is_grey", pa.bool_()),
        ("problem", pa.string()),
        ("sha256", pa.string()),
        ("values", pa.list_(pa.uint32())),
        ("counts", pa.list_(pa.int64())),
        ("colours", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class MaskFacts:
    """What the masks of an index hold, in its order."""

    table: pa.Table
    """A row per mask: `_SCHEMA`."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def strings(self, name: str) -> list[str]:
        """Return a column of texts."""
        return self.table[name].to_pylist()  # type: ignore[no-any-return]

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers, (N,)."""
        return self.table[name].to_numpy()  # type: ignore[no-any-return]

    @cached_property
    def mask_sizes(self) -> NDArray[np.int64]:
        """Width and height of every mask, int64 (N, 2); 0 where it cannot be read."""
        return np.stack([self.numbers("width"), self.numbers("height")], axis=1).astype(np.int64)

    @cached_property
    def stored_sizes(self) -> NDArray[np.int64]:
        """Width and height of every image as stored, int64 (N, 2); 0 where it cannot be read."""
        return np.stack([self.numbers("image_width"), self.numbers("image_height")], axis=1).astype(np.int64)

    @cached_property
    def image_sizes(self) -> NDArray[np.int64]:
        """The same as decoded, turned as the EXIF data say."""
        is_swapped = self.numbers("turn") == _SWAPPED
        return np.where(is_swapped[:, None], self.stored_sizes[:, ::-1], self.stored_sizes)

    @property
    def is_unread(self) -> NDArray[np.bool_]:
        """Tell of which images not even the size can be read, bool (N,)."""
        return np.asarray(self.stored_sizes[:, 0] == 0)

    @property
    def is_turned(self) -> NDArray[np.bool_]:
        """Tell which images are turned or mirrored by their EXIF data, bool (N,)."""
        return np.asarray(self.numbers("turn") != _UPRIGHT)

    @cached_property
    def differs(self) -> NDArray[np.bool_]:
        """Tell which masks have another size than their image, bool (N,), as far as both can be read."""
        known = (self.mask_sizes[:, 0] > 0) & (self.image_sizes[:, 0] > 0)
        return np.asarray(known & (self.mask_sizes != self.image_sizes).any(axis=1))

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """Which mask each entry of `flat` belongs to, int64 (M,)."""
        lengths = np.diff(self._offsets)
        return np.repeat(np.arange(len(self)), lengths)

    def flat(self, name: str) -> NDArray[Any]:
        """Return all entries of a column of lists, one after the other, (M,)."""
        chunks = [chunk.flatten() for chunk in self.table[name].chunks]
        return pa.chunked_array(chunks, _SCHEMA.field(name).type.value_type).to_numpy()  # type: ignore[no-any-return]

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        lengths = pc.list_value_length(self.table["values"]).to_numpy()
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def pixels_of_values(self) -> dict[int, int]:
        """Return how many pixels have each value, over all masks, ascending by value."""
        values, places = np.unique(self.flat("values"), return_inverse=True)
        totals = np.bincount(places, weights=self.flat("counts"), minlength=len(values))
        return {int(value): int(total) for value, total in zip(values, totals, strict=True)}


def gather_facts(images: LabelledIndex, masks: LabelledIndex) -> MaskFacts:
    """Return what all masks hold, from the cache or by looking at every one.

    Several processes may call this at once; one looks, the others wait for it.

    Args:
        images: All images of a source.
        masks: Their masks, in the same order.
    """
    name = hashlib.sha256(f"{images.folder.name} {masks.folder.name} {images.decoding.max_pixels}".encode()).hexdigest()
    folder = masks.folder / f"masks-{_VERSION}-{name[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / "lock"):
            remove_stale(folder)
            tables = _look(images, masks, folder)
    except OSError as error:
        raise InputError(
            f"cannot keep in {folder} what masks hold ({error}); point BEIT_CACHE at a folder with space"
        ) from None
    return MaskFacts(pa.concat_tables(tables))


def _look(images: LabelledIndex, masks: LabelledIndex, folder: Path) -> list[pa.Table]:
    kept = [_kept(folder / f"{shard_id:06d}.arrow", size) for shard_id, size in enumerate(masks.info.shard_sizes)]
    done = sum(table.num_rows for table in kept if table is not None)
    total = sum(masks.info.shard_sizes)
    if done == total:
        return [table for table in kept if table is not None]
    tables = []
    progress = Progress(
        total, unit="masks", description="looking at masks", initial=done, enabled=total - done > _MANY_MASKS
    )
    with progress, ThreadPoolExecutor(_threads(images, masks)) as pool:
        for shard_id, table in enumerate(kept):
            if table is None:
                table = _look_at_shard(images, masks, shard_id, pool, progress)
                path = folder / f"{shard_id:06d}.arrow"
                with atomic_file(path) as file, pa.ipc.new_file(file, _SCHEMA) as writer:
                    writer.write_table(table)
            tables.append(table)
    return tables


def _threads(images: LabelledIndex, masks: LabelledIndex) -> int:
    """Return how many masks to look at at the same time: of a server, which is mostly waited for, more."""
    is_away = is_remote(images.info.root) or is_remote(masks.info.root)
    return max(available_cores(), _THREADS_FOR_A_SERVER if is_away else 1)


def _kept(path: Path, size: int) -> pa.Table | None:
    try:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowException):  # not there, or damaged, and then made again
        return None
    return table if table.num_rows == size and table.schema.equals(_SCHEMA) else None


def _look_at_shard(
    images: LabelledIndex, masks: LabelledIndex, shard_id: int, pool: ThreadPoolExecutor, progress: Progress
) -> pa.Table:
    ranks = range(masks.info.shard_sizes[shard_id])
    image_refs = [images.ref(shard_id, rank) for rank in ranks]
    mask_refs = [masks.ref(shard_id, rank) for rank in ranks]
    rows = []
    with ExitStack() as stack:
        image_reader = stack.enter_context(images.shards[shard_id].open())
        mask_reader = stack.enter_context(masks.shards[shard_id].open())

        def look(pair: tuple[SampleRef, SampleRef]) -> dict[str, Any]:
            image = _image_facts(image_reader, pair[0])
            return image | _mask_facts(mask_reader, pair[1], masks.decoding.max_pixels)

        futures = [pool.submit(look, pair) for pair in zip(image_refs, mask_refs, strict=True)]
        try:
            for future in futures:
                rows.append(future.result())
                progress.update(1)
        finally:
            for future in futures:
                future.cancel()
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _image_facts(reader: ShardReader, ref: SampleRef) -> dict[str, Any]:
    try:
        found = size_of_image(_beginning(reader, ref)) or size_of_image(reader.read(ref))
    except BadSample:  # met and counted where images are read
        found = None
    size, turn = found if found is not None else ((0, 0), None)
    code = _UPRIGHT if turn is None else _SWAPPED if turn in _SWAPS else _TURNED
    return {"image_width": size[0], "image_height": size[1], "turn": code}


def _beginning(reader: ShardReader, ref: SampleRef) -> bytes:
    """Return as much of an image as tells its size: of a JPEG in a file of its own not all."""
    if isinstance(reader, FilesReader) and ref.path.lower().endswith(_JPEG):
        return reader.head(ref, _HEAD_BYTES)
    return reader.read(ref)


def _mask_facts(reader: ShardReader, ref: SampleRef, max_pixels: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"width": 0, "height": 0, "kind": "", "is_grey": False, "problem": "", "sha256": ""}
    facts |= {"values": [], "counts": [], "colours": []}
    try:
        data = reader.read(ref)
        facts["sha256"] = hashlib.sha256(data).hexdigest()
        found = read_values(data, max_pixels=max_pixels)
    except BadSample as error:
        facts["problem"] = error.detail or error.reason
        return facts
    facts["height"], facts["width"] = found.values.shape
    values, counts = _histogram(found.values)
    facts["kind"] = found.kind
    facts["is_grey"] = found.kind == "colours" and is_grey(values)
    if len(values) > _MOST_VALUES:
        facts["problem"] = f"it holds {len(values)} different values: that is a picture, no mask"
        return facts
    facts["values"], facts["counts"] = values.tolist(), counts.tolist()
    facts["colours"] = _colours_of(values, found.palette)
    return facts


def _histogram(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values that occur, ascending, and how often."""
    if values.dtype.itemsize > 2:
        found, counts = np.unique(values, return_counts=True)
        return found.astype(np.int64), counts.astype(np.int64)
    totals = np.bincount(values.ravel())
    found = np.flatnonzero(totals)
    return found, totals[found]


def _colours_of(values: Sequence[int] | NDArray[np.int64], palette: NDArray[np.uint8] | None) -> list[int]:
    if palette is None:
        return [-1] * len(values)
    colours = packed(palette)
    return [int(colours[value]) if value < len(colours) else -1 for value in values]
