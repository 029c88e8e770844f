"""Images with masks as the reader sees them."""

from __future__ import annotations

from dataclasses import replace

from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.storage.samples import Record
from beit.finetune.masks.index import MaskedIndex


class MaskedDataset(LabelledDataset):
    """The images in use of an index, each record with its mask beside it.

    Args:
        index: Images and masks.
        cache_bytes: Memory for Parquet row groups, half of it for those of masks.
    """

    def __init__(self, index: MaskedIndex, *, cache_bytes: int = 512 * 2**20) -> None:
        super().__init__(index.images, cache_bytes=cache_bytes // 2)
        self._masks = LabelledDataset(index.masks, cache_bytes=cache_bytes // 2)

    def fetch(self, shard_id: int, rank: int, epoch: int) -> Record:
        """Read one image and its mask, as `LabelledDataset.fetch` does."""
        record = super().fetch(shard_id, rank, epoch)
        return replace(record, mask_bytes=self._masks.image_bytes(shard_id, rank))

    def close(self) -> None:
        """Close all files and free all row groups."""
        super().close()
        self._masks.close()
