"""Stores written behind a URL: the bytes of a local store, whatever is packed, damaged or interrupted."""

import os
import signal
from multiprocessing import get_context

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from beit.common.errors import InputError
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.place import place_of
from beit.common.storage.remote_place import forget_stores
from beit.common.store import open_store
from beit.tests.impatience import hurry
from beit.tests.s3_server import serve_s3
from beit.tests.tiny_store import BlockSums, StoppedAt, tokenize, tokenize_trapped, tree_bytes, write_folder, write_tars
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.run import tokenize_with_ranks
from beit.tokenize.store.documents import scratch_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert not list(tmp_path.glob("cache/spool/*"))


@pytest.fixture
def memory():
    """The URL of an empty place for stores; a bucket on a server takes ten times as long."""
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    file_system.pseudo_dirs.clear()
    return "memory://data/stores/one"


@pytest.fixture
def bucket():
    with serve_s3({}) as url:
        yield f"{url}/stores/one"


def objects(url):
    """Every object of a store."""
    store = place_of(url)
    found = [*store.walk(), *store.files()]  # hidden ones, too
    return {name: (store / name).read() for name in sorted({file.path for file in found})}


def make_source(tmp_path, kind):
    if kind == "tars":
        return write_tars(tmp_path / "images", (3, 4)), {"short_side": 32}
    source = write_folder(tmp_path / "images", 7)
    (source / "001.png").write_bytes(b"no image")
    return source, {"folder": {}, "materialised": {"materialize": True}, "no views": {"views": 0}}[kind]


def check_equals_local(tmp_path, kind, url):
    source, changes = make_source(tmp_path, kind)
    local, remote = (tokenize(source, store, **changes) for store in (tmp_path / "local", url))
    assert remote.is_complete and remote.num_samples == local.num_samples and remote.skipped == local.skipped
    assert objects(url) == tree_bytes(tmp_path / "local")
    assert verify_store(url).problems == []
    tokenizer = BlockSums()
    again = tokenize(source, url, tokenizer=tokenizer, **changes)
    assert again.num_shards_kept == 2 and not tokenizer.batch_shapes
    assert objects(url) == tree_bytes(tmp_path / "local")


KINDS = ["folder", "materialised", "tars", "no views"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_behind_a_url_has_the_bytes_of_a_local_one(tmp_path, memory, kind):
    check_equals_local(tmp_path, kind, memory)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_store_in_a_bucket_has_the_bytes_of_a_local_one(tmp_path, bucket, kind):
    check_equals_local(tmp_path, kind, bucket)


def test_remote_tars_are_referenced_by_a_remote_store(tmp_path, memory):
    tars = write_tars(tmp_path / "images", (3, 4))
    fsspec.filesystem("memory").put(str(tars), "/data/images", recursive=True)
    for store in (tmp_path / "local", memory):
        tokenize("memory://data/images", store)
    assert objects(memory) == tree_bytes(tmp_path / "local")
    assert open_store(memory)[5]["key"] == "k005" and verify_store(memory).problems == []


def test_local_tars_are_referenced_where_they_are_and_the_user_is_told(tmp_path, memory, caplog):
    tars = write_tars(tmp_path / "images", (3, 4))
    tokenize(tars, memory)
    assert open_store(memory).info.image_root == os.path.realpath(tars)
    assert f"the images stay in {tars}, and {memory} refers to them there" in caplog.text
    assert verify_store(memory).problems == []


def test_the_images_of_a_remote_store_keep_the_names_of_their_classes(tmp_path, memory):
    for name in ("rose", "tulip"):
        write_folder(tmp_path / "images" / name, 2)
    tokenize(tmp_path / "images", memory)
    tokenize(f"{memory}/images", tmp_path / "second", views=1)
    assert open_store(tmp_path / "second").info.class_names == ("rose", "tulip")


def test_a_file_url_is_a_folder(tmp_path):
    source = write_folder(tmp_path / "images", 3)
    tokenize(source, f"file://{tmp_path}/store")
    assert open_store(tmp_path / "store").info.views == 3


def flip_bit(data):
    return data[:700] + bytes([data[700] ^ 4]) + data[701:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokens/000001-files.tar", flip_bit),
        ("tokens/000001-files.tar", None),
        ("tokens/000001-files.samples.parquet", flip_bit),
        ("tokens/000001-files.manifest.json", lambda data: data[:99]),
        ("tokens/000001-files.manifest.json", None),
        ("images/000001-files.tar", lambda data: data[:2000]),
        ("images/000001-files.manifest.json", None),
        ("index.parquet", None),
    ],
)
def test_a_rerun_mends_what_was_damaged(tmp_path, memory, name, damage):
    source, file_system = write_folder(tmp_path / "images", 7), fsspec.filesystem("memory")
    tokenize(source, memory)
    before, tokenizer = objects(memory), BlockSums()
    path = f"/data/stores/one/{name}"
    data = file_system.cat_file(path)
    file_system.rm_file(path)
    if damage:
        file_system.pipe_file(path, damage(data))
    tokenize(source, memory, tokenizer=tokenizer)
    assert objects(memory) == before
    if name.startswith("tokens"):
        assert len(tokenizer.batch_shapes) == 3  # one shard of two


def test_a_packed_tar_that_changed_in_place_is_not_tokenised(tmp_path, memory):
    source, file_system = write_folder(tmp_path / "images", 7), fsspec.filesystem("memory")
    tokenize(source, memory)
    tar = "/data/stores/one/images/000001-files.tar"
    file_system.pipe_file(tar, flip_bit(file_system.cat_file(tar)))
    file_system.rm_file("/data/stores/one/tokens/000001-files.manifest.json")
    with pytest.raises(InputError, match=r"000001-files\.tar is damaged: .* remove it, and run beit tokenize again"):
        tokenize(source, memory)
    file_system.rm_file(tar)
    tokenize(source, memory)
    assert verify_store(memory).problems == []


def test_a_stopped_run_is_continued_by_ranks_of_another_number(tmp_path, memory):
    source = write_folder(tmp_path / "images", 12)
    tokenize(source, tmp_path / "local")
    with pytest.raises(Exception, match="stopped"):
        tokenize(source, memory, tokenizer=StoppedAt(4))
    left = {name for name in objects(memory) if name.startswith(("tokens", "."))}
    assert left == {f"tokens/000000-files.{suffix}" for suffix in ("tar", "samples.parquet", "manifest.json")}
    tokenizer = BlockSums()
    assert tokenize(source, memory, rank=1, world_size=3, tokenizer=tokenizer).is_complete
    assert len(tokenizer.batch_shapes) == 6
    assert objects(memory) == tree_bytes(tmp_path / "local")


def test_other_settings_and_other_content_are_refused(tmp_path, memory):
    source = write_folder(tmp_path / "images", 4)
    tokenize(source, memory)
    before = objects(memory)
    with pytest.raises(InputError, match=r"seed \(1\) differs from that of store \(memory://data/stores/one\), 0"):
        tokenize(source, memory, seed=1)
    with pytest.raises(InputError, match="--resume never"):
        tokenize_with_ranks(None, str(source), memory, resume="never")
    with pytest.raises(InputError, match="memory://data is not empty and not a token store|is not empty"):
        tokenize(source, "memory://data")
    assert objects("memory://data/stores/one") == before


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("https://host/store", "is a web address, which cannot be written"),
        ("s3:/bucket/store", "looks like a URL with one slash"),
        ("nothing://bucket/store", "check the scheme"),
        ("memory://", "must be a plain URL"),
        ("s3://bucket/store?versionId=1", "must be a plain URL"),
        ("simplecache::memory://bucket/store", "must be a plain URL"),
    ],
)
def test_a_url_that_cannot_be_written_is_one_line(tmp_path, store, message):
    with pytest.raises(InputError, match=message):
        tokenize(write_folder(tmp_path / "images", 3), store)


def test_a_bucket_that_is_not_there_and_a_server_that_is_not_there_are_one_line(tmp_path, bucket, monkeypatch, caplog):
    source = write_folder(tmp_path / "images", 3)
    with pytest.raises(InputError, match="s3://other/store.* names a bucket that does not exist"):
        tokenize(source, "s3://other/store")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    hurry(monkeypatch, retries=0)  # the first contact is the only one
    forget_stores()
    with pytest.raises(InputError, match="cannot be reached .*; check address and network$"):
        tokenize(source, bucket)


@pytest.mark.parametrize(("method", "doing"), [("pipe_file", "written"), ("rm_file", "written"), ("ls", "read")])
def test_what_is_not_allowed_is_told_before_the_work(tmp_path, memory, monkeypatch, method, doing):
    def refuse(*arguments, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, method, refuse)
    with pytest.raises(InputError, match=rf"may not be {doing} \(Access Denied\); check the credentials"):
        tokenize(tmp_path / "nothing", memory)


def test_a_storage_without_exclusive_creation_is_told_of_and_right(tmp_path, memory, monkeypatch, caplog):
    careless = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *arguments, mode="": careless(*arguments))
    source = write_folder(tmp_path / "images", 7)
    tokenize(source, memory)
    assert "work may be done twice" in caplog.text
    tokenize(source, tmp_path / "local")
    assert objects(memory) == tree_bytes(tmp_path / "local")


def run_together(source, store, traps, *, world_size=1):
    """Tokenise in one process for each trap, by rank, all started at once, and return their exit codes."""
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "BEIT_CACHE")
    variables = {name: os.environ[name] for name in names}
    context = get_context("forkserver")  # a fork of this process would inherit the threads of obstore
    context.set_forkserver_preload(["beit.tests.tiny_store"])
    processes = [
        context.Process(target=tokenize_trapped, args=(variables, trap, source, store, (rank, world_size)))
        for rank, trap in traps.items()
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.fault
def test_kills_lose_and_repeat_nothing(tmp_path, bucket):
    source = write_folder(tmp_path / "images", 12)
    tokenize(source, tmp_path / "local")
    expected = tree_bytes(tmp_path / "local")
    for number, trap in enumerate(("rename:1", "renamed:1", "renamed:4", "renamed:8", "rename:10", "sample:7")):
        store = f"{bucket}/{number}"
        assert run_together(source, store, {0: trap}) == [-signal.SIGKILL]
        present = objects(store)
        for name in present:
            if name.endswith(".manifest.json"):
                assert present[name] == expected[name]
                tar = name.replace(".manifest.json", ".tar")
                assert present[tar] == expected[tar]
        finished = sum(name.startswith("tokens/") and name.endswith(".manifest.json") for name in present)
        tokenizer = BlockSums()
        summary = tokenize(source, store, tokenizer=tokenizer)
        assert summary.num_shards_kept == finished and len(tokenizer.batch_shapes) == 3 * (3 - finished)
        assert objects(store) == expected


@pytest.mark.fault
def test_ranks_of_one_bucket_share_the_work_of_a_killed_one(tmp_path, bucket):
    source = write_folder(tmp_path / "images", 20)
    tokenize(source, tmp_path / "local")
    # Alone at first, so that the others cannot do its shards before it gets there.
    assert run_together(source, bucket, {1: "sample:6"}, world_size=3) == [-signal.SIGKILL]
    assert run_together(source, bucket, {0: "", 2: ""}, world_size=3) == [0, 0]
    assert objects(bucket) == tree_bytes(tmp_path / "local")
    assert tokenize(source, bucket).num_shards_kept == 5


def test_what_killed_processes_left_on_the_disk_is_removed_and_the_work_of_living_ones_is_not(cache):
    spool = cache / "spool"
    for name in ("dead", "alive"):
        (spool / name).mkdir(parents=True)
        (spool / name / "half.tar").write_bytes(b"x")
        (spool / f"{name}.lock").touch()
    with exclusive_lock(spool / "alive.lock"):
        with scratch_folder() as folder:
            assert folder.is_dir() and sorted(path.name for path in spool.glob("*.lock"))[0] == "alive.lock"
            assert (spool / "alive/half.tar").exists() and not (spool / "dead").exists()
        assert sorted(path.name for path in spool.iterdir()) == ["alive", "alive.lock"]
    with scratch_folder():
        assert not (spool / "alive").exists()
