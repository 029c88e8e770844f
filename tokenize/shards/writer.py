"""Writing one token shard: the token tar, the sample table, and the manifest that commits both.

Every file appears under its name when it is whole (`tokenize/store/documents.py`); the manifest comes last. So a shard
without a manifest is unfinished and a shard with one is complete, whenever the process was killed. The bytes depend on
the samples alone. The layout is described in docs/store-format.md.

K views per image, g tokens per side.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from beit.common.shards.held_out import HeldOutBy, held_out_hash
from beit.common.shards.schema import (
    TOKENS_SUFFIX,
    VIEWS_SUFFIX,
    CommittedFile,
    ImageFile,
    ShardManifest,
    SkippedSample,
    StoreInfo,
    manifest_name,
)
from beit.common.shards.tables import encode_samples, token_sums
from beit.common.sources.labels import stored_label
from beit.common.sources.types import SampleRef
from beit.common.storage.documents import write_document
from beit.common.storage.files import fault_point, sha256_of
from beit.common.storage.place import Place
from beit.tokenize.shards.crops import CropsRef
from beit.tokenize.shards.encode import RankTokenizer


def begin_shard(folder: Place, stem: str) -> None:
    """Remove what an interrupted run left of a shard, and its manifest: from here on it is unfinished."""
    (folder / manifest_name(stem)).remove()
    folder.remove_temporaries(f"{stem}.")


@contextmanager
def new_shard_tar(folder: Place, stem: str) -> Iterator[TarAppender]:
    """Open the tar of a shard's images or tokens, which appears, whole, only if the block succeeds."""
    with (folder / f"{stem}.tar").new_file() as file:
        yield TarAppender(file)


class TarAppender:
    """Writes an uncompressed tar whose bytes depend on names and contents only, and tells where each payload lies.

    Time, owner and mode are fixed. The end marker is written by `finish` alone: a tar that was given up reads as
    truncated, not as a short one.

    Args:
        file: Named binary file at its start; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        """Where the tar is being written."""
        self._hasher = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""

    def add(self, name: str, payload: bytes) -> int:
        """Append one member and return the offset of its payload."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(payload), 0, 0o644
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        offset = self.size
        self._write(payload)
        self._write(b"\0" * (-len(payload) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> str:
        """Write the end marker, read everything back and return the sha256 of the file.

        Raises:
            OSError: what stands in the file is not what was written.
        """
        self._write(b"\0" * (2 * tarfile.BLOCKSIZE))
        self._write(b"\0" * (-self.size % tarfile.RECORDSIZE))
        self.file.flush()
        written = self._hasher.hexdigest()
        self.file.seek(0)
        if sha256_of(self.file) != written:
            raise OSError(f"{self.file.name}: read back other bytes than were written; is the disk failing?")
        return written

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self._hasher.update(data)
        self.size += len(data)


class SampleWriter:
    """Writes the tokens of one shard's samples, and collects the rows of its sample table.

    Args:
        tar: For the tokens; None where a store gets none.
        held_out_by: How the store decides what is held out.
    """

    def __init__(self, tar: TarAppender | None, held_out_by: HeldOutBy) -> None:
        self._tar, self._held_out_by = tar, held_out_by
        self.rows: list[dict[str, Any]] = []
        """One per sample, as `encode_samples` takes them."""

    def add(self, ref: SampleRef, token_ids: NDArray[np.uint16], views: np.ndarray[Any, np.dtype[np.void]]) -> None:
        """Append one sample.

        Args:
            ref: Key, label and place of the image.
            token_ids: (K, g, g).
            views: (K,) of `VIEW_DTYPE`.
        """
        fault_point("sample")
        key_hash = held_out_hash(ref.key, self._held_out_by)
        row = {"key": ref.key, "key_hash": key_hash, "label": stored_label(ref.label)}
        if isinstance(ref, CropsRef):
            row |= {"img_off": [crop.offset for crop in ref.crops], "img_len": [crop.length for crop in ref.crops]}
        else:
            row |= {"img_off": ref.offset, "img_len": ref.length}
        row["tok_off"], row["tok_len"] = self._add_array(f"{ref.key}.{TOKENS_SUFFIX}", token_ids)
        row["view_off"], row["view_len"] = self._add_array(f"{ref.key}.{VIEWS_SUFFIX}", views)
        row["token_sums"] = None if self._tar is None else token_sums(token_ids, views)
        self.rows.append(row)

    def _add_array(self, name: str, array: NDArray[Any]) -> tuple[int, int]:
        """Append an array as an .npy member; return offset and length of its data, behind the npy header."""
        if self._tar is None:
            return 0, 0
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        payload = buffer.getvalue()
        offset = self._tar.add(name, payload)
        return offset + len(payload) - array.nbytes, array.nbytes


def commit_shard(
    folder: Place,
    stem: str,
    info: StoreInfo,
    rows: list[dict[str, Any]],
    *,
    image: ImageFile,
    tokens: CommittedFile | None,
    skipped: list[SkippedSample],
    tokenizing: RankTokenizer,
) -> ShardManifest:
    """Write the sample table and then the manifest, which commits the shard; its tar is there already."""
    name = f"{stem}.samples.parquet"
    table = encode_samples(rows, num_crops=info.views if info.is_materialized else 0)
    (folder / name).write(table)
    manifest = ShardManifest(
        stem=stem,
        settings_sha256=info.settings_sha256(),
        image=image,
        tokens=tokens,
        samples=CommittedFile(name=name, sha256=hashlib.sha256(table).hexdigest(), size=len(table)),
        num_samples=len(rows),
        skipped=tuple(skipped),
        tokenizer_fingerprint=info.tokenizer.fingerprint if info.tokenizer else "",
        vocab_size=info.tokenizer.vocab_size if info.tokenizer else 0,
        views=info.views,
        grid_size=info.grid_size,
        canary=info.canary,
        execution=tokenizing.execution,
        versions=tokenizing.versions,
    )
    write_document(folder / manifest_name(stem), manifest)
    return manifest
