import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.shards.tables import encode_index, encode_samples
from beit.common.shards.token_store import TokenStore
from beit.common.store import open_store
from beit.common.views import VIEW_DTYPE
from beit.tests.tiny_store import encoded_image, tokenize, write_folder, write_tars


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tokenize(write_tars(folder / "images", (5, 7)), folder / "store")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage; times are kept, as a careful user's copy does."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_store_is_a_sized_iterable_with_random_access(made):
    store = open_store(made / "store")
    keys = [f"k{number:03d}" for number in range(12)]
    assert len(store) == 12
    assert [sample["key"] for sample in store] == keys
    assert store[7]["key"] == store[-5]["key"] == "k007"
    assert store[11]["label"] == 11 % 3
    with pytest.raises(TypeError, match="whole number"):
        store[0:1]
    with pytest.raises(IndexError):
        store[12]
    with pytest.raises(IndexError):
        store[-13]


def test_a_sample_has_image_tokens_and_views(made):
    sample = open_store(made / "store")[6]
    assert np.array_equal(sample["image"], decode_image(encoded_image(6)))
    assert sample["token_ids"].shape == (3, 4, 4) and sample["token_ids"].dtype == np.uint16
    assert sample["views"].shape == (3,) and sample["views"].dtype == VIEW_DTYPE


def test_one_view_is_read_as_all_are(made):
    store = open_store(made / "store")
    for shard_id, row in [(0, 0), (0, 4), (1, 6)]:
        token_ids, views = store.read_token_ids(shard_id, row), store.read_views(shard_id, row)
        for k in range(3):
            record = store.read_record(shard_id, row, k)
            assert np.array_equal(record.token_ids, token_ids[k])
            assert record.view == views[k]
            assert record.key == store.samples(shard_id).key[row]
            assert record.image_bytes == encoded_image(5 * shard_id + row)


def test_only_the_bytes_of_the_view_are_read(made, monkeypatch):
    store, lengths = open_store(made / "store"), []
    store.read_record(0, 0, 0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: lengths.append(args[1]) or pread(*args))
    store.read_record(0, 1, 2)
    assert sorted(lengths)[:2] == [4 * 4 * 2, VIEW_DTYPE.itemsize]


def test_sample_tables_are_read_on_demand(made):
    store = open_store(made / "store")
    assert not store._tables
    store.read_record(1, 0, 0)
    assert list(store._tables) == [1]


def test_a_pickled_store_works_and_is_small(made):
    store = open_store(made / "store")
    store[0]
    data = pickle.dumps(store)
    assert len(data) < 5000
    copy = pickle.loads(data)
    assert copy.index_sha256 == store.index_sha256
    assert np.array_equal(copy[3]["token_ids"], store[3]["token_ids"])


def test_a_fork_and_its_parent_read_at_their_own_places(made):
    store = open_store(made / "store")
    expected = [store.read_record(0, row, 0).image_bytes for row in range(5)]
    child = os.fork()
    if child == 0:
        same = [store.read_record(0, row, 0).image_bytes for row in range(5)] == expected
        os._exit(0 if same else 1)
    again = [store.read_record(0, row, 0).image_bytes for row in reversed(range(5))]
    assert os.waitpid(child, 0)[1] == 0
    assert again == expected[::-1]


def test_store_and_images_may_move_together(folder):
    assert open_store(folder / "store")[0]["key"] == "k000"


def test_a_moved_store_keeps_its_identity(made, folder):
    assert open_store(made / "store").index_sha256 == open_store(folder / "store").index_sha256


def test_touched_image_tars_are_accepted_after_a_look_at_their_headers(folder):
    os.utime(folder / "images/part-0.tar", ns=(5, 5))
    assert len(open_store(folder / "store")) == 12


def test_an_edited_image_is_refused_where_no_view_has_a_checksum(tmp_path):
    tokenize(write_tars(tmp_path / "images", (5, 7)), tmp_path / "store", views=0)
    tar = tmp_path / "images/part-0.tar"
    os.utime(tar, ns=(5, 5))
    assert len(open_store(tmp_path / "store")) == 12
    data = bytearray(tar.read_bytes())
    data[data.index(b"k001.jpg") + 512 + 300] ^= 1
    tar.write_bytes(data)
    with pytest.raises(InputError, match=r"part-0.tar changed after it was tokenised \(other bytes, same size\)"):
        open_store(tmp_path / "store")


def test_a_repacked_image_tar_is_refused(folder):
    tar = folder / "images/part-0.tar"
    data = bytearray(tar.read_bytes())
    header = data.index(b"k001.jpg")
    data[header : header + 8] = b"k901.jpg"
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = f"{sum(data[header : header + 512]):06o}\0 ".encode()  # a valid tar again
    tar.write_bytes(data)
    with pytest.raises(InputError, match=r"part-0.tar changed after it was tokenised \(other members"):
        open_store(folder / "store")


def test_an_image_tar_of_another_size_is_refused(folder):
    with (folder / "images/part-1.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(InputError, match=r"part-1.tar changed .*bytes then"):
        open_store(folder / "store")


def test_missing_images_are_refused_unless_the_check_is_left_out(folder):
    shutil.rmtree(folder / "images")
    with pytest.raises(InputError, match="part-0.tar"):
        open_store(folder / "store")
    store = open_store(folder / "store", check_images=False)
    assert store.read_token_ids(0, 0).shape == (3, 4, 4)
    with pytest.raises(InputError, match="part-0.tar"):
        store[0]


def test_a_tar_cut_while_in_use_is_an_error_not_a_short_image(folder):
    store = open_store(folder / "store")
    os.truncate(folder / "images/part-1.tar", 2000)
    with pytest.raises(InputError, match="part-1.tar ends before byte"):
        store[11]


def test_a_token_outside_the_vocabulary_is_a_bad_sample(folder):
    store = open_store(folder / "store")
    with (folder / "store/tokens/000000-part-0.tar").open("r+b") as file:
        file.seek(int(store.samples(0).tok_off[2]))
        file.write(b"\xff\xff")
    with pytest.raises(BadSample, match="token id 65535, the vocabulary has 32"):
        store.read_record(0, 2, 0)
    assert store.read_record(0, 2, 1).token_ids is not None


def flip(path, offset):
    """Flip the lowest bit of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("part", ["tok_off", "view_off"])
def test_one_bit_of_a_token_or_of_a_view_stops_the_reading_where_it_is_used(folder, part):
    store = open_store(folder / "store")
    table, tar = store.samples(1), folder / "store/tokens/000001-part-1.tar"
    length = {"tok_off": 4 * 4 * 2, "view_off": VIEW_DTYPE.itemsize}[part]
    flip(tar, int(getattr(table, part)[3]) + length)  # of view 1
    message = r"tokens/000001-part-1.tar is damaged: its sha256 is not .* \(noticed at 'k008'\); restore it"
    with pytest.raises(InputError, match=message):
        store.read_record(1, 3, 1)
    with pytest.raises(InputError, match=message):
        store[8]
    assert store.read_record(1, 3, 0).token_ids is not None
    assert store.read_record(1, 2, 1).view is not None


def without_sums(store):
    """Make a store what earlier versions wrote: sample tables without checksums."""
    rows = []
    for shard in open_store(store).shards:
        path = store / f"tokens/{shard.stem}.samples.parquet"
        path.write_bytes(encode_samples(pq.read_table(path).to_pylist()))
        rows.append(replace(shard, samples_sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    (store / "index.parquet").write_bytes(encode_index(rows))
    return store


def test_a_token_tar_without_checksums_of_its_own_is_hashed_once_when_its_shard_is_in_use(folder, monkeypatch):
    store = open_store(without_sums(folder / "store"))
    hashed = []
    hash_tar = store._token_sha256
    monkeypatch.setattr(store, "_token_sha256", lambda shard_id: hashed.append(shard_id) or hash_tar(shard_id))
    flip(folder / "store/tokens/000001-part-1.tar", int(store.samples(1).tok_off[3]))
    store.expect_shards([0, 1])
    for row in range(5):
        store.read_record(0, row, 0)
    assert hashed == [0]
    with pytest.raises(InputError, match=r"tokens/000001-part-1.tar is damaged"):
        store.read_record(1, 0, 0)


def test_checksums_that_do_not_fit_are_refused(folder):
    path = folder / "store/tokens/000000-part-0.samples.parquet"
    rows = pq.read_table(path).to_pylist()
    for sums in (np.zeros((2, 2), np.uint32), np.zeros((3, 2), np.uint32)[:, :1]):
        path.write_bytes(encode_samples([row | {"token_sums": sums} for row in rows]))
        row = replace(
            open_store(folder / "store").shards[0], samples_sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        with pytest.raises(InputError, match=r"samples.parquet"):
            TokenStore(str(folder / "store"), open_store(folder / "store").info, [row]).samples(0)


def test_a_sample_table_that_is_not_the_indexed_one_is_refused(folder):
    tokens = folder / "store/tokens"
    shutil.copy(tokens / "000000-part-0.samples.parquet", tokens / "000001-part-1.samples.parquet")
    with pytest.raises(InputError, match=r"000001-part-1.samples.parquet is not the file"):
        open_store(folder / "store").samples(1)


def test_an_unfinished_store_is_refused_with_the_way_out(folder):
    (folder / "store/index.parquet").unlink()
    with pytest.raises(InputError, match="unfinished.*run beit tokenize again"):
        open_store(folder / "store")


def test_a_folder_without_store_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a token store"):
        open_store(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2, this beit reads version 1"),
        ({"format": "other"}, "is not a beit-token-store file"),
        ({"colour": "red"}, "colour"),
        ({"views": "many"}, "views"),
    ],
)
def test_a_store_json_of_another_kind_is_refused(folder, change, message):
    path = folder / "store/store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_store(folder / "store")


def test_broken_files_are_refused(folder):
    for name, content in [("store.json", b"{"), ("index.parquet", b"PAR1")]:
        path = folder / "store" / name
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            open_store(folder / "store")
        path.write_bytes(before)


def test_held_out_samples_are_the_same_everywhere(made, tmp_path):
    """60 images, minimum 64, so 20 %: exactly 12."""
    tokenize(write_folder(tmp_path / "images", 60), tmp_path / "store", shard_size=16)
    store = open_store(tmp_path / "store")
    held = [store.samples(i).held_out(store.info.held_out.threshold) for i in range(len(store.shards))]
    assert sum(int(mask.sum()) for mask in held) == 12
    assert [int(mask.sum()) for mask in held] == [row.num_held_out for row in store.shards]


def test_a_store_on_a_remote_file_system(tmp_path):
    """Images packed into the store; everything is then read by ranges."""
    tokenize(write_folder(tmp_path / "images", 6), tmp_path / "store")
    local = open_store(tmp_path / "store")
    remote_files = fsspec.filesystem("memory")
    remote_files.put(str(tmp_path / "store"), "/bucket", recursive=True)
    try:
        remote = open_store("memory://bucket/store" if remote_files.exists("/bucket/store") else "memory://bucket")
        assert remote.index_sha256 == local.index_sha256
        for mine, theirs in zip(local, remote, strict=True):
            assert mine["key"] == theirs["key"]
            assert np.array_equal(mine["token_ids"], theirs["token_ids"])
            assert np.array_equal(mine["image"], theirs["image"])
    finally:
        remote_files.rm("/bucket", recursive=True)
