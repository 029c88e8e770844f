"""Faults injected into a tokenisation, and what is left of the store afterwards. Promises: docs/store-format.md."""

import io
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tarfile
from multiprocessing import get_context

import numpy as np
import pytest

from beit.common.errors import InputError
from beit.common.shards.schema import ShardManifest
from beit.common.storage.documents import read_document
from beit.common.storage.files import set_trap
from beit.common.storage.place import place_of
from beit.common.storage.tar_walk import walk_tar
from beit.common.store import open_store
from beit.tests.support import write_images, write_tokenizer
from beit.tests.tiny_store import (
    BlockSums,
    encoded_image,
    tokenize,
    tree_bytes,
    write_folder,
    write_members,
    write_tars,
)
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.store.documents import check_file

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]

PASSES = {"rename": 18, "renamed": 18, "sample": 12}
"""How often each point is passed while 12 images are tokenised in 3 shards: store.json, for each shard its image tar
and that one's manifest, token tar, sample table, manifest, then store.json and the index."""


def seeded_traps(count):
    rng = random.Random(4)
    traps = [f"{point}:{number}" for point, passes in PASSES.items() for number in range(1, passes + 1)]
    return rng.sample(traps, count)


def tokenize_trapped(source, store, trap):
    set_trap(trap)
    tokenize(source, store)


def in_child(function, *arguments):
    """Run in a process of its own and return its exit code; a hung one is killed by the test's time limit."""
    process = get_context("fork").Process(target=function, args=arguments, daemon=True)
    process.start()
    process.join()
    return process.exitcode


def finished_shards(store):
    """Return the shards with a manifest, having checked that every file they name is there, and no tar is half."""
    for tar in store.glob("*/*.tar"):
        with tar.open("rb") as file:
            walk_tar(file, label=tar.name)
    manifests = [
        read_document(ShardManifest, place_of(str(path))) for path in (store / "tokens").glob("*.manifest.json")
    ]
    for manifest in manifests:
        check_file(place_of(f"{store}/tokens/{manifest.tokens.name}"), manifest.tokens)
        check_file(place_of(f"{store}/tokens/{manifest.samples.name}"), manifest.samples)
    return {manifest.stem for manifest in manifests}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A source and the store that an uninterrupted run makes of it."""
    folder = tmp_path_factory.mktemp("clean")
    source = write_folder(folder / "images", 12)
    tokenize(source, folder / "store")
    return source, tree_bytes(folder / "store")


@pytest.mark.parametrize("trap", seeded_traps(20))
def test_kill_at_a_random_point_loses_and_repeats_nothing(tmp_path, clean, trap):
    (source, expected), store = clean, tmp_path / "store"
    assert in_child(tokenize_trapped, source, store, trap) == -signal.SIGKILL
    finished = finished_shards(store)
    assert not (store / "index.parquet").exists() or len(finished) == 3
    tokenizer = BlockSums()
    summary = tokenize(source, store, tokenizer=tokenizer)
    assert summary.num_shards_kept == len(finished)
    assert len(tokenizer.batch_shapes) == 3 * (3 - len(finished))
    assert tree_bytes(store) == expected


def test_runs_of_different_world_sizes_killed_one_after_the_other_end_in_equal_bytes(tmp_path, clean):
    (source, expected), store = clean, tmp_path / "store"
    for trap, rank, world_size in (("rename:9", 0, 1), ("sample:3", 1, 2), ("renamed:3", 2, 3)):

        def trapped(trap=trap, rank=rank, world_size=world_size):
            set_trap(trap)
            tokenize(source, store, rank=rank, world_size=world_size)

        assert in_child(trapped) == -signal.SIGKILL
        finished_shards(store)
    tokenize(source, store)
    assert tree_bytes(store) == expected


def test_several_tokenizers_on_one_output_share_the_work(tmp_path, clean):
    (source, expected), store = clean, tmp_path / "store"
    context = get_context("fork")
    places = ((0, 1), (0, 1), (1, 2), (2, 3))
    processes = [
        context.Process(target=tokenize, args=(source, store), kwargs={"rank": rank, "world_size": world_size})
        for rank, world_size in places
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert tree_bytes(store) == expected


def cut_at(where):
    def cut(path):
        with path.open("rb") as file:
            member = walk_tar(file, label=path.name).members[2]
        places = {"boundary": member.offset - 512, "header": member.offset - 200, "payload": member.offset + 10}
        os.truncate(path, places[where])

    return cut


def zero_span(path):
    data = path.read_bytes()
    path.write_bytes(data[:600] + bytes(300) + data[900:])


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[700] ^= 4
    path.write_bytes(data)


DAMAGES = {f"cut at {where}": cut_at(where) for where in ("boundary", "header", "payload")}
DAMAGES |= {"zeroed": zero_span, "flipped": flip_bit, "emptied": lambda path: path.write_bytes(b"")}


@pytest.mark.parametrize("kind", ["tokens", "images"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_of_a_tar_is_found_by_verify_and_cuts_also_at_the_start(tmp_path, clean, kind, damage):
    (source, expected), store = clean, tmp_path / "store"
    for name, data in expected.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(data)
    tar = store / kind / "000001-files.tar"
    size = tar.stat().st_size
    damage(tar)
    (problem,) = verify_store(store).problems
    assert "shard 000001-files" in problem and tar.name in problem
    if kind == "tokens" or tar.stat().st_size != size:  # `beit tokenize` hashes token tars and sizes image tars
        tokenize(source, store)
        assert tree_bytes(store) == expected


def beit(*arguments, limit=None):
    """Run the command; return its exit code and what it printed."""
    process = subprocess.run(
        [sys.executable, "-m", "beit.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )
    return process.returncode, process.stdout + process.stderr


def test_a_full_disk_ends_the_command_with_the_path_and_a_rerun_completes(tmp_path):
    source = tmp_path / "tars"
    write_tars(source, (3, 40, 3))
    command = ["tokenize", source, tmp_path / "store", "--tokenizer", write_tokenizer(tmp_path / "tokenizer")]
    command += ["--views", 3, "--img-size", 16, "--patch-size", 4, "--set", "threads=1"]
    code, output = beit(*command, limit=40_000)
    assert code == 1
    assert output.splitlines()[-1].startswith("beit: ") and "tokens/000001-part-1.tar" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not list(tmp_path.glob("store/**/*.tmp.*"))
    assert finished_shards(tmp_path / "store") == {"000000-part-0"}
    code, output = beit(*command)
    assert code == 0 and "1 were finished before" in output
    assert beit("verify", tmp_path / "store")[0] == 0


def test_verify_exits_1_and_names_the_shard(tmp_path):
    tokenize(write_tars(tmp_path / "images", (3, 3)), tmp_path / "store")
    flip_bit(tmp_path / "store/tokens/000001-part-1.tar")
    code, output = beit("verify", tmp_path / "store")
    assert code == 1 and "shard 000001-part-1" in output and "Traceback" not in output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda signum: signum.name)
def test_a_signal_ends_the_command_with_75_and_a_rerun_completes(tmp_path, signum):
    source, store = write_images(tmp_path / "images", 200), tmp_path / "store"
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    command = ["tokenize", source, store, "--tokenizer", tokenizer, "--views", 20, "--img-size", 16, "--patch-size", 4]
    command += ["--set", "threads=1", "--set", "shard_size=10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "beit.cli", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not list(store.glob("tokens/*.manifest.json")):  # the test's time limit ends this if the command hangs
        assert process.poll() is None
    process.send_signal(signum)
    _, output = process.communicate()
    assert process.returncode == 75
    assert f"({signum.name}); finished shards are kept, run the same command again" in output
    assert "Traceback" not in output
    assert not list(store.glob("**/*.tmp.*")) and not list(store.glob(".lease.*"))
    assert 0 < len(finished_shards(store)) < 20
    code, output = beit(*command)
    assert code == 0 and verify_store(store).problems == []


class Canary:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def object_array(canary):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_pickles_beside_images_are_not_run(tmp_path):
    canary = tmp_path / "canary"
    members = {}
    for number in range(3):
        members |= {f"{number}.jpg": encoded_image(number), f"{number}.pkl": pickle.dumps(Canary(canary))}
        members |= {f"{number}.pyd": pickle.dumps(Canary(canary)), f"{number}.pth": pickle.dumps(Canary(canary))}
        members |= {f"{number}.npy": object_array(canary), f"{number}.cls": b"1"}
    (tmp_path / "images").mkdir()
    write_members(tmp_path / "images/a.tar", members)
    assert tokenize(tmp_path / "images", tmp_path / "store").num_samples == 3
    assert verify_store(tmp_path / "store").problems == []
    assert not canary.exists()
    pickle.loads(members["0.pkl"])
    assert canary.exists(), "the canary must work"


def test_an_object_array_in_place_of_tokens_is_refused_and_not_run(tmp_path):
    canary, store = tmp_path / "canary", tmp_path / "store"
    tokenize(write_tars(tmp_path / "images", (3,)), store)
    tar = store / "tokens/000000-part-0.tar"
    with tarfile.open(tar) as opened:
        members = {member.name: opened.extractfile(member).read() for member in opened}
    members["k001.tokens.npy"] = object_array(canary)
    write_members(tar, members)
    assert any("000000-part-0" in problem for problem in verify_store(store).problems)
    for row in range(3):
        try:
            open_store(store)[row]
        except Exception as error:
            assert "token" in str(error) or "ends before" in str(error)
    assert not canary.exists()


@pytest.mark.parametrize("tokenizer", ["pickle", "zip"])
def test_a_pickled_tokenizer_is_refused_and_not_run(tmp_path, tokenizer):
    import torch

    canary, source, folder = tmp_path / "canary", write_tars(tmp_path / "images", (3,)), tmp_path / "tokenizer"
    folder.mkdir()
    if tokenizer == "pickle":
        (folder / "encoder.pkl").write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save(Canary(canary), folder / "encoder.pkl")
    code, output = beit("tokenizer", "convert", folder / "encoder.pkl", tmp_path / "converted")
    assert code == 2 and "encoder.pkl" in output and "Traceback" not in output
    code, output = beit("tokenize", source, tmp_path / "store", "--tokenizer", folder)
    assert code == 2 and "Traceback" not in output
    assert not canary.exists() and not (tmp_path / "store").exists() and not (tmp_path / "converted").exists()


def member(name, kind=tarfile.REGTYPE, link="", data=b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def huge_member():
    info = tarfile.TarInfo("huge.jpg")
    info.size = 10 << 30
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


IMAGE = encoded_image(0)
HOSTILE = {
    "parent": (member("../escaped.jpg", data=IMAGE), "leaves its folder"),
    "nested parent": (member("a/../../escaped.jpg", data=IMAGE), "leaves its folder"),
    "absolute": (member("/tmp/escaped.jpg", data=IMAGE), None),
    "symlink": (member("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), None),
    "hard link": (member("link.jpg", tarfile.LNKTYPE, "good.jpg"), None),
    "device": (member("device.jpg", tarfile.CHRTYPE), None),
    "named pipe": (member("fifo.jpg", tarfile.FIFOTYPE), None),
    "huge": (huge_member(), "truncated"),
    "sparse": (member("sparse.jpg", tarfile.GNUTYPE_SPARSE, data=IMAGE), "sparse"),
    "twice": (member("good.jpg", data=IMAGE), "twice"),
    "command": (member("pipe:touch canary.jpg", data=IMAGE), None),
    "control characters": (member("a\x1b[2J.jpg", data=IMAGE), "control characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_or_its_tricks_are_passed_over(tmp_path, monkeypatch, name):
    hostile, message = HOSTILE[name]
    (tmp_path / "images").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tar = tmp_path / "images/a.tar"
    tar.write_bytes(member("good.jpg", data=IMAGE) + hostile + member("last.jpg", data=IMAGE) + bytes(1024))
    if message is None:
        summary = tokenize(tmp_path / "images", tmp_path / "store")
        assert summary.num_samples == (3 if hostile[156:157] == tarfile.REGTYPE else 2)
        assert verify_store(tmp_path / "store").problems == []
    else:
        with pytest.raises(InputError, match=message) as caught:
            tokenize(tmp_path / "images", tmp_path / "store")
        assert "a.tar" in str(caught.value)
        assert not list(tmp_path.glob("store/tokens/*"))
    allowed = {"images", "elsewhere", "store"}
    assert {path.name for path in tmp_path.iterdir()} <= allowed and not list((tmp_path / "elsewhere").iterdir())
    assert not os.path.exists("/tmp/escaped.jpg")


@pytest.mark.parametrize("source", ["pipe:touch canary", "pipe:touch canary.tar", "file:///nowhere::pipe:touch canary"])
def test_a_source_that_would_run_a_command_is_no_source(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        tokenize(source, tmp_path / "store")
    assert not list(tmp_path.iterdir())
