import io

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from beit.common.errors import InputError, ResumableStop
from beit.common.images.decode import decode_image
from beit.common.rng import CounterRng
from beit.common.store import open_store
from beit.common.views import VIEW_DTYPE, AugmentConfig, crop_crc, draw_view, mean_luma, render_view
from beit.tests.tiny_store import (
    BlockSums,
    StoppedAt,
    encoded_image,
    tiny_config,
    tokenize,
    tree_bytes,
    write_folder,
    write_members,
    write_tars,
)
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.run import run_tokenize


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


def test_ranks_of_different_world_sizes_write_what_one_process_writes(tmp_path):
    source = write_folder(tmp_path / "images", 20)
    tokenize(source, tmp_path / "one")
    with pytest.raises(ResumableStop):
        tokenize(source, tmp_path / "two", rank=1, world_size=2, tokenizer=StoppedAt(7))  # after its two shards of five
    assert not (tmp_path / "two" / "index.parquet").exists()
    tokenizer = BlockSums()
    assert tokenize(source, tmp_path / "two", rank=0, world_size=3, tokenizer=tokenizer).is_complete
    assert len(tokenizer.batch_shapes) == 9
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_a_rank_does_its_own_shards_first_and_then_those_the_others_left(tmp_path):
    source = write_tars(tmp_path / "images", (4, 4, 4, 4, 4))
    committed = []

    class Watched(BlockSums):
        def encode(self, images):
            found = {path.name[:6] for path in (tmp_path / "store/tokens").glob("*.manifest.json")}
            committed.extend(sorted(found - set(committed)))
            return super().encode(images)

    assert tokenize(source, tmp_path / "store", rank=1, world_size=2, tokenizer=Watched()).is_complete
    assert committed == ["000001", "000003", "000004", "000002"]  # and then 0: the owner starts there


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
    assert not (tmp_path / "store/.spool").exists()
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


def test_pixels_of_a_packed_image_are_untouched(tmp_path):
    image = Image.open(io.BytesIO(encoded_image(3, "webp")))
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.webp").write_bytes(encoded_image(3, "webp"))
    tokenize(source, tmp_path / "store")
    sample = open_store(tmp_path / "store")[0]
    assert np.array_equal(sample["image"], image.convert("RGB"))


def test_tars_on_a_remote_file_system_are_referenced_there(tmp_path):
    local = write_tars(tmp_path / "images")
    remote_files = fsspec.filesystem("memory")
    remote_files.put(str(local), "/tars-of-photos", recursive=True)
    try:
        assert tokenize("memory://tars-of-photos", tmp_path / "store").num_samples == 12
        assert open_store(tmp_path / "store").info.image_root.startswith("memory://")
        tokenize(local, tmp_path / "other")
        for mine, theirs in zip(open_store(tmp_path / "store"), open_store(tmp_path / "other"), strict=True):
            assert mine["key"] == theirs["key"] and np.array_equal(mine["token_ids"], theirs["token_ids"])
        assert tokenize("memory://tars-of-photos", tmp_path / "store").num_shards_kept == 2
        assert verify_store(tmp_path / "store").problems == []
    finally:
        remote_files.rm("/tars-of-photos", recursive=True)


def test_a_store_reached_through_a_link(tmp_path):
    source = write_tars(tmp_path / "images")
    (tmp_path / "deep/er/place").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/er/place")
    tokenize(source, tmp_path / "link/store")
    assert len(open_store(tmp_path / "link/store")) == len(open_store(tmp_path / "deep/er/place/store")) == 12
    assert tokenize(source, tmp_path / "deep/er/place/store").num_shards_kept == 2
