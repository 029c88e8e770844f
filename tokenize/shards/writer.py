"""Writing one token shard: the token tar, the sample table, and the manifest that commits both.

Every file appears under its name when it is whole (`tokenize/store/documents.py`); the manifest comes last. So a shard
without a manifest is unfinished and a shard with one is complete, whenever the process was killed. The bytes depend on
the samples alone. The layout is described in docs/store-format.md.

K views per image, g tokens per side.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from beit.common.faults import fault_point
from beit.common.shards.schema import (
    TOKENS_DIR,
    TOKENS_SUFFIX,
    VIEWS_SUFFIX,
    CommittedFile,
    ImageFile,
    ShardManifest,
    SkippedSample,
    StoreInfo,
    held_out_hash,
    manifest_name,
)
from beit.common.shards.tables import encode_samples
from beit.common.sources.types import SampleRef
from beit.common.storage.documents import write_document
from beit.common.storage.place import Place
from beit.common.storage.tar_writer import TarAppender
from beit.tokenize.shards.crops import CropsRef
from beit.tokenize.shards.encode import RankTokenizer
from beit.tokenize.store.documents import StoreFiles


def begin_shard(folder: Place, stem: str) -> None:
    """Remove what an interrupted run left of a shard, and its manifest: from here on it is unfinished."""
    (folder / manifest_name(stem)).remove()
    folder.remove_temporaries(f"{stem}.")


@contextmanager
def new_shard_tar(folder: Place, stem: str) -> Iterator[TarAppender]:
    """Begin a shard with its tar of images or tokens, which appears, whole, only if the block succeeds."""
    begin_shard(folder, stem)
    with (folder / f"{stem}.tar").new_file() as file:
        yield TarAppender(file)


class TokenShardWriter:
    """Collects the samples of one shard and commits them; as a context manager left before that, it leaves nothing.

    Args:
        files: Of the store.
        stem: Name of the shard.
        info: Settings of the store; with views = 0 there is no token tar.
    """

    def __init__(self, files: StoreFiles, stem: str, info: StoreInfo) -> None:
        self._folder = files / TOKENS_DIR
        self._stem = stem
        self._info = info
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._tar: TarAppender | None = None

    def __enter__(self) -> Self:
        """Remove what an interrupted run left of this shard, and its manifest: from here on it is unfinished."""
        if self._info.views:
            self._tar = self._stack.enter_context(new_shard_tar(self._folder, self._stem))
        else:
            begin_shard(self._folder, self._stem)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the temporary file if the shard was not committed."""
        if kind is None and self._tar is not None:
            kind, value = RuntimeError, RuntimeError("not committed")  # takes the file down the path of a failure
        self._stack.__exit__(kind, value, trace)

    def add(self, ref: SampleRef, token_ids: NDArray[np.uint16], views: np.ndarray[Any, np.dtype[np.void]]) -> None:
        """Append one sample.

        Args:
            ref: Key, label and place of the image.
            token_ids: (K, g, g).
            views: (K,) of `VIEW_DTYPE`.
        """
        fault_point("sample")
        row = {"key": ref.key, "key_hash": held_out_hash(ref.key), "label": ref.label}
        row |= _image_columns(ref)
        row["tok_off"], row["tok_len"] = self._add_array(f"{ref.key}.{TOKENS_SUFFIX}", token_ids)
        row["view_off"], row["view_len"] = self._add_array(f"{ref.key}.{VIEWS_SUFFIX}", views)
        self._rows.append(row)

    def commit(self, *, image: ImageFile, skipped: list[SkippedSample], tokenizing: RankTokenizer) -> ShardManifest:
        """Give the files their final names, the manifest last, and return it.

        Raises:
            OSError: the disk is full or failing; no file of the shard is left under a final name without being whole.
        """
        tokens = None
        if self._tar is not None:
            tokens = CommittedFile(name=f"{self._stem}.tar", sha256=self._tar.finish(), size=self._tar.size)
            self._tar = None
        self._stack.close()
        tokenizer = self._info.tokenizer
        manifest = ShardManifest(
            stem=self._stem,
            settings_sha256=self._info.settings_sha256(),
            image=image,
            tokens=tokens,
            samples=self._write_samples(),
            num_samples=len(self._rows),
            skipped=tuple(skipped),
            tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "",
            vocab_size=tokenizer.vocab_size if tokenizer else 0,
            views=self._info.views,
            grid_size=self._info.grid_size,
            canary=self._info.canary,
            execution=tokenizing.execution,
            versions=tokenizing.versions,
        )
        write_document(self._folder / manifest_name(self._stem), manifest)
        return manifest

    def _write_samples(self) -> CommittedFile:
        name = f"{self._stem}.samples.parquet"
        data = encode_samples(self._rows, num_crops=self._info.views if self._info.is_materialized else 0)
        (self._folder / name).write(data)
        return CommittedFile(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))

    def _add_array(self, name: str, array: NDArray[Any]) -> tuple[int, int]:
        """Append an array as an .npy member; return offset and length of its data, behind the npy header."""
        if self._tar is None:
            return 0, 0
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        payload = buffer.getvalue()
        offset = self._tar.add(name, payload)
        return offset + len(payload) - array.nbytes, array.nbytes


def _image_columns(ref: SampleRef) -> dict[str, Any]:
    if isinstance(ref, CropsRef):
        return {"img_off": [crop.offset for crop in ref.crops], "img_len": [crop.length for crop in ref.crops]}
    return {"img_off": ref.offset, "img_len": ref.length}
