import io
import json
import os
import signal
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from beit.common.errors import InputError, ResumableStop
from beit.common.images import decode_image
from beit.common.rng import CounterRng
from beit.common.store import open_store
from beit.common.views import VIEW_DTYPE, AugmentConfig, compute_canary, crop_crc, draw_view, mean_luma, render_view
from beit.tests.tiny_store import (
    BlockSums,
    encoded_image,
    tiny_config,
    tokenize,
    tree_bytes,
    write_folder,
    write_members,
    write_tars,
)
from beit.tokenize.run import run_tokenize, tokenize_with_ranks

CANARY = compute_canary()


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    """Durability cannot be seen here, and costs most of the time; the canary is the same every time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("beit.tokenize.setup.compute_canary", lambda: CANARY)


def test_tokens_are_those_of_the_stored_views(tmp_path):
    summary = tokenize(write_tars(tmp_path / "images"), tmp_path / "store")
    assert summary.is_complete and summary.num_samples == 12
    store = open_store(tmp_path / "store")
    for sample in store:
        for k, view in enumerate(sample["views"]):
            drawn = draw_view(CounterRng(0, "view", sample["key"], k), *sample["image"].size, AugmentConfig())
            fields = ["left", "top", "w", "h", "flip", "jitter_order", "bright", "contrast", "sat"]
            assert [int(view[name]) for name in fields] == [int(drawn[name]) for name in fields]
            pixels = render_view(sample["image"], view, img_size=32, resample="lanczos")
            assert view["crc_crop"] == crop_crc(sample["image"], view)
            assert np.array_equal(view["luma"], mean_luma(pixels))
            assert np.array_equal(sample["token_ids"][k], BlockSums().encode(pixels[None])[0])


def test_batches_have_one_size_and_never_cross_a_shard(tmp_path):
    tokenizer = BlockSums()
    tokenize(write_tars(tmp_path / "images", (5, 7)), tmp_path / "store", tokenizer=tokenizer)
    assert set(tokenizer.batch_shapes) == {(4, 32, 32, 3)}
    assert len(tokenizer.batch_shapes) == 4 + 6  # 15 and 21 views in batches of 4


@pytest.mark.parametrize("views", [1, 2, 5, 9])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 64])
def test_tokens_do_not_depend_on_how_views_fall_into_batches(tmp_path, views, micro_batch_size):
    source = write_tars(tmp_path / "images", (5,))
    tokenize(source, tmp_path / "store", views=views, micro_batch_size=micro_batch_size, workers=3)
    for sample in open_store(tmp_path / "store"):
        pixels = np.stack(
            [render_view(sample["image"], view, img_size=32, resample="lanczos") for view in sample["views"]]
        )
        assert np.array_equal(sample["token_ids"], BlockSums().encode(pixels))


def test_two_runs_give_equal_bytes(tmp_path):
    source = write_tars(tmp_path / "images")
    tokenize(source, tmp_path / "a", workers=1)
    tokenize(source, tmp_path / "b", workers=4)
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")


def test_ranks_together_write_what_one_process_writes(tmp_path):
    source = write_folder(tmp_path / "images", 10)
    tokenize(source, tmp_path / "one")
    first = tokenize(source, tmp_path / "two", rank=1, world_size=2)
    assert not first.is_complete
    assert not (tmp_path / "two" / "index.parquet").exists()
    assert tokenize(source, tmp_path / "two", rank=0, world_size=2).is_complete
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_more_ranks_than_shards(tmp_path):
    source = write_tars(tmp_path / "images", (3,))
    tokenize(source, tmp_path / "store", rank=2, world_size=4)
    assert tokenize(source, tmp_path / "store", rank=0, world_size=4).is_complete


def test_stock_webdataset_reads_tokens_in_three_lines(tmp_path):
    tokenize(write_tars(tmp_path / "images", (5,)), tmp_path / "store")
    path = str(tmp_path / "store/tokens/000000-part-0.tar")
    samples = list(wds.WebDataset(path, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"k{number:03d}" for number in range(5)]
    assert samples[0]["tokens.npy"].shape == (3, 4, 4) and samples[0]["tokens.npy"].dtype == np.uint16
    assert samples[0]["views.npy"].dtype == VIEW_DTYPE


def test_stock_webdataset_reads_images_and_tokens_as_pairs(tmp_path):
    tokenize(write_folder(tmp_path / "images", 7), tmp_path / "store")
    names = sorted(path.name for path in (tmp_path / "store/tokens").glob("*.tar"))
    images = wds.WebDataset([str(tmp_path / "store/images" / name) for name in names], shardshuffle=False)
    tokens = wds.WebDataset([str(tmp_path / "store/tokens" / name) for name in names], shardshuffle=False)
    pairs = list(zip(images.decode("rgb8"), tokens.decode(), strict=True))
    assert len(pairs) == 7
    assert all(image["__key__"] == token["__key__"] for image, token in pairs)
    assert pairs[0][0]["png"].shape == (40, 48, 3)


def test_no_views_packs_and_indexes_only(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    (source / "bad.png").write_bytes(b"\x89PNG nothing")
    config = tiny_config(views=0, tokenizer="never loaded")
    summary = run_tokenize(config, str(source), tmp_path / "store")
    assert summary.num_samples == 6 and summary.skipped.total() == 1
    assert not list((tmp_path / "store/tokens").glob("*.tar"))
    store = open_store(tmp_path / "store")
    record = store.read_record(0, 0, 0)
    assert record.token_ids is None and record.view is None
    assert decode_image(record.image_bytes).size == (48, 40)
    assert store[0]["token_ids"].shape == (0, 4, 4) and len(store[0]["views"]) == 0


def test_a_rerun_does_nothing(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    tokenize(source, tmp_path / "store")
    before, tokenizer = tree_bytes(tmp_path / "store"), BlockSums()
    summary = tokenize(source, tmp_path / "store", tokenizer=tokenizer)
    assert summary.num_shards_kept == 2 and not tokenizer.batch_shapes
    assert tree_bytes(tmp_path / "store") == before


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
    with pytest.raises(InputError, match=r"tokenizer.fingerprint \(\"000.*\"fff"):
        tokenize(source, tmp_path / "store", tokenizer=other)


def test_a_changed_source_is_refused(tmp_path):
    source = write_folder(tmp_path / "images", 6)
    tokenize(source, tmp_path / "store")
    (source / "new.png").write_bytes(encoded_image(99, "png"))
    with pytest.raises(InputError, match=r"source.num_images \(7\) differs .* 6|the source changed"):
        tokenize(source, tmp_path / "store")


def test_another_execution_continues_if_allowed_and_is_recorded(tmp_path):
    source = write_tars(tmp_path / "images", (3, 3))
    tokenize(source, tmp_path / "store", rank=0, world_size=2)
    tokenize(source, tmp_path / "store", rank=1, world_size=2, micro_batch_size=5, allow_mixed=True)
    info = open_store(tmp_path / "store").info
    assert info.mixed_execution and info.execution.micro_batch_size == 4


def test_workers_and_budget_may_change(tmp_path):
    source = write_tars(tmp_path / "images", (3,))
    tokenize(source, tmp_path / "store")
    assert tokenize(source, tmp_path / "store", workers=5, bad_sample_budget=0.1).num_shards_kept == 1


def test_unusable_images_are_skipped_counted_and_named(tmp_path):
    source = write_tars(tmp_path / "images", bad=("k002", "k007"))
    summary = tokenize(source, tmp_path / "store")
    assert summary.num_samples == 10 and dict(summary.skipped) == {"unsupported": 2}
    manifest = json.loads((tmp_path / "store/tokens/000000-part-0.manifest.json").read_text())
    assert manifest["skipped"] == [{"key": "k002", "reason": "unsupported"}]
    assert "k002" not in {sample["key"] for sample in open_store(tmp_path / "store")}
    assert "2 unsupported" in summary.as_table()


def test_too_many_unusable_images_stop_the_run_and_leave_it_resumable(tmp_path):
    source = write_tars(tmp_path / "images", bad=("k002", "k007"))
    with pytest.raises(InputError, match=r"2 of 12 samples.* bad_sample_budget \(0.1\).*part-0/k002 \(unsupported\)"):
        tokenize(source, tmp_path / "store", bad_sample_budget=0.1)
    assert not (tmp_path / "store/index.parquet").exists()
    assert not list((tmp_path / "store/tokens").glob("*tmp*"))
    assert tokenize(source, tmp_path / "store").num_shards_kept == 1


def test_ranks_share_one_budget(tmp_path):
    source = write_tars(tmp_path / "images", (6, 6), bad=("k002", "k007"))
    tokenize(source, tmp_path / "store", rank=0, world_size=2, bad_sample_budget=0.1)
    with pytest.raises(InputError, match=r"2 of 12 images .* \(0.1\) allows 1"):
        tokenize(source, tmp_path / "store", rank=1, world_size=2, bad_sample_budget=0.1)


def test_strict_stops_at_the_first_unusable_image(tmp_path):
    source = write_tars(tmp_path / "images", bad=("k002",))
    with pytest.raises(InputError, match="k002"):
        tokenize(source, tmp_path / "store", strict=True)


def test_no_usable_image_is_an_error(tmp_path):
    source = write_tars(tmp_path / "images", (1,), bad=("k000",))
    with pytest.raises(InputError, match="no image of the source is usable"):
        tokenize(source, tmp_path / "store", bad_sample_budget=0.99)


@pytest.mark.parametrize("keep_bytes", [-1024, 3000])
def test_a_truncated_source_tar_is_refused_before_any_token_is_written(tmp_path, keep_bytes):
    source = write_tars(tmp_path / "images", (3, 3))
    tar = source / "part-1.tar"
    data = tar.read_bytes()
    end = data.rstrip(b"\0")
    tar.write_bytes(end[:keep_bytes] if keep_bytes > 0 else end + b"\0" * (-len(end) % 512))  # no end marker
    with pytest.raises(InputError, match=r"part-1.tar is truncated"):
        tokenize(source, tmp_path / "store")
    assert not list((tmp_path / "store/tokens").glob("*"))


def test_a_source_tar_that_changes_meanwhile_is_not_blessed(tmp_path):
    source = write_tars(tmp_path / "images", (3,))

    class Meddler(BlockSums):
        def encode(self, images):
            os.utime(source / "part-0.tar", ns=(1, 1))
            return super().encode(images)

    with pytest.raises(InputError, match="part-0.tar changed while it was tokenised"):
        tokenize(source, tmp_path / "store", tokenizer=Meddler())
    assert not list((tmp_path / "store/tokens").glob("*"))


def test_tars_of_the_same_name_stay_apart(tmp_path):
    for folder in "ab":
        write_tars(tmp_path / "images" / folder, (2,))
    tokenize(tmp_path / "images", tmp_path / "store")
    stems = [row.stem for row in open_store(tmp_path / "store").shards]
    assert stems == ["000000-part-0", "000001-part-0"]


def test_foreign_keys_with_folders_and_long_unicode_names(tmp_path):
    names = ["a/b c", "größe/" + "x" * 120, "plain"]
    (tmp_path / "images").mkdir()
    write_members(tmp_path / "images/x.tar", {f"{name}.jpg": encoded_image(i) for i, name in enumerate(names)})
    tokenize(tmp_path / "images", tmp_path / "store")
    assert [sample["key"] for sample in open_store(tmp_path / "store")] == names
    tar = str(next((tmp_path / "store/tokens").glob("*.tar")))
    assert [sample["__key__"] for sample in wds.WebDataset(tar, shardshuffle=False)] == names


def test_labels_and_class_names_of_a_folder(tmp_path):
    for number in range(9):
        write_folder(tmp_path / "images" / ["ape", "bee", "cow"][number % 3], 1)
        (tmp_path / "images" / ["ape", "bee", "cow"][number % 3] / "000.png").rename(
            tmp_path / "images" / ["ape", "bee", "cow"][number % 3] / f"x{number}.png"
        )
    tokenize(tmp_path / "images", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.info.class_names == ("ape", "bee", "cow")
    for sample in store:
        number = int(sample["key"][1:].split("-")[0])
        assert sample["label"] == number % 3


def test_class_names_of_tars_stay_with_the_store(tmp_path):
    (tmp_path / "images").mkdir()
    members = {}
    for number, name in enumerate(["cat", "dog", "cat"]):
        members[f"{number}.jpg"], members[f"{number}.cls"] = encoded_image(number), name.encode()
    write_members(tmp_path / "images/x.tar", members)
    tokenize(tmp_path / "images", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.info.class_names == ("cat", "dog")
    assert [sample["label"] for sample in store] == [0, 1, 0]


def test_a_parquet_source(tmp_path):
    table = pa.table(
        {
            "image": [{"bytes": encoded_image(n, "png"), "path": f"{n}.png"} for n in range(11)],
            "label": [n % 4 for n in range(11)],
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    tokenize(tmp_path / "x.parquet", tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert sorted(sample["label"] for sample in store) == sorted(n % 4 for n in range(11))
    for sample in store:
        number = int(sample["key"].split("-")[0])
        assert sample["label"] == number % 4
        assert np.array_equal(sample["image"], decode_image(encoded_image(number, "png")))
    assert not (tmp_path / "store/images/.spool").exists()
    assert {row.num_samples for row in store.shards} <= {3, 4}


def test_short_side_shrinks_while_packing_tars(tmp_path):
    source = write_tars(tmp_path / "images", (5,))
    tokenize(source, tmp_path / "store", short_side=20)
    store = open_store(tmp_path / "store")
    assert {sample["image"].size for sample in store} == {(24, 20)}
    assert sorted(sample["label"] for sample in store) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("where", [".", "inside"])
def test_a_store_inside_its_source_folder_is_refused(tmp_path, where):
    source = write_folder(tmp_path / "images", 3)
    with pytest.raises(InputError, match="must not lie inside|is not empty"):
        tokenize(source, source / where)
    assert len(list(source.iterdir())) == 3


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


def test_two_runs_on_one_store_exclude_each_other(tmp_path):
    source = write_tars(tmp_path / "images", (2,))

    class Rival(BlockSums):
        def encode(self, images):
            with pytest.raises(InputError, match=rf"written by another beit tokenize \(process {os.getpid()}\)"):
                tokenize(source, tmp_path / "store")
            return super().encode(images)

    assert tokenize(source, tmp_path / "store", tokenizer=Rival()).is_complete


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


def tokenize_with_file_limit(source, store):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        tokenize(source, store)
    except OSError as error:
        os._exit(error.errno if "000001-part-1.tar" in str(error.filename) else 1)


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


def test_pixels_of_a_packed_image_are_untouched(tmp_path):
    image = Image.open(io.BytesIO(encoded_image(3, "webp")))
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.webp").write_bytes(encoded_image(3, "webp"))
    tokenize(source, tmp_path / "store")
    sample = open_store(tmp_path / "store")[0]
    assert np.array_equal(sample["image"], image.convert("RGB"))
