"""What does it cost to read from an object store: samples whose shards are not cached, and tars that are tokenised?

    python benchmarks/remote_reading.py
    python benchmarks/remote_reading.py --against ../older-checkout --rounds 9

reads the training samples of a store in a bucket as one data worker does without a cache, in groups of 64 from a window
of 32 shards, and does not decode them; then tokenises tars of the bucket with a tokenizer that costs nothing. Another
checkout (with its own .venv) takes turns with this one, so that ratios are those of the same minute. Processor time is
that of the reading process, user and system.

The bucket is on this machine, in a process of its own that answers GET and HEAD of S3 and does little else: moto, which
the tests use, would be what is measured. Its big files are sparse: 32 tars of 1000 images, some 110 kB each as in
ImageNet, and token tars as `beit tokenize` lays them out.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

VIEWS, GRID_SIZE, IMAGE_BYTES = 2, 14, 110_000
GROUP = 64

READER = """
import json, os, sys, time
import numpy as np
from beit.common.store import open_store

store = open_store(sys.argv[1], check_images=False)
samples, rng = int(sys.argv[2]), np.random.default_rng(int(sys.argv[3]))
places = [(s, r, int(rng.integers(store.info.views))) for s in range(len(store.shards))
          for r in range(store.shards[s].num_samples)]
order = [places[i] for i in rng.permutation(len(places))[: samples + GROUP]]
store.load_tables(range(len(store.shards)))
total = 0
for start in range(0, len(order), GROUP):
    if start == GROUP:
        begun, before, total = time.perf_counter(), os.times(), 0
    group = order[start : start + GROUP]
    store.read_ahead(group)
    for place in group:
        total += len(store.read_record(*place).image_bytes)
seconds, after = time.perf_counter() - begun, os.times()
cpu = sum(after[:4]) - sum(before[:4])
count = len(order) - GROUP
print(json.dumps({"samples_per_second": count / seconds, "cpu_ms_per_sample": 1000 * cpu / count, "bytes": total}))
""".replace("GROUP", str(GROUP))

TOKENISER = """
import json, os, sys, tempfile, time
import numpy as np, torch
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.run import run_tokenize

class NoTokenizer:
    vocab_size, downsampling, fingerprint = 8192, 8, "0" * 64
    def encode(self, images):
        side = images.shape[1] // 8
        return torch.zeros((len(images), side, side), dtype=torch.int64)

def run(source):
    with tempfile.TemporaryDirectory() as folder:
        begun, before = time.perf_counter(), os.times()
        config = TokenizeConfig(threads=1, views=1, workers=2)
        summary = run_tokenize(config, source, folder + "/store", tokenizer=NoTokenizer())
        return summary.num_samples, time.perf_counter() - begun, sum(os.times()[:4]) - sum(before[:4])

run(sys.argv[1] + "/part-0.tar")
count, seconds, cpu = run(sys.argv[1] + "/part-{0..3}.tar")
print(json.dumps({"images_per_second": count / seconds, "cpu_ms_per_image": 1000 * cpu / count}))
"""


@click.command()
@click.option("--against", type=click.Path(exists=True, path_type=Path), help="Another checkout, with a .venv.")
@click.option("--samples", default=2048, show_default=True, help="Samples to read in a turn.")
@click.option("--images", default=256, show_default=True, help="Images to tokenise in a turn; 0 for no turn.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each checkout.")
@click.option("--seed", default=0, show_default=True, help="Of the order.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(*, against: Path | None, samples: int, images: int, rounds: int, seed: int, as_json: bool) -> None:
    """Let the checkouts take turns and print medians."""
    pythons = {"this": sys.executable} | ({"other": str(against / ".venv/bin/python")} if against else {})
    found: dict[str, dict[str, list[float]]] = {name: {} for name in pythons}
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder) / "bucket/store", seed)
        if images:
            make_tars(Path(folder) / "bucket/tars", images)
        with serve(Path(folder)) as environment:
            for turn in range(rounds):
                for name, python in sorted(pythons.items(), reverse=bool(turn % 2)):
                    result = run(python, READER, environment, "s3://bucket/store", samples, seed + turn)
                    if images:
                        result |= run(python, TOKENISER, environment, "s3://bucket/tars")
                    for key, value in result.items():
                        found[name].setdefault(key, []).append(value)
    report(found, as_json=as_json)


def run(python: str, code: str, environment: dict[str, str], *arguments: object) -> dict[str, float]:
    """Run a script with the package of a checkout and return what it prints."""
    command = [python, "-c", code, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:  # not the checkout: nothing of it is to be imported from here
        done = subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(found: dict[str, dict[str, list[float]]], *, as_json: bool) -> None:
    """Print medians, and the median of the ratios of the same round."""
    result: dict[str, Any] = {
        name: {key: statistics.median(values) for key, values in keys.items()} for name, keys in found.items()
    }
    if "other" in found:
        result["this / other"] = {
            key: statistics.median(mine / other for mine, other in zip(values, found["other"][key], strict=True))
            for key, values in found["this"].items()
        }
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, keys in result.items():
        click.echo(f"{name:<14}" + "".join(f"{key} {value:.3f}   " for key, value in keys.items() if key != "bytes"))


def make_store(folder: Path, seed: int, *, shards: int = 32, samples: int = 1000) -> None:
    """Write a finished store whose tars are sparse files of the right layout."""
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
    from beit.common.views import VIEW_DTYPE

    (folder / TOKENS_DIR).mkdir(parents=True)
    rng = np.random.default_rng(seed)
    nothing = np.zeros((VIEWS, GRID_SIZE, GRID_SIZE), np.uint16), np.zeros(VIEWS, VIEW_DTYPE)
    lengths = tuple(array.nbytes for array in nothing)
    index = []
    for number in range(shards):
        rows, image_end, token_end, stem = [], 0, 0, f"{number:06d}-train"
        for sample in range(samples):
            key, length = f"n{sample:08d}", int(rng.integers(IMAGE_BYTES // 2, IMAGE_BYTES * 3 // 2))
            row = {"key": key, "key_hash": held_out_hash(key), "label": None, "img_off": image_end + 512}
            row |= {"img_len": length, "token_sums": token_sums(*nothing)}
            image_end += 512 + _padded(length)
            for name, size in zip(("tok", "view"), lengths, strict=True):
                row |= {f"{name}_off": token_end + 512 + 128, f"{name}_len": size}  # behind both headers
                token_end += 512 + _padded(128 + size)
            rows.append(row)
        table = encode_samples(rows)
        (folder / TOKENS_DIR / f"{stem}.samples.parquet").write_bytes(table)
        for path, size in ((folder / f"{stem}.tar", image_end), (folder / TOKENS_DIR / f"{stem}.tar", token_end)):
            path.touch()
            os.truncate(path, size + 1024)
        index.append(
            ShardRow(
                stem=stem,
                image_file=f"{stem}.tar",
                token_file=f"{stem}.tar",
                num_samples=samples,
                num_skipped=0,
                num_held_out=0,
                image_bytes=image_end + 1024,
                token_bytes=token_end + 1024,
                image_sha256="",
                image_header_sha256="0" * 64,
                token_sha256="0" * 64,
                samples_sha256=hashlib.sha256(table).hexdigest(),
                image_stamp="",
            )
        )
    info = StoreInfo(
        tokenizer=TokenizerInfo(name="none", fingerprint="0" * 64, vocab_size=8192, downsampling=8),
        views=VIEWS,
        img_size=224,
        patch_size=16,
        grid_size=GRID_SIZE,
        seed=0,
        source=SourceInfo(kind="tar", num_shards=shards, digest="0" * 64),
        held_out=HeldOut(threshold=0),
        canary="0" * 64,
        image_root=".",
    )
    (folder / INDEX_FILE).write_bytes(encode_index(index))
    write_json(folder / STORE_FILE, asdict(info))


def make_tars(folder: Path, images: int) -> None:
    """Write generated photographs to four tars."""
    from beit.benchmarks.stores import write_scenes

    folder.mkdir(parents=True)
    photos = sorted(Path(write_scenes(folder / "photos", images)).iterdir())
    for number in range(4):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for path in photos[number::4]:
                tar.add(path, path.name)


@contextmanager
def serve(folder: Path) -> Iterator[dict[str, str]]:
    """Serve the folders of a folder as buckets, in a process of its own; yield the environment that names it."""
    command = [sys.executable, "-c", "from beit.benchmarks.remote_reading import answer_forever as a; a()", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        variables = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}"}
        variables |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        yield os.environ | variables | {"OMP_NUM_THREADS": "1", "BEIT_CACHE": str(folder / "cache")}
    finally:
        server.terminate()
        server.wait()


def answer_forever() -> None:
    """Answer GET and HEAD of the files below the folder on the command line; print the port first."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(connection, Path(sys.argv[1])), daemon=True).start()


def _answer(connection: socket.socket, folder: Path) -> None:
    files: dict[str, tuple[int, int]] = {}
    waiting = b""
    while True:
        while b"\r\n\r\n" not in waiting:
            part = connection.recv(65536)
            if not part:
                return
            waiting += part
        head, waiting = waiting.split(b"\r\n\r\n", 1)
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        path = path.partition("?")[0]
        if path not in files:
            file = folder / path.lstrip("/")
            if not file.is_file():
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            files[path] = (os.open(file, os.O_RDONLY), file.stat().st_size)
        descriptor, size = files[path]
        wanted = next((line.partition("=")[2] for line in lines if line.lower().startswith("range:")), "")
        begin, _, last = wanted.partition("-")
        start, end = int(begin or 0), min(int(last) + 1, size) if last else size
        status = f"206 Partial Content\r\nContent-Range: bytes {start}-{end - 1}/{size}" if wanted else "200 OK"
        connection.sendall(
            f'HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\nETag: "{size:x}"\r\n'
            "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n".encode()
        )
        if method == "GET":
            connection.sendall(os.pread(descriptor, end - start, start))


def _padded(length: int) -> int:
    return -(-length // 512) * 512


if __name__ == "__main__":
    main()
