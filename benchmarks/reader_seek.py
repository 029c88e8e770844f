"""What does the reader cost for a store of any size: opening, seeking to a position, the first batch, memory?

    python benchmarks/reader_seek.py --shards 100000 --samples 1000

makes the tables of a store of 100 million images (not the images: all samples point at one), and reads it in this
process from random positions, as a resumed run would. Memory is the resident set of the process beyond what it had
before the store was opened; a reader whose memory grew with the samples would show here.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from PIL import Image

from beit.common.reading.batch_plan import BatchPlan
from beit.common.reading.config import ReaderConfig
from beit.common.reading.dataset import build_order
from beit.common.reading.reader import build_loader
from beit.common.rng import CounterRng
from beit.common.shards.held_out import held_out_hash
from beit.common.shards.schema import (
    INDEX_FILE,
    STORE_FILE,
    TOKENS_DIR,
    HeldOut,
    ShardRow,
    SourceInfo,
    StoreInfo,
    TokenizerInfo,
)
from beit.common.shards.tables import encode_index, encode_samples, token_sums
from beit.common.storage.documents import write_json
from beit.common.storage.samples import Record
from beit.common.store import open_store
from beit.common.views import VIEW_DTYPE
from beit.pretrain.store_dataset import StoreDataset

VIEWS, GRID_SIZE = 2, 14
TOKENS_BYTES, VIEW_BYTES = VIEWS * GRID_SIZE**2 * 2, VIEWS * VIEW_DTYPE.itemsize


@click.command()
@click.option("--shards", default=100_000, show_default=True, help="Shards of the store.")
@click.option("--samples", default=1000, show_default=True, help="Samples per shard.")
@click.option("--window-shards", default=32, show_default=True, help="Shards mixed with each other.")
@click.option("--lanes", default=1, show_default=True, help="Lanes of the order.")
@click.option("--batch-size", default=2048, show_default=True, help="Rows of one step.")
@click.option("--seeks", default=50, show_default=True, help="Random positions to find.")
@click.option("--resumes", default=10, show_default=True, help="Random positions to read a batch of 32 from.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(
    shards: int,
    samples: int,
    window_shards: int,
    lanes: int,
    batch_size: int,
    seeks: int,
    resumes: int,
    as_json: bool,
) -> None:
    """Make the store, open it, and read from random positions."""
    with tempfile.TemporaryDirectory() as folder:
        store = SyntheticStore(Path(folder), shards=shards, samples=samples)
        result = store.describe() | measure(
            store, window_shards=window_shards, lanes=lanes, batch_size=batch_size, seeks=seeks, resumes=resumes
        )
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name:<28}{value:>16,}")


class SyntheticStore:
    """A finished store whose shards are all alike; a shard's files are linked only when it is about to be read.

    Args:
        folder: Empty.
        shards: Rows of the shard table.
        samples: Rows of every sample table.
    """

    def __init__(self, folder: Path, *, shards: int, samples: int) -> None:
        self.folder, self.shards, self.samples = folder, shards, samples
        (folder / TOKENS_DIR).mkdir()
        picture = io.BytesIO()
        Image.fromarray(CounterRng(0, "picture").raw(24 * 24 * 3).astype(np.uint8).reshape(24, 24, 3)).save(
            picture, "JPEG"
        )
        (folder / "images.tar").write_bytes(bytes(512) + picture.getvalue())
        (folder / "tokens.tar").write_bytes(bytes(512 + TOKENS_BYTES + VIEW_BYTES))
        (folder / "samples.parquet").write_bytes(encode_samples(list(self._rows(len(picture.getvalue())))))
        samples_sha256 = hashlib.sha256((folder / "samples.parquet").read_bytes()).hexdigest()
        index = [self._shard(number, samples_sha256) for number in range(shards)]
        (folder / INDEX_FILE).write_bytes(encode_index(index))
        write_json(folder / STORE_FILE, asdict(self._info()))

    def describe(self) -> dict[str, int]:
        """Return the size of the store and of its tables on disk."""
        return {
            "samples": self.shards * self.samples,
            "shards": self.shards,
            "index_bytes": (self.folder / INDEX_FILE).stat().st_size,
            "sample_table_bytes": (self.folder / "samples.parquet").stat().st_size,
        }

    def provide(self, shard_ids: Iterable[int]) -> None:
        """Link the files of these shards."""
        for shard_id in set(shard_ids):
            for name, source in ((".tar", "tokens.tar"), (".samples.parquet", "samples.parquet")):
                link = self.folder / TOKENS_DIR / f"{_stem(shard_id)}{name}"
                if not link.is_symlink():
                    link.symlink_to(self.folder / source)

    def _rows(self, image_length: int) -> Iterable[dict[str, Any]]:
        nothing = np.zeros((VIEWS, GRID_SIZE, GRID_SIZE), np.uint16), np.zeros(VIEWS, VIEW_DTYPE)
        sums = token_sums(*nothing)  # the token tar is zeros
        for number in range(self.samples):
            key = f"n{number:08d}_{number * 7919 % 100_000:05d}"
            yield {
                "key": key,
                "key_hash": held_out_hash(key),
                "img_off": 512,
                "img_len": image_length,
                "tok_off": 512,
                "tok_len": TOKENS_BYTES,
                "view_off": 512 + TOKENS_BYTES,
                "view_len": VIEW_BYTES,
                "label": None,
                "token_sums": sums,
            }

    def _shard(self, number: int, samples_sha256: str) -> ShardRow:
        # Hashes that differ from row to row, as real ones do: equal ones would compress to nothing.
        hashes = [hashlib.sha256(f"{number} {name}".encode()).hexdigest() for name in ("image", "header", "tokens")]
        return ShardRow(
            stem=_stem(number),
            image_file="images.tar",
            token_file=f"{_stem(number)}.tar",
            num_samples=self.samples,
            num_skipped=0,
            num_held_out=0,
            image_bytes=(self.folder / "images.tar").stat().st_size,
            token_bytes=(self.folder / "tokens.tar").stat().st_size,
            image_sha256=hashes[0],
            image_header_sha256=hashes[1],
            token_sha256=hashes[2],
            samples_sha256=samples_sha256,
            image_stamp=str(10**18 + number),
        )

    def _info(self) -> StoreInfo:
        return StoreInfo(
            tokenizer=TokenizerInfo(name="none", fingerprint="0" * 64, vocab_size=8192, downsampling=8),
            views=VIEWS,
            img_size=224,
            patch_size=16,
            grid_size=GRID_SIZE,
            seed=0,
            source=SourceInfo(kind="tar", num_shards=self.shards, digest="0" * 64),
            held_out=HeldOut(threshold=0),
            canary="0" * 64,
            image_root=".",
        )


def measure(
    synthetic: SyntheticStore, *, window_shards: int, lanes: int, batch_size: int, seeks: int, resumes: int
) -> dict[str, float]:
    """Open the store, find positions and read from them; times are medians, memory is in MB."""
    before = resident_megabytes()
    started = time.perf_counter()
    store = open_store(synthetic.folder, check_images=False)
    opened_seconds = time.perf_counter() - started
    dataset = StoreDataset(store, seed=0)
    opened = resident_megabytes() - before
    options = {"seed": 0, "window_shards": window_shards, "lanes": lanes, "global_batch_size": batch_size}
    positions = np.random.default_rng(0).integers(0, 5 * len(store) // batch_size, max(seeks, resumes)).tolist()
    cold = []
    for step in positions[:seeks]:
        order = build_order(dataset, **options)
        started = time.perf_counter()
        order.rows(step * batch_size, batch_size)
        cold.append(time.perf_counter() - started)
    order = build_order(dataset, **options)
    plan = BatchPlan(order=order, global_batch_size=batch_size, micro_batch_size=batch_size)
    sizes, first = [], []
    for step in positions[:resumes]:
        rows = plan.micro_batch(step)
        synthetic.provide([*plan.shards_near(step), *rows.shard_ids.tolist()])
        first.append(first_batch_seconds(dataset, order, step * batch_size))
        sizes.append(resident_megabytes() - before)
    return {
        "open_seconds": round(opened_seconds, 2),
        "cold_seek_ms": round(1000 * statistics.median(cold), 2),
        "first_batch_seconds": round(statistics.median(first), 3),
        "opened_mb": round(opened, 1),
        "after_first_resume_mb": round(sizes[0], 1),
        "after_last_resume_mb": round(sizes[-1], 1),
        "tables_in_memory": len(store._tables),
    }


def first_batch_seconds(dataset: StoreDataset, order: Any, position: int) -> float:
    """Return how long the first 32 decoded images from `position` on take, without workers to start."""
    rows = min(32, order.lane_rows) if order.lanes > 1 else 32
    plan = BatchPlan(
        order=order,
        global_batch_size=order.lanes * order.lane_rows if order.lanes > 1 else rows,
        micro_batch_size=rows,
    )
    started = time.perf_counter()
    loader = build_loader(
        dataset,
        plan,
        start_step=position // plan.global_batch_size,
        num_steps=1,
        transform=decode,
        config=ReaderConfig(num_workers=0),
    )
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - started
    batches.close()
    return seconds


def decode(record: Record) -> dict[str, Any]:
    """Decode the image only: replaying a view has a benchmark of its own."""
    return {"images": np.asarray(record.decode_image())}


def resident_megabytes() -> float:
    """Return the memory of this process in MB."""
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss / 1e6


def _stem(number: int) -> str:
    return f"{number:06d}-train"


if __name__ == "__main__":
    main()
