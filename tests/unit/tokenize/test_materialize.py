"""A store of crops: what is stored, that tokens belong to the stored pixels, and that everything downstream works."""

import io
import json
import tarfile

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image
from beit.common.rng import CounterRng
from beit.common.shards.token_store import image_range
from beit.common.store import open_store
from beit.common.views import AugmentConfig, crop_crc, draw_view, mean_luma, render_view
from beit.pretrain.data import ViewTransform
from beit.pretrain.masking import MaskConfig
from beit.pretrain.store_dataset import StoreDataset
from beit.tests.tiny_store import BlockSums, tokenize, tree_bytes, write_folder, write_tars
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.config import TokenizeConfig


@pytest.fixture
def store(tmp_path):
    tokenize(write_folder(tmp_path / "images", 10), tmp_path / "store", materialize=True)
    return tmp_path / "store"


def test_each_crop_is_the_drawn_view_at_the_size_of_the_vit(tmp_path, store):
    originals = {path.name: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    with tarfile.open(store / "images/000000-files.tar") as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}
    keys = [name.removesuffix(".json") for name in content if name.endswith(".json")]
    assert list(content) == [f"{key}.{suffix}" for key in keys for suffix in ("0.jpg", "1.jpg", "2.jpg", "json")]
    for key in keys:
        origin = json.loads(content[f"{key}.json"])
        image = decode_image(originals[origin["path"]])
        assert origin["size"] == list(image.size)
        for k, fields in enumerate(origin["views"]):
            view = draw_view(CounterRng(0, "view", key, k), *image.size, AugmentConfig())
            assert fields == {name: int(view[name]) for name in fields} and len(fields) == 9
            crop = Image.open(io.BytesIO(content[f"{key}.{k}.jpg"]))
            expected = io.BytesIO()
            Image.fromarray(render_view(image, view, img_size=16)).save(expected, "JPEG", quality=90)
            assert crop.size == (16, 16) and content[f"{key}.{k}.jpg"] == expected.getvalue()


def test_tokens_and_checks_are_those_of_the_decoded_crops(store):
    for sample in open_store(store):
        assert len(sample["crops"]) == 3 and np.array_equal(sample["image"], sample["crops"][0])
        for crop, view, token_ids in zip(sample["crops"], sample["views"], sample["token_ids"], strict=True):
            assert np.array_equal(render_view(crop, view, img_size=16, check_crop=True), np.asarray(crop))
            seen = render_view(crop, view, img_size=32, resample="lanczos")
            assert np.array_equal(token_ids, BlockSums().encode(seen[None])[0])
            assert view["crc_crop"] == crop_crc(crop, view) and np.array_equal(view["luma"], mean_luma(seen))


def test_training_reads_the_crop_of_the_view_and_nothing_else(store, monkeypatch):
    opened = open_store(store)
    dataset = StoreDataset(opened, seed=5)
    transform = ViewTransform(img_size=16, grid_size=4, mask=MaskConfig(), seed=5, augment=AugmentConfig(), strict=True)
    samples = [opened[index] for index in range(len(opened))]
    by_name = {(sample["key"]): sample for sample in samples}
    seen = set()
    for epoch in range(3):
        record = dataset.fetch(0, 0, epoch)
        sample = by_name[record.key]
        pixels = transform(record)["images"].transpose(1, 2, 0)
        assert np.array_equal(pixels, sample["crops"][record.view_index])
        assert np.array_equal(record.token_ids, sample["token_ids"][record.view_index])
        seen.add(record.view_index)
    assert seen == {0, 1, 2}
    sizes = []
    read = opened._files.read
    monkeypatch.setattr(opened._files, "read", lambda *place: sizes.append(place[2]) or read(*place))
    record = dataset.fetch(0, 0, 0)
    assert sorted(sizes) == sorted([len(record.image_bytes), 4 * 4 * 2, 36])


def test_a_materialised_store_verifies_and_its_audit_agrees(store):
    report = verify_store(store, audit=12, tokenizer=BlockSums())
    assert report.problems == [] and report.audit.agreement == 1.0


def test_two_runs_and_two_ranks_give_equal_bytes(tmp_path, store):
    for rank in (1, 0):
        tokenize(tmp_path / "images", tmp_path / "ranks", materialize=True, rank=rank, world_size=2, workers=1)
    assert tree_bytes(tmp_path / "ranks") == tree_bytes(store)


def test_stock_webdataset_reads_the_crops(store):
    samples = list(wds.WebDataset(str(store / "images/000000-files.tar"), shardshuffle=False).decode("rgb8"))
    assert [sorted(set(sample) & {"0.jpg", "1.jpg", "2.jpg"}) for sample in samples] == [
        ["0.jpg", "1.jpg", "2.jpg"]
    ] * 4
    first = open_store(store)[0]
    assert samples[0]["__key__"] == first["key"] and np.array_equal(samples[0]["1.jpg"], first["crops"][1])


def test_the_same_views_are_shown_with_and_without(tmp_path, store):
    """Only the JPEG encoder comes between: keys, order, held-out images and pixels stay."""
    tokenize(tmp_path / "images", tmp_path / "plain")
    plain, crops = open_store(tmp_path / "plain"), open_store(store)
    assert plain.info.held_out == crops.info.held_out and len(plain) == len(crops) == 10
    assert [sample["key"] for sample in plain] == [sample["key"] for sample in crops]
    lumas = [np.concatenate([sample["views"]["luma"].ravel() for sample in store]) for store in (plain, crops)]
    assert np.corrcoef(*lumas)[0, 1] > 0.95  # the jitter's clipping comes before or after a resize


def test_tars_are_packed_anew_with_their_labels_and_bad_images_counted(tmp_path):
    source = write_tars(tmp_path / "images", (5, 4), bad=("k003",))
    summary = tokenize(source, tmp_path / "store", materialize=True)
    assert summary.num_samples == 8 and dict(summary.skipped) == {"unsupported": 1}
    labels = {sample["key"]: sample["label"] for sample in open_store(tmp_path / "store")}
    assert labels == {f"k{n:03d}": n % 3 for n in range(9) if n != 3}


def test_a_damaged_crop_is_found_in_its_shard_and_by_the_reader(store):
    opened = open_store(store)
    offset, length = image_range(opened.samples(1), 0, 2)
    tar = store / "images/000001-files.tar"
    with tar.open("r+b") as file:
        file.seek(offset + length - 20)
        file.write(b"\x55\xaa\x55\xaa")
    (problem,) = verify_store(store).problems
    key = opened.samples(1).key[0]
    assert "shard 000001-files" in problem and f"sha256 has changed; damaged samples: {key!r}" in problem
    record = opened.read_record(1, 0, 2)
    with pytest.raises(BadSample):
        render_view(decode_image(record.image_bytes), record.view, img_size=16, check_crop=True)


def test_crops_are_no_source_of_images(tmp_path, store):
    with pytest.raises(InputError, match="holds the crops of a materialised store"):
        tokenize(store / "images", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_lost_crop_is_named(store):
    from beit.tokenize.shards.crops import CropTar

    with pytest.raises(InputError, match=r"has no crop .*\.3\.jpg"):
        CropTar(str(store / "images/000000-files.tar"), 4).scan()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"materialize": True, "views": 0}, "views is 0"),
        ({"materialize": True, "short_side": 256}, r"short_side \(256\)"),
        ({"jpeg_quality": 80}, r"jpeg_quality \(80\) is for images that are encoded again"),
        ({"jpeg_quality": 96, "materialize": True}, r"jpeg_quality \(96\) must lie in"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TokenizeConfig(**settings)


def test_quality_is_recorded_and_must_stay(tmp_path, store):
    assert json.loads((store / "store.json").read_text())["packing"]["jpeg_quality"] == 90
    with pytest.raises(InputError, match=r"packing.jpeg_quality \(80\) differs .* 90"):
        tokenize(tmp_path / "images", store, materialize=True, jpeg_quality=80)
    with pytest.raises(InputError, match="packing"):
        tokenize(tmp_path / "images", store)
