"""What does it cost to check tokens as they are read?

    python benchmarks/token_checks.py
    python benchmarks/token_checks.py --other /path/to/an/earlier/version/.venv/bin/python

Three contestants read the same samples of one generated store, in turns, each sample's record and, as training does,
its decoded image: with the checks, with the checks taken out, and from a store without checksums, as earlier versions
wrote them, whose token tars are hashed as a whole when their shard is first read from. With `--other`, a fourth one:
the beit of that interpreter on the store without checksums. A second table reads records only, which nothing does; the
difference there is the price of a check. One process and one thread; data workers share that work as they share all
reading.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click

Turn = Callable[[], float]
"""Reads all samples once; seconds of processor time, which other work on the machine leaves nearly alone."""
_NEWER_FIELDS = ("image_member", "max_megapixels", "stamp")
"""Of `source` in store.json, which 365d2fa does not know."""
_STEP_RATES = (150, 2000)
"""Images per second of one training process: the demo's model on two cores (docs/results.md), and more than any GPU
reached with a base model."""


@click.command()
@click.option("--images", default=400, show_default=True, help="Photographs of the store, 500 px wide.")
@click.option("--views", default=16, show_default=True, help="Stored views per image.")
@click.option("--rounds", default=15, show_default=True, help="Turns of every contestant.")
@click.option("--other", default=None, help="Python of another checkout, to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--serve", default=None, hidden=True, help="Store to read at every line of input.")
def main(images: int, views: int, rounds: int, other: str | None, as_json: bool, serve: str | None) -> None:
    """Make the store, read it in turns, and print rates and ratios."""
    if serve is not None:
        _serve(serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        stores = _make_stores(Path(folder), images=images, views=views)
        result = {kind: _compare(stores, rounds, other, decode=kind == "reading") for kind in ("reading", "records")}
    per_image = 1e6 * (1 / result["records"]["checked"]["rate"] - 1 / result["records"]["unchecked"]["rate"])
    summary = {f"share of a step at {rate} images/s": per_image * rate / 1e6 for rate in _STEP_RATES}
    if as_json:
        click.echo(json.dumps({**result, "microseconds": per_image, **summary}))
        return
    for kind, rows in result.items():
        for name, row in rows.items():
            click.echo(
                f"{kind:<10}{name:<12}{row['rate']:>10.0f} images/s of processor time{row['ratio']:>9.4f} of unchecked"
            )
    click.echo(f"a check costs {per_image:.2f} microseconds per image")
    for name, share in summary.items():
        click.echo(f"{name}: {100 * share:.3f} %")


def _make_stores(folder: Path, *, images: int, views: int) -> dict[str, str]:
    """Return the store as it is made, and a copy as earlier versions made it, without checksums."""
    from beit.benchmarks.stores import make_store, write_scenes
    from beit.common.shards.schema import INDEX_FILE, STORE_FILE, TOKENS_DIR
    from beit.common.shards.tables import encode_index, encode_samples

    source = write_scenes(folder / "images", images)
    store = make_store(source, folder / "store", views=views, shard_size=100)
    shutil.copytree(folder / "store", folder / "plain")
    rows = []
    for shard_id, shard in enumerate(store.shards):
        table = store.samples(shard_id)
        names = [name for name in table.__dataclass_fields__ if name != "token_sums"]
        samples = [{name: getattr(table, name)[row] for name in names} | {"label": None} for row in range(len(table))]
        data = encode_samples(samples)
        (folder / "plain" / TOKENS_DIR / f"{shard.stem}.samples.parquet").write_bytes(data)
        rows.append(replace(shard, samples_sha256=hashlib.sha256(data).hexdigest()))
    (folder / "plain" / INDEX_FILE).write_bytes(encode_index(rows))
    document = json.loads((folder / "plain" / STORE_FILE).read_text(encoding="utf-8"))
    for name in _NEWER_FIELDS:
        del document["source"][name]
    (folder / "plain" / STORE_FILE).write_text(json.dumps(document), encoding="utf-8")
    return {"store": str(folder / "store"), "plain": str(folder / "plain")}


def _compare(stores: dict[str, str], rounds: int, other: str | None, *, decode: bool) -> dict[str, dict[str, float]]:
    """Let the contestants read in turns; the ratio is the median over rounds."""
    import statistics

    from beit.common.shards.token_store import TokenStore

    checked, plain = reader(stores["store"], decode=decode), stores["plain"]

    def unchecked() -> float:
        with mock.patch.object(TokenStore, "_prove", lambda *_: None):
            return checked()

    contestants: dict[str, Turn] = {
        "checked": checked,
        "unchecked": unchecked,
        "hashed": lambda: reader(plain, decode=decode)(),  # opened anew: every tar is hashed once
    }
    with _other(other, plain, decode=decode) as turn:
        contestants |= {} if turn is None else {"other": turn}
        for contest in contestants.values():  # warm-up
            contest()
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds):
            names = list(contestants)
            random.Random(number).shuffle(names)
            for name in names:
                seconds[name].append(contestants[name]())
    count = sum(1 for _ in places(stores["store"]))
    return {
        name: {
            "rate": count / statistics.median(times),
            "ratio": statistics.median(b / a for a, b in zip(times, seconds["unchecked"], strict=True)),
        }
        for name, times in seconds.items()
    }


def reader(location: str, *, decode: bool) -> Turn:
    """Return a turn on a store; only what earlier versions have, too, is used here."""
    from beit.common.images.decode import decode_image
    from beit.common.store import open_store

    store, samples = open_store(location), list(places(location))
    store.expect_shards(list(range(len(store.shards))))
    for shard_id in range(len(store.shards)):
        store.samples(shard_id)

    def turn() -> float:
        started = time.process_time()
        for shard_id, row, view_k in samples:
            record = store.read_record(shard_id, row, view_k)
            if decode:
                decode_image(record.image_bytes)
        return time.process_time() - started

    return turn


def places(location: str) -> Iterator[tuple[int, int, int]]:
    """Yield shard, row and view of every sample of a store in a mixed order."""
    from beit.common.store import open_store

    store = open_store(location)
    found = [(shard_id, row) for shard_id, shard in enumerate(store.shards) for row in range(shard.num_samples)]
    random.Random(0).shuffle(found)
    return ((shard_id, row, number % store.info.views) for number, (shard_id, row) in enumerate(found))


@contextmanager
def _other(python: str | None, location: str, *, decode: bool) -> Iterator[Turn | None]:
    """Give a turn in another interpreter, which is started once."""
    if python is None:
        yield None
        return
    command = [python, __file__, "--serve", location]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        talk: Any = process

        def turn() -> float:
            talk.stdin.write(f"{int(decode)}\n")
            talk.stdin.flush()
            return float(talk.stdout.readline())

        yield turn
        process.stdin.close()


def _serve(location: str) -> None:
    turns = {decode: reader(location, decode=decode) for decode in (False, True)}
    for line in sys.stdin:
        print(turns[line.strip() == "1"](), flush=True)


if __name__ == "__main__":
    main()
