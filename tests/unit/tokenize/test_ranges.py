"""A value range, from the settings of `beit tokenize` to the pixels that training sees."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.images.decode import decode_image
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import ValueRange
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.shards.schema import StoreInfo
from beit.common.sources.config import SourceConfig
from beit.common.sources.index_build import build_index
from beit.common.store import open_store
from beit.common.views import replay_view
from beit.tests.tiny_store import tokenize, write_folder, write_members
from beit.tokenize.checking.verify import verify_store

PERCENTILES = SourceConfig(range="percentile:0.5,99.5")
TWELVE_BITS = SourceConfig(range=(0.0, 4095.0))


def scan(number):
    values = np.random.default_rng(number).integers(100, 1100, (40, 48)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def write_scans(folder, count=6):
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.png").write_bytes(scan(number))
    return folder


@pytest.mark.parametrize("source", [PERCENTILES, TWELVE_BITS], ids=["percentile", "bounds"])
@pytest.mark.parametrize("changes", [{}, {"short_side": 32}, {"short_side": 64}, {"materialize": True}])
def test_every_reader_sees_the_pixels_that_were_tokenised(tmp_path, source, changes):
    images = write_scans(tmp_path / "scans")
    tokenize(images, tmp_path / "store", source=source, **changes)
    store = open_store(tmp_path / "store")
    found = store.info.source.decoding.value_range.found
    assert found is None if source is TWELVE_BITS else found == (pytest.approx(105, abs=4), pytest.approx(1094, abs=4))
    assert not verify_store(str(tmp_path / "store")).problems
    low, high = found or (0.0, 4095.0)
    expected = Decoding(value_range=ValueRange.parse((low, high)))
    for number in range(len(store)):
        key, row = store[number]["key"], store.locate(number)
        record = store.read_record(*row, 0)
        pixels = replay_view(record.image_bytes, record.view, img_size=32, decoding=record.decoding)
        assert pixels.shape == (32, 32, 3)
        if not changes:  # and else encoded again as JPEG
            own = decode_image(scan(int(key.split("-")[0].split(".")[0])), expected)
            assert np.array_equal(np.asarray(store[number]["image"]), np.asarray(own))
        elif "short_side" in changes:
            spread = np.asarray(store[number]["image"]).std()
            whole = np.asarray(decode_image(scan(0), expected)).std()
            assert spread > 0.4 * whole  # with the range applied once, neither not at all nor twice


def test_the_range_of_referenced_tars_is_found_in_them(tmp_path):
    write_members(tmp_path / "scans.tar", {f"{number}.png": scan(number) for number in range(6)})
    tokenize(tmp_path / "scans.tar", tmp_path / "store", source=PERCENTILES)
    info = open_store(tmp_path / "store").info
    assert info.packing is None and info.source.range_found is not None
    assert info.decoding.value_range.found == info.source.range_found
    assert not verify_store(str(tmp_path / "store")).problems


def test_labelled_images_look_as_in_a_store_of_the_same_range(tmp_path):
    images = write_scans(tmp_path / "scans")
    tokenize(images, tmp_path / "store", source=PERCENTILES)
    index = build_index(images, tmp_path / "cache", settings=PERCENTILES)
    assert index.decoding.value_range == open_store(tmp_path / "store").info.source.decoding.value_range
    dataset, store = LabelledDataset(index), open_store(tmp_path / "store")
    seen = {np.asarray(dataset.fetch(*index.locate(i), 0).decode_image()).tobytes() for i in range(len(index))}
    assert seen == {np.asarray(store[i]["image"]).tobytes() for i in range(len(store))}
    other = build_index(images, tmp_path / "cache", settings=TWELVE_BITS)
    plain = build_index(images, tmp_path / "cache")
    assert len({index.index_sha256, other.index_sha256, plain.index_sha256}) == 3


def test_percentiles_are_found_once_and_kept(tmp_path, monkeypatch):
    images = write_scans(tmp_path / "scans")
    first = build_index(images, tmp_path / "cache", settings=PERCENTILES).decoding
    tokenize(images, tmp_path / "store", source=PERCENTILES)
    kept = (tmp_path / "store/store.json").read_bytes()

    def refuse(*_, **__):
        raise AssertionError("found again")

    monkeypatch.setattr("beit.common.sources.index_build.find_range", refuse)
    monkeypatch.setattr("beit.tokenize.plan.find_range", refuse)
    assert build_index(images, tmp_path / "cache", settings=PERCENTILES).decoding == first
    tokenize(images, tmp_path / "store", source=PERCENTILES)
    assert (tmp_path / "store/store.json").read_bytes() == kept


def test_another_range_does_not_continue_a_store(tmp_path):
    images = write_scans(tmp_path / "scans")
    tokenize(images, tmp_path / "store", source=TWELVE_BITS)
    for other, said in ((SourceConfig(), '"dtype"'), (PERCENTILES, '"percentile:0.5,99.5"')):
        with pytest.raises(InputError, match=rf"source.range \({said}\) differs from that of store"):
            tokenize(images, tmp_path / "store", source=other)


def test_stores_of_usual_images_keep_their_hash(tmp_path):
    tokenize(write_folder(tmp_path / "images", 3), tmp_path / "store")
    info = open_store(tmp_path / "store").info
    assert not {"source.range", "source.range_found", "source.channels", "source.alpha"} & info.settings().keys()
    document = json.loads((tmp_path / "store/store.json").read_text())
    for name in ("range", "range_found", "channels", "alpha", "frame"):
        del document["source"][name]
    (tmp_path / "store/store.json").write_text(json.dumps(document))
    assert open_store(tmp_path / "store").info == info
    assert info.decoding == Decoding() and isinstance(info, StoreInfo)


def test_a_range_that_lies_idle_is_said_once(tmp_path, caplog):
    images = write_scans(tmp_path / "scans")
    tokenize(images, tmp_path / "store")
    assert [said for said in caplog.messages if "grey levels are left" in said]
    caplog.clear()
    tokenize(images, tmp_path / "store")
    tokenize(write_folder(tmp_path / "photos", 3, suffix="jpg"), tmp_path / "other")
    assert not [said for said in caplog.messages if "grey levels" in said]
