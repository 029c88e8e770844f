import json
import os
import signal
import threading
from multiprocessing import get_context

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError, ResumableStop
from beit.common.sources.config import SourceConfig
from beit.common.sources.loose_files import FilesReader
from beit.common.storage.place import place_of
from beit.common.store import open_store
from beit.common.views import AugmentConfig
from beit.tests.tiny_store import (
    BlockSums,
    encoded_image,
    tiny_config,
    tokenize,
    tree_bytes,
    write_folder,
    write_tars,
)
from beit.tokenize.run import tokenize_with_ranks
from beit.tokenize.shards.index import finish_store
from beit.tokenize.store.documents import StoreFiles, stat_if_there
from beit.tokenize.store.leases import Leases


def test_a_rerun_does_nothing(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    tokenize(source, tmp_path / "store")
    before, tokenizer = tree_bytes(tmp_path / "store"), BlockSums()
    summary = tokenize(source, tmp_path / "store", tokenizer=tokenizer)
    assert summary.num_shards_kept == 2 and not tokenizer.batch_shapes
    assert tree_bytes(tmp_path / "store") == before


def test_other_settings_for_a_store_that_failed_before_its_first_shard_say_that_little_is_lost(tmp_path):
    source, store = write_folder(tmp_path / "images", 6), tmp_path / "store"
    with pytest.raises(InputError, match="bad_sample_budget"):
        tokenize(source, store, source=SourceConfig(max_megapixels=0.0001), strict=True)
    before = tree_bytes(store)
    with pytest.raises(InputError, match="differs from that of store.*no shard of it has tokens yet, so removing it"):
        tokenize(source, store, seed=1)
    assert tree_bytes(store) == before
    tokenize(source, tmp_path / "other")
    with pytest.raises(InputError, match=r"seed \(1\) differs .*another folder$"):
        tokenize(source, tmp_path / "other", seed=1)


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokens/000001-files.tar", flip_bit),
        ("tokens/000001-files.tar", cut),
        ("tokens/000001-files.tar", remove),
        ("tokens/000001-files.samples.parquet", flip_bit),
        ("tokens/000001-files.samples.parquet", remove),
        ("tokens/000001-files.manifest.json", cut),
        ("tokens/000001-files.manifest.json", remove),
        ("images/000001-files.manifest.json", cut),
        ("images/000001-files.manifest.json", remove),
        ("index.parquet", cut),
        ("index.parquet", remove),
    ],
)
def test_a_rerun_mends_what_was_damaged(tmp_path, name, damage):
    source = write_folder(tmp_path / "images", 10)
    tokenize(source, tmp_path / "store")
    before, tokenizer = tree_bytes(tmp_path / "store"), BlockSums()
    damage(tmp_path / "store" / name)
    tokenize(source, tmp_path / "store", tokenizer=tokenizer)
    assert tree_bytes(tmp_path / "store") == before
    if name.startswith("tokens"):
        assert len(tokenizer.batch_shapes) == 3  # one shard of three


@pytest.mark.parametrize("damage", [cut, remove])
def test_a_rerun_packs_a_lost_image_tar_again(tmp_path, damage):
    source = write_folder(tmp_path / "images", 10)
    tokenize(source, tmp_path / "store")
    before = tree_bytes(tmp_path / "store")
    damage(tmp_path / "store/images/000000-files.tar")
    tokenize(source, tmp_path / "store")
    assert tree_bytes(tmp_path / "store") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 4}, r"views \(4\) differs .* 3;"),
        ({"seed": 1}, r"seed \(1\) differs .* 0;"),
        ({"img_size": 32}, r"grid_size \(8\) differs .* 4;"),
        ({"augment": AugmentConfig(flip=0.0)}, r"augment.flip \(0.0\) differs .* 0.5;"),
        ({"micro_batch_size": 8}, r"micro_batch_size \(8\) differs .* 4: .*allow_mixed=true"),
        ({"threads": 2}, r"threads \(2\) differs .* 1:"),
    ],
)
def test_other_settings_are_refused_with_both_values(tmp_path, change, message):
    source = write_tars(tmp_path / "images", (3,))
    tokenize(source, tmp_path / "store")
    before = tree_bytes(tmp_path / "store")
    with pytest.raises(InputError, match=message):
        tokenize(source, tmp_path / "store", **change)
    assert tree_bytes(tmp_path / "store") == before


def test_another_tokenizer_is_refused(tmp_path):
    source = write_tars(tmp_path / "images", (3,))
    tokenize(source, tmp_path / "store")
    other = BlockSums()
    other.fingerprint = "0" * 64
    with pytest.raises(InputError, match=r"begun with tokenizer \S+ \(fingerprint f{12}\), not \S+ \(.*0{12}\)"):
        tokenize(source, tmp_path / "store", tokenizer=other)


def test_a_changed_source_is_refused(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    tokenize(source, tmp_path / "store")
    (source / "new.png").write_bytes(encoded_image(99, "png"))
    with pytest.raises(InputError, match=r"source.num_images \(7\) differs .* 6|the source changed"):
        tokenize(source, tmp_path / "store")


@pytest.mark.parametrize("write", [write_folder, write_tars])
def test_an_edited_source_of_equal_sizes_is_refused_unless_taken_as_it_is(tmp_path, write):
    source = write(tmp_path / "images")
    tokenize(source, tmp_path / "store")
    before = tree_bytes(tmp_path / "store")
    file = min(path for path in source.rglob("*") if path.is_file())
    data = file.read_bytes()
    file.write_bytes(data[:-4] + bytes(4))
    with pytest.raises(InputError, match="other times than when store .*set allow_source_change=true, or name another"):
        tokenize(source, tmp_path / "store")
    assert tree_bytes(tmp_path / "store") == before
    file.write_bytes(data)  # a copy without times
    tokenize(source, tmp_path / "store", allow_source_change=True)
    tokenize(source, tmp_path / "store")


def test_a_store_of_before_continues(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    tokenize(source, tmp_path / "store")
    document = tmp_path / "store/store.json"
    content = json.loads(document.read_text())
    assert content["source"].pop("stamp")
    document.write_text(json.dumps(content))
    os.utime(min(source.rglob("*.*")), ns=(1, 1))
    assert tokenize(source, tmp_path / "store").is_complete


def test_another_execution_continues_if_allowed_and_is_recorded(tmp_path):
    source = write_tars(tmp_path / "images", (3, 3))
    tokenize(source, tmp_path / "store")
    remove(tmp_path / "store/tokens/000001-part-1.manifest.json")
    tokenize(source, tmp_path / "store", micro_batch_size=5, allow_mixed=True)
    info = open_store(tmp_path / "store").info
    assert info.mixed_execution and info.execution.micro_batch_size == 4


def test_workers_and_budget_may_change(tmp_path):
    source = write_tars(tmp_path / "images", (3,))
    tokenize(source, tmp_path / "store")
    assert tokenize(source, tmp_path / "store", workers=5, bad_sample_budget=0.1).num_shards_kept == 1


def test_a_source_tar_that_changes_meanwhile_is_not_blessed(tmp_path):
    source = write_tars(tmp_path / "images", (3,))

    class Meddler(BlockSums):
        def encode(self, images):
            os.utime(source / "part-0.tar", ns=(1, 1))
            return super().encode(images)

    with pytest.raises(InputError, match="part-0.tar changed while it was tokenised"):
        tokenize(source, tmp_path / "store", tokenizer=Meddler())
    assert not list((tmp_path / "store/tokens").glob("*"))


def test_a_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is not empty and not a token store"):
        tokenize(write_tars(tmp_path / "images", (2,)), tmp_path / "store")


def test_bad_input_leaves_no_folder(tmp_path):
    with pytest.raises(InputError):
        tokenize(tmp_path / "nothing here", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_resume_never_refuses_an_existing_store(tmp_path):
    source = write_tars(tmp_path / "images", (2,))
    tokenize(source, tmp_path / "store")
    with pytest.raises(InputError, match="--resume never"):
        tokenize_with_ranks(tiny_config(), str(source), tmp_path / "store", resume="never")


def test_a_second_run_on_one_store_joins_in(tmp_path):
    source, store = write_tars(tmp_path / "images", (4, 4, 4)), tmp_path / "store"
    second = get_context("fork").Process(target=tokenize, args=(source, store))

    class JoinedAtTheStart(BlockSums):
        def encode(self, images):
            if not self.batch_shapes:
                second.start()
                while len(list((store / "tokens").glob("*.manifest.json"))) < 2:  # it does the others meanwhile
                    assert second.is_alive()
            return super().encode(images)

    tokenizer = JoinedAtTheStart()
    assert tokenize(source, store, tokenizer=tokenizer).is_complete
    second.join()
    assert second.exitcode == 0
    assert len(tokenizer.batch_shapes) == 3  # one shard of three
    tokenize(source, tmp_path / "clean")
    assert tree_bytes(store) == tree_bytes(tmp_path / "clean")


def test_a_signal_stops_between_images_and_the_rerun_completes(tmp_path):
    source = write_tars(tmp_path / "images")

    class Signalled(BlockSums):
        def encode(self, images):
            if len(self.batch_shapes) == 6:  # in the second shard
                os.kill(os.getpid(), signal.SIGTERM)
            return super().encode(images)

    with pytest.raises(ResumableStop, match="SIGTERM"):
        tokenize(source, tmp_path / "store", tokenizer=Signalled())
    assert not list((tmp_path / "store/tokens").glob("*tmp*"))
    assert tokenize(source, tmp_path / "store").num_shards_kept == 1


def test_a_full_disk_names_the_file_and_leaves_finished_shards(tmp_path):
    source = write_tars(tmp_path / "images", (3, 30))
    process = get_context("fork").Process(target=tokenize_with_file_limit, args=(source, tmp_path / "store"))
    process.start()
    process.join()
    assert process.exitcode == 27  # EFBIG, raised with the name of the file
    names = {path.name for path in (tmp_path / "store/tokens").iterdir()}
    assert names == {f"000000-part-0.{suffix}" for suffix in ("tar", "samples.parquet", "manifest.json")}
    assert tokenize(source, tmp_path / "store").num_shards_kept == 1


def tokenize_with_file_limit(source, store, full_at="000001-part-1.tar"):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        tokenize(source, store)
    except OSError as error:
        os._exit(error.errno if full_at in str(error.filename) else 1)


def test_a_full_disk_under_the_spool_names_its_file_and_leaves_nothing_of_it(tmp_path):
    images = [{"bytes": encoded_image(number, "png", (120, 120)), "path": f"{number}.png"} for number in range(9)]
    source, store = tmp_path / "images.parquet", tmp_path / "store"
    pq.write_table(pa.table({"image": images}), source)
    process = get_context("fork").Process(target=tokenize_with_file_limit, args=(source, store, "store/.spool/"))
    process.start()
    process.join()
    assert process.exitcode == 27  # EFBIG, raised with the name of the file
    assert [path.name for path in store.rglob("*") if path.is_file()] == ["store.json"]
    tokenize(source, store)
    assert len(open_store(store)) == 9


class KilledAt(BlockSums):
    """Ends its process without any notice at the n-th batch."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def encode(self, images):
        if len(self.batch_shapes) == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(images)


def tokenize_until_killed(source, store, batch):
    tokenize(source, store, tokenizer=KilledAt(batch))


@pytest.mark.parametrize("batch", [0, 4, 6])
def test_a_killed_run_is_completed_with_equal_bytes(tmp_path, batch):
    source = write_folder(tmp_path / "images", 12)
    tokenize(source, tmp_path / "clean")
    process = get_context("fork").Process(target=tokenize_until_killed, args=(source, tmp_path / "store", batch))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list((tmp_path / "store/tokens").glob("*.tmp.*"))
    tokenizer = BlockSums()
    tokenize(source, tmp_path / "store", tokenizer=tokenizer)
    assert tree_bytes(tmp_path / "store") == tree_bytes(tmp_path / "clean")
    assert len(tokenizer.batch_shapes) == 9 - batch // 3 * 3  # finished shards were kept


def replace_and_die(source, store, count, before):
    calls = 0
    replace = os.replace

    def counting(*args):
        nonlocal calls
        calls += 1
        if calls == count and before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counting
    tokenize(source, store)


@pytest.mark.fault
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("count", range(1, 14))
def test_killed_around_every_rename(tmp_path, count, before):
    source = write_folder(tmp_path / "images", 7)
    tokenize(source, tmp_path / "clean")
    process = get_context("fork").Process(target=replace_and_die, args=(source, tmp_path / "store", count, before))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for manifest in (tmp_path / "store").glob("*/*.manifest.json"):
        assert manifest.with_name(manifest.name.replace(".manifest.json", ".tar")).exists()
    tokenize(source, tmp_path / "store")
    assert tree_bytes(tmp_path / "store") == tree_bytes(tmp_path / "clean")


def test_a_signal_stops_packing_too(tmp_path, monkeypatch):
    source = write_folder(tmp_path / "images", 40)
    read, calls = FilesReader.read, []

    def signalled(self, ref):
        is_packing = threading.current_thread() is not threading.main_thread()  # which before looks at a few
        calls.extend([ref.path] * is_packing)
        if is_packing and len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, ref)

    monkeypatch.setattr(FilesReader, "read", signalled)
    with pytest.raises(ResumableStop, match="SIGTERM"):
        tokenize(source, tmp_path / "store", workers=1)
    monkeypatch.undo()
    assert len(list((tmp_path / "store/images").glob("*.tar"))) == 1
    assert tokenize(source, tmp_path / "store").is_complete


def test_another_pillow_is_refused_by_name(tmp_path, monkeypatch):
    source = write_tars(tmp_path / "images", (3,))
    tokenize(source, tmp_path / "store")
    monkeypatch.setattr("beit.tokenize.setup.compute_canary", lambda: "0" * 64)
    with pytest.raises(InputError, match="another version of Pillow"):
        tokenize(source, tmp_path / "store")


def test_a_rank_takes_the_index_that_another_wrote_while_it_ran(tmp_path, monkeypatch):
    store = tmp_path / "store"
    tokenize(write_tars(tmp_path / "images", bad=("k002",)), store)
    stems, rows = ["000000-part-0", "000001-part-1"], list(open_store(store).shards)

    def read_again(*arguments):
        raise AssertionError("all sample tables are read")

    monkeypatch.setattr("beit.tokenize.shards.index._load_key_hashes", read_again)
    files = StoreFiles(place_of(str(store)), store)
    with Leases(files.place) as leases:
        finished = finish_store(files, stems, leases, budget=0.5, stamp_before=None)
        assert finished.rows == rows and dict(finished.skipped) == {"unsupported": 1}
        with pytest.raises(AssertionError, match="all sample tables"):  # it was there when this process began
            finish_store(files, stems, leases, budget=0.5, stamp_before=stat_if_there(files / "index.parquet"))
        os.utime(store / "tokens/000001-part-1.manifest.json")
        with pytest.raises(AssertionError, match="all sample tables"):  # a shard was written after it
            finish_store(files, stems, leases, budget=0.5, stamp_before=None)
