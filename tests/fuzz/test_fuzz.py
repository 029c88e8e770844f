"""Seeded fuzzing of everything that comes from outside: thousands of damaged files, none of which may do harm.

A case ends well, or with `InputError` or `BadSample`. Any other exception, a started program, an unpickled class, a
network connection, a file written elsewhere or a case that takes too long is a failure. `BEIT_FUZZ_CASES` is the number
of cases in all and `BEIT_FUZZ_SEED` changes them; a failure names target and case, and BEIT_FUZZ_FIRST=<case> together
with BEIT_FUZZ_CASES=10 runs that case again.
"""

import faulthandler
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import signal
import sys
import tarfile
import tomllib
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w

from beit.common.config import config_to_dict, load_config
from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.jitter import FACTOR_ONE
from beit.common.shards.schema import ImageShardManifest, ShardManifest
from beit.common.shards.tables import ShardTable, decode_samples, encode_index
from beit.common.sources.class_names import read_class_names
from beit.common.sources.index_build import build_index
from beit.common.sources.labels import stored_label
from beit.common.sources.opening import open_source
from beit.common.storage.documents import read_document
from beit.common.storage.place import place_of
from beit.common.store import open_store
from beit.common.views import VIEW_DTYPE, crop_crc, render_view, replay_view
from beit.finetune.config import FinetuneConfig
from beit.pretrain.config import PretrainConfig
from beit.tests.fuzz.format_files import fuzz_formats
from beit.tests.fuzz.mask_files import fuzz_coco, fuzz_masks
from beit.tests.fuzz.mutations import (
    INTERESTING_INTS,
    INTERESTING_TEXTS,
    mutate_bytes,
    mutate_json,
    mutate_pairs,
    mutate_tar,
    tar_of,
)
from beit.tests.fuzz.run_files import fuzz_runs
from beit.tests.fuzz.weight_files import fuzz_weights
from beit.tests.tiny_store import encoded_image, tokenize, write_folder
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.config import TokenizeConfig
from beit.tokenize.tokenizer_training.config import TokenizerTrainConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]  # each case has a time limit of its own

CASES = int(os.environ.get("BEIT_FUZZ_CASES", "2000"))
FIRST = int(os.environ.get("BEIT_FUZZ_FIRST", "0"))
SEED = os.environ.get("BEIT_FUZZ_SEED", "0")
CASE_SECONDS = 60
"""Far above what any case takes; a slow machine must not fail."""
MEMORY_BYTES = 3 << 30
_SHOWN = 5


class Unpickled:
    """A pickle that shows that somebody loaded it."""

    def __reduce__(self):
        return (os.system, ("true",))


class Watch:
    """Notes, through Python's audit events, what a reader of data has no business to do."""

    FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect")
    FORBIDDEN += ("pickle.find_class", "shutil.rmtree", "os.chmod", "os.symlink", "os.link")

    def __init__(self):
        self.folder = None
        self.events = []
        sys.addaudithook(self.hook)  # for the rest of the process: hooks cannot be removed

    def hook(self, event, arguments):
        if self.folder is None:
            return
        if event in self.FORBIDDEN:
            self.events.append((event, *map(repr, arguments)))
        elif (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            if not os.path.abspath(os.fsdecode(arguments[0])).startswith(str(self.folder)):
                self.events.append((event, repr(arguments[0])))

    @contextmanager
    def over(self, folder):
        self.folder, self.events = folder, []
        try:
            yield self.events
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def watch():
    return Watch()


def numbers_of(target):
    """The cases of a target: spread evenly, so that a range of cases covers all targets."""
    place = list(TARGETS).index(target)
    return [number for number in range(FIRST, FIRST + CASES) if number % len(TARGETS) == place]


def too_slow(signum, frame):
    raise TimeoutError(f"took more than {CASE_SECONDS} s")


@pytest.fixture
def limits():
    """A few gigabytes more than now are a lot for files of a few kilobytes; what asks for more gets a MemoryError."""
    previous = signal.signal(signal.SIGALRM, too_slow)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY_BYTES, hard))
    logging.disable()  # a thousand warnings, some with halves of surrogate pairs, which test processes cannot exchange
    yield
    logging.disable(logging.NOTSET)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(
    "target",
    [
        *("tar", "image", "format", "tokens", "manifest", "store.json", "index", "forged", "config", "source", "mask"),
        *("coco", "run"),
    ],
)
def test_damaged_input_does_no_harm(tmp_path, monkeypatch, watch, limits, target):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    failures = []
    run = TARGETS[target](tmp_path)
    for number in numbers_of(target):
        rng = random.Random(f"{SEED} {target} {number}")
        signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
        faulthandler.dump_traceback_later(3 * CASE_SECONDS, exit=True)  # for a hang that no signal handler ends
        with watch.over(tmp_path) as events:
            try:
                run(rng)
            except (InputError, BadSample) as error:
                if "\n" in str(error):
                    failures.append(f"case {number}: message of several lines: {error}")
            except BaseException as error:
                where = "".join(traceback.format_exception(error)[-3:])
                failures.append(f"case {number}: {type(error).__name__}\n{where}")
        failures += [f"case {number}: {event}" for event in events]
        if len(failures) >= _SHOWN:
            break
    report = "\n".join(failures).encode("utf-8", "backslashreplace").decode()
    assert not report, f"{target}:\n{report}"


def members(number):
    return {
        f"k{number:03d}.jpg": encoded_image(number),
        f"k{number:03d}.json": json.dumps({"label": number}).encode(),
        f"k{number:03d}.cls": b"7",
        f"k{number:03d}.pkl": pickle.dumps(Unpickled()),
    }


def read_source(path):
    source = open_source(path)
    index = build_index(path, path.parent / "cache")
    assert index.class_counts().sum() == (index.labels >= 0).sum()
    for position in range(min(50, len(index))):
        assert index.ref_at(position).label in (None, *range(index.num_classes))
    for shard in source.shards:
        with shard.open() as reader:
            for ref in shard.refs()[:50]:
                assert (stored_label(ref.label) or 0) < 1 << 63, "a store holds labels of 64 bits"
                try:
                    decode_image(reader.read(ref))
                except BadSample:
                    continue


NASTY_METADATA = (b"[" * 100_000, b"9" * 5000, b"1e999", b'{"label": 1' + b"0" * 30 + b"}", b'{"label": NaN}', b"\xff")


def fuzz_tars(folder):
    samples = {name: data for number in range(4) for name, data in members(number).items()}
    long_names = {f"{'d' * 120}/{name}": data for name, data in samples.items()}
    seeds = [tar_of(samples), tar_of(long_names, tarfile.PAX_FORMAT), tar_of(long_names, tarfile.GNU_FORMAT)]

    def run(rng):
        if rng.random() < 0.1:
            nasty = {f"k00{rng.randint(0, 3)}.{rng.choice(('json', 'cls'))}": rng.choice(NASTY_METADATA)}
            data = tar_of(dict(sorted((samples | nasty).items())))
        else:
            data = mutate_tar(rng.choice(seeds), rng)
        (folder / "a.tar").write_bytes(data)
        read_source(folder / "a.tar")

    return run


def fuzz_images(folder):
    seeds = [encoded_image(number, suffix) for number in range(3) for suffix in ("jpg", "png", "webp")]
    replayed = {data: replay_of(data) for data in seeds}

    def run(rng):
        seed = rng.choice(seeds)
        data, (view, expected) = mutate_bytes(seed, rng), replayed[seed]
        try:
            assert np.array_equal(replay_view(data, view, img_size=32), expected), "shown with other pixels"
        except BadSample:
            pass  # and now why, unless only the crop was damaged
        decode_image(data)

    return run


def replay_of(data):
    """The view that begins two pixels inside an image, and what it shows."""
    image, view = decode_image(data), np.zeros(1, VIEW_DTYPE)[0]
    view["left"], view["top"], view["w"], view["h"] = 2, 2, image.width - 4, image.height - 4
    view["bright"] = view["contrast"] = view["sat"] = FACTOR_ONE
    view["crc_crop"] = crop_crc(image, view)
    return view, render_view(image, view, img_size=32)


class StoreFuzz:
    """A finished store of which one file is damaged in every case, read in every way there is, and mended again."""

    def __init__(self, folder, name, mutate):
        tokenize(write_folder(folder / "images", 5), folder / "store")
        self.store, self.path, self.mutate = folder / "store", folder / "store" / name, mutate
        self.seed = self.path.read_bytes()

    def __call__(self, rng):
        self.path.write_bytes(self.mutate(self.seed, rng))
        try:
            for read in (self.read_alone, self.read_all, lambda: verify_store(self.store)):
                try:
                    read()
                except (InputError, BadSample):
                    continue
        finally:
            self.path.write_bytes(self.seed)

    def read_alone(self):
        """Read the damaged file itself, which hashes elsewhere keep others from."""
        name = self.path.name
        if name.endswith(".manifest.json"):
            read_document(
                ImageShardManifest if self.path.parent.name == "images" else ShardManifest, place_of(str(self.path))
            )
        elif name == "index.parquet":
            list(ShardTable.decode(self.path.read_bytes(), label=name))
        elif name.endswith(".samples.parquet"):
            decode_samples(self.path.read_bytes(), label=name)

    def read_all(self):
        store = open_store(self.store)
        for row in range(min(len(store), 10)):
            try:
                _ = store[row]
            except BadSample:
                continue


class ForgedFuzz(StoreFuzz):
    """Values of a sample table, or of the shard table, are damaged by somebody who then mends all hashes."""

    def __init__(self, folder, name):
        super().__init__(folder, name, self.mutate_rows)
        self.manifest = self.store / "tokens/000000-files.manifest.json"
        self.index = self.store / "index.parquet"

    @staticmethod
    def mutate_rows(data, rng):
        table = pq.read_table(io.BytesIO(data))
        rows = table.to_pylist()
        for _ in range(rng.randint(1, 2)):
            row = rng.choice(rows)
            name = rng.choice(table.schema.names)
            value = row[name]
            near = [value + 1, value - 1, value * 2, value // 2] if isinstance(value, int) else [f"{value}x"]
            row[name] = rng.choice([*near, rng.choice(INTERESTING_INTS), rng.choice(INTERESTING_TEXTS)])
        buffer = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), buffer)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return data  # not to be said in this column
        return buffer.getvalue()

    def read_alone(self):
        if self.path != self.index:
            self.forge()
        super().read_alone()

    def __call__(self, rng):
        kept = {path: path.read_bytes() for path in (self.manifest, self.index)}
        try:
            super().__call__(rng)
        finally:
            for path, data in kept.items():
                path.write_bytes(data)

    def forge(self):
        digest, size = hashlib.sha256(self.path.read_bytes()).hexdigest(), self.path.stat().st_size
        document = json.loads(self.manifest.read_bytes())
        document["samples"] |= {"sha256": digest, "size": size}
        self.manifest.write_text(json.dumps(document))
        first, *others = list(ShardTable.decode(self.index.read_bytes(), label="index"))
        self.index.write_bytes(encode_index([replace(first, samples_sha256=digest), *others]))


def object_array():
    buffer = io.BytesIO()
    np.save(buffer, np.array([Unpickled()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def mutate_token_tar(data, rng):
    """Damage a tar of npy members, or put another array in the place of one."""
    if rng.random() < 0.7:
        return mutate_tar(data, rng)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        arrays = {info.name: tar.extractfile(info).read() for info in tar}
    name = rng.choice(list(arrays))
    arrays[name] = rng.choice((object_array(), b"", mutate_bytes(arrays[name], rng), pickle.dumps(Unpickled())))
    return tar_of(arrays)


def fuzz_each(folder, *places):
    """Choose one of several files of a store for every case."""
    return choose(*(StoreFuzz(folder / str(number), *place) for number, place in enumerate(places)))


def mutate_settings(data, rng):
    """Damage store.json; that its images lie on a server is legitimate, and no test connects to one."""
    mutated = mutate_json(data, rng)
    return data if b"://" in mutated else mutated


def choose(*fuzzes):
    return lambda rng: rng.choice(fuzzes)(rng)


def fuzz_config(folder):
    schemas = (TokenizeConfig, TokenizerTrainConfig, PretrainConfig, FinetuneConfig)

    def run(rng):
        schema = rng.choice(schemas)
        settings = config_to_dict(schema())
        text = tomli_w.dumps(settings)
        if rng.random() < 0.5:
            try:
                text = tomli_w.dumps(_without_null(mutate_pairs(tomllib.loads(text), rng)))
            except (TypeError, ValueError, UnicodeEncodeError):
                return  # not to be said in TOML
        data = text.encode("utf-8", "surrogatepass")
        (folder / "recipe.toml").write_bytes(data if rng.random() < 0.5 else mutate_bytes(data, rng))
        load_config(schema, recipe=folder / "recipe.toml", overrides=[], recipe_dir=folder)
        name = rng.choice([*settings, "augment.flip", "train.steps", "x", "a.b.c", ""])
        values = ("1", "-1", "nan", "inf", "", "[", "[1,2]", "{a=1}", "true", "1e400", "\0", "9" * 5000, "none", "'")
        load_config(
            schema, recipe=None, overrides=[f"{name}={rng.choice(values)}", rng.choice(values)], recipe_dir=folder
        )

    return run


def _without_null(value):
    if isinstance(value, dict):
        return {str(key): _without_null(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_null(entry) for entry in value if entry is not None]
    return value


def fuzz_sources(folder):
    images = write_folder(folder / "images", 3)
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(images.iterdir())]
    buffer, plain = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 2]}), buffer, row_group_size=2)
    # Here damage reaches the values themselves, and texts are made into names.
    pq.write_table(
        pa.table({"image": rows, "label": ["cat", "dog", "cat"]}), plain, compression="none", row_group_size=2
    )
    lists = io.BytesIO()
    pq.write_table(pa.table({"image": rows, "labels": [[1], [2, 0], []], "target": [1.0, 2.0, None]}), lists)
    names = [f"images/{path.name}" for path in sorted(images.iterdir())]
    seeds = {
        "lists.parquet": lists.getvalue(),
        "flags.csv": ("image_id;cat;dog\n" + "".join(f"{name};0;1\n" for name in names)).encode(),
        "names.json": b'{"0": "cat", "1": "dog", "1000000000000000000000": "emu"}',
        "a.parquet": buffer.getvalue(),
        "plain.parquet": plain.getvalue(),
        "a.csv": ("path,label\n" + "".join(f"{name},{n}\n" for n, name in enumerate(names))).encode(),
        "a.txt": "\n".join(names).encode(),
    }

    def run(rng):
        name = rng.choice(list(seeds))
        (folder / name).write_bytes(mutate_bytes(seeds[name], rng))
        if name == "names.json":
            read_class_names(str(folder / name))
        else:
            read_source(folder / name)

    return run


TARGETS = {
    "tar": fuzz_tars,
    "image": fuzz_images,
    "tokens": lambda folder: fuzz_each(folder, ("tokens/000000-files.tar", mutate_token_tar)),
    "manifest": lambda folder: fuzz_each(
        folder, ("tokens/000001-files.manifest.json", mutate_json), ("images/000001-files.manifest.json", mutate_json)
    ),
    "store.json": lambda folder: fuzz_each(folder, ("store.json", mutate_settings)),
    "index": lambda folder: fuzz_each(
        folder, ("index.parquet", mutate_bytes), ("tokens/000000-files.samples.parquet", mutate_bytes)
    ),
    "forged": lambda folder: choose(
        ForgedFuzz(folder / "samples", "tokens/000000-files.samples.parquet"),
        ForgedFuzz(folder / "index", "index.parquet"),
    ),
    "config": fuzz_config,
    "source": fuzz_sources,
    "mask": fuzz_masks,
    "coco": fuzz_coco,
    "run": fuzz_runs,
    "weights": fuzz_weights,
    "format": fuzz_formats,
}


def test_the_watch_sees_what_it_must(tmp_path, watch):
    with watch.over(tmp_path) as events:
        pickle.loads(pickle.dumps(Unpickled()))
        with pytest.raises(OSError):
            Path("/nonexistent/file").open("w")
    assert [event[0] for event in events] == ["pickle.find_class", "os.system", "open"]
